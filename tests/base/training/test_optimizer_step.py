"""A step without torch's mark for the profiler and without its compiler is torch's step; hooks and profilers see it."""

import functools
import subprocess
import sys
import textwrap
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile

from tests.helpers import ROOT, needs_extra, same
from utils.fast_step import step_unmarked, zero_grad_unmarked


def optimizer(kind: type[Optimizer] = SGD) -> Optimizer:
    weight = torch.arange(6.0).requires_grad_()
    weight.grad = torch.ones(6)
    return kind([weight], lr=0.1)  # type: ignore[call-arg]


def weights(made: Optimizer) -> torch.Tensor:
    [group] = made.param_groups
    found: torch.Tensor = group["params"][0].detach().clone()
    return found


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the marks that are made."""
    found: list[str] = []
    original = torch.autograd.profiler.record_function.__init__

    def recorded(self: Any, name: str, args: Any = None) -> None:
        found.append(name)
        original(self, name, args)

    monkeypatch.setattr(torch.autograd.profiler.record_function, "__init__", recorded)
    return found


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_the_step_is_the_optimizers_own(kind: type[Optimizer], marks: list[str]) -> None:
    one, other = optimizer(kind), optimizer(kind)
    for _ in range(3):
        step_unmarked(one)
    assert marks == []
    for _ in range(3):
        other.step()
    assert len(marks) == 3
    assert torch.equal(weights(one), weights(other))
    assert not torch.equal(weights(one), torch.arange(6.0))


@pytest.mark.parametrize("when", ["register_step_pre_hook", "register_step_post_hook"])
def test_hooks_are_called(when: str) -> None:
    made, seen = optimizer(), []
    step_unmarked(made)
    handle = getattr(made, when)(lambda *_: seen.append(1))
    step_unmarked(made)
    handle.remove()
    step_unmarked(made)
    assert seen == [1]


@pytest.mark.parametrize("register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook])
def test_hooks_of_all_optimizers_are_called(register: Any) -> None:
    made, seen = optimizer(), []
    handle = register(lambda *_: seen.append(1))
    step_unmarked(made)
    handle.remove()
    step_unmarked(made)
    assert seen == [1]


def test_a_profiler_sees_the_step(marks: list[str]) -> None:
    made = optimizer()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True):
        step_unmarked(made)
    assert "Optimizer.step#SGD.step" in marks


def test_a_schedule_sees_the_first_step(marks: list[str]) -> None:
    made = optimizer()
    schedule = StepLR(made, step_size=1)
    for _ in range(3):  # it warns, which is an error here, if it moves before it saw a step
        step_unmarked(made)
        schedule.step()
    assert not marks
    assert torch.allclose(weights(made), torch.arange(6.0) - 0.111)


def test_a_step_that_a_user_put_in_its_place_is_called() -> None:
    made, seen = optimizer(), []
    made.step = MethodType(lambda _: seen.append(1), made)  # type: ignore[method-assign]
    step_unmarked(made)
    StepLR(made, step_size=1)  # puts its own around it
    step_unmarked(made)
    step_unmarked(made)
    assert seen == [1, 1, 1]
    assert torch.equal(weights(made), torch.arange(6.0))


def test_a_wrapper_that_a_user_put_around_the_step_is_called() -> None:
    made, seen = optimizer(), []

    @functools.wraps(SGD.step)
    def wrapper(*args: Any) -> None:
        seen.append(1)
        SGD.step(made, *args)  # type: ignore[arg-type]

    made.step = wrapper  # type: ignore[method-assign,assignment]
    for _ in range(2):
        step_unmarked(made)
    assert seen == [1, 1]


class OwnClearing(SGD):
    """Keeps its gradients."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.cleared = True


@pytest.mark.parametrize("place", ["a class", "the optimizer", "torch's class"])
def test_a_users_own_way_to_clear_gradients_is_called(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    made: Any = optimizer(OwnClearing if place == "a class" else SGD)
    if place == "the optimizer":
        made.zero_grad = MethodType(OwnClearing.zero_grad, made)
    elif place == "torch's class":
        monkeypatch.setattr(Optimizer, "zero_grad", OwnClearing.zero_grad)
    zero_grad_unmarked(made)
    assert made.cleared
    assert made.param_groups[0]["params"][0].grad is not None


def test_gradients_are_cleared() -> None:
    made = optimizer()
    zero_grad_unmarked(made)
    assert made.param_groups[0]["params"][0].grad is None


def test_where_torch_is_another_its_step_is_called(monkeypatch: pytest.MonkeyPatch, marks: list[str]) -> None:
    made = optimizer()
    monkeypatch.delattr(torch.autograd.profiler, "_is_profiler_enabled")
    step_unmarked(made)
    assert marks == ["Optimizer.step#SGD.step"]


KINDS = [kind for kind in map(vars(torch.optim).get, torch.optim.__all__) if isinstance(kind, type)]
NOT_ALONE = {"Optimizer", "SparseAdam", "Muon"}  # which take other gradients or weights


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.__name__ not in NOT_ALONE])
def test_a_step_without_the_compiler_is_the_optimizers_own(kind: type[Optimizer]) -> None:
    states, ends = [], []
    # torch's own step imports the compiler
    for step in (step_unmarked, kind.step, step_unmarked):
        made = optimizer(kind)
        for _ in range(3):
            step(made, lambda: 1.0)
        loaded = optimizer(kind)
        loaded.load_state_dict(made.state_dict())
        assert torch.is_grad_enabled()
        ends.append(weights(made))
        states.append(loaded.state_dict())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[2], ends[1])
    assert same(states[0], states[1])
    assert same(states[2], states[1])
    assert not torch.equal(ends[0], torch.arange(6.0))


EVERYTHING = [
    'lr_scheduler={"type": "OneCycleLR", "args": {"max_lr": 1e-6}, "interval": "step"}',
    'metrics=["MeanSquaredError"]',
    "trainer.clip_grad_norm=1",
    "trainer.ema.decay=0.9",
]


@needs_extra("early", "check")
@pytest.mark.slow
def test_neither_a_run_nor_a_check_imports_the_compiler(tmp_path: Path) -> None:
    script = f"""
        import sys, train
        for overrides in ([], {EVERYTHING}):
            overrides += ["trainer.save_dir={tmp_path}", "runtime.device=cpu"]
            train.main(["-c", "config.json", "trainer.epochs=1", "trainer.steps_per_epoch=2", *overrides])
            train.main(["-r", "trainer.epochs=2", *overrides])
            train.main(["--check", *overrides])
            print("torch._dynamo" in sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert [line for line in printed.splitlines() if line in ("True", "False")] == ["False", "False"]
