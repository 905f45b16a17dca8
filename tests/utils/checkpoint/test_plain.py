"""What a checkpoint could not give back is refused before the first step; what has a plain form is stored in that."""

import importlib
import threading
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import train
from base.base_trainer import BaseTrainer
from tests.helpers import Fit, same, state, temporarily
from trainer.trainer import Trainer
from utils import checkpoint
from utils.errors import UserError
from utils.registry import MODELS, OPTIMIZERS, TRAINERS

Pair = namedtuple("Pair", "a b")
ITSELF: list[Any] = []
ITSELF.append(ITSELF)


class Own(Tensor):
    """A tensor of a class that nobody else has."""


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (np.float64(1.5), 1.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.arange(3.0), torch.arange(3.0, dtype=torch.float64)),
        (np.arange(6)[::-2], torch.tensor([5, 3, 1])),
        (np.arange(3, dtype=">i4"), torch.arange(3, dtype=torch.int32)),
        (torch.ones(2).as_subclass(Own), torch.ones(2)),
        (nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))),
        ({np.int64(1): [(np.float32(2),)]}, {1: [(2.0,)]}),
        (Counter({"a": np.int64(2)}), Counter({"a": 2})),
        (OrderedDict(b=1, a=np.float64(2)), OrderedDict(b=1, a=2.0)),
        ({1, 2}, {1, 2}),
        (torch.Size([1]), torch.Size([1])),
        (torch.float16, torch.float16),
        (10**30, 10**30),
        ("é", "é"),
        ("\udcff", "\udcff"),
    ],
)
def test_what_has_a_plain_form_is_stored_in_it(tmp_path: Path, value: Any, stored: Any) -> None:
    path = tmp_path / "step-00000001.pth"
    checkpoint.write(path, checkpoint.plain({"model": {"v": value}}))
    found = checkpoint.read(path)["model"]["v"]
    assert same(found, stored)
    assert type(found) is type(stored)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        threading.Lock(),
        Path("x"),
        len,
        lambda: 1,
        deque([1]),
        defaultdict(int),
        frozenset([1]),
        Pair(1, 2),
        10**1000,
        np.array(["text"]),
        np.datetime64("2020-01-01"),
        np.longdouble(1),
        np.random.default_rng(),
        torch.Generator(),
        torch.empty(1, device="meta"),
        {1, np.float64(1.5)},
        ITSELF,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_none_is_refused_by_its_keys(value: Any) -> None:
    with pytest.raises(UserError, match=r"could not be loaded(.|\n)*\n  model\.fc\.state\.0"):
        checkpoint.plain({"model": {"fc.state": [value]}})


def test_no_text_is_saved_on_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("utils.checkpoint.plain")  # the package has a function of this name
    monkeypatch.setattr(module, "_is_storable", lambda value: False)
    assert checkpoint.plain({"model": {"é": "한글"}}) == {"model": {"é": "한글"}}


def test_tensors_are_neither_copied_nor_read() -> None:
    weights = nn.Linear(2, 2).state_dict()
    made = checkpoint.plain({"model": weights})["model"]
    assert all(made[name] is weights[name] for name in weights)
    assert made._metadata == weights._metadata  # type: ignore[attr-defined]


def test_what_a_state_has_as_an_attribute_is_converted_too() -> None:
    weights: Any = OrderedDict()
    weights._metadata = {"": {"version": np.int64(2)}}
    assert type(checkpoint.plain({"model": weights})["model"]._metadata[""]["version"]) is int


class Layer(nn.Linear):
    extra: Any = None

    def get_extra_state(self) -> Any:
        return {"v": self.extra}

    def set_extra_state(self, state: Any) -> None:
        self.extra = state["v"]


class ExtraState(nn.Module):
    """A model with a state of its own in a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = Layer(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.fc(x)


class OneWay(nn.Linear):
    """A model that gives a state and cannot take it."""

    def __init__(self) -> None:
        super().__init__(6, 3)

    def get_extra_state(self) -> Any:
        return 1


class Odd(torch.optim.SGD):
    """Keeps what no checkpoint can hold, from its first step on."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["lock"] = Path("x")


class Part:
    value: Any = None

    def state_dict(self) -> Any:
        return {"v": self.value}

    def load_state_dict(self, state: Any) -> None:
        self.value = state["v"]


class PartTrainer(Trainer):
    """Has a part of its own."""

    part: Any = None

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "mine": self.part}


def refused(fit: Fit, tmp_path: Path, says: str, trainer: str = "Trainer", **keys: Any) -> None:
    with pytest.raises(UserError, match=rf"{says}(.|\n)*removed the empty run folder"):
        fit(f"trainer.type={trainer}", **keys)
    assert list((tmp_path / "saved").iterdir()) == []


def test_a_model(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    original = BaseTrainer.optimizer_step

    def optimizer_step(self: BaseTrainer, step: Any) -> Any:
        steps.append(self.progress.steps)
        return original(self, step)

    monkeypatch.setattr(BaseTrainer, "optimizer_step", optimizer_step)
    with temporarily(MODELS, ExtraState):
        monkeypatch.setattr(Layer, "extra", Path("x"))
        with pytest.raises(UserError, match=r"\n  model\.fc\._extra_state\.v is of type pathlib"):
            fit(model="ExtraState")
        assert not (tmp_path / "saved").exists()
        assert not steps
        monkeypatch.setattr(Layer, "extra", np.float64(1.5))
        run = fit(model="ExtraState").run_dir
        assert state(run)["model"]["fc._extra_state"] == {"v": 1.5}
        assert train.main(["-r", str(run), "trainer.epochs=3"]).epochs == 3


def test_a_model_that_could_not_take_its_state_back(fit: Fit, tmp_path: Path) -> None:
    with temporarily(MODELS, OneWay):
        refused(fit, tmp_path, r"model: load_state_dict\(\) does not take what", model="OneWay")


def test_an_optimizer_whose_first_step_makes_the_state(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    with temporarily(OPTIMIZERS, Odd), pytest.raises(UserError, match=r"optimizer\.state\.0\.lock is of type pathlib"):
        fit(optimizer={"type": "Odd", "args": {"lr": 0.1}})


def test_a_part_of_a_trainer(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with temporarily(TRAINERS, PartTrainer):
        monkeypatch.setattr(PartTrainer, "part", Part())
        monkeypatch.setattr(Part, "value", deque([1]))
        refused(fit, tmp_path, r"\n  mine\.v is of type collections\.deque", trainer="PartTrainer")
        monkeypatch.setattr(PartTrainer, "part", torch.optim.Optimizer.state_dict)
        monkeypatch.setattr(PartTrainer, "part", type("Half", (), {"state_dict": dict})())
        refused(fit, tmp_path, r"\n  mine, of type Half, has no load_state_dict\(\)", trainer="PartTrainer")
        monkeypatch.setattr(PartTrainer, "part", torch.Generator())
        says = r"mine, of type Generator, has no load_state_dict\(\) of its own\n.*return an object that holds it"
        refused(fit, tmp_path, says, trainer="PartTrainer")
        monkeypatch.setattr(PartTrainer, "part", property(lambda self: self))
        refused(fit, tmp_path, "mine, of type PartTrainer, has no", trainer="PartTrainer")


class Late(nn.Module):
    """A model that registers a buffer, or gives one a value, in its first forward pass."""

    how = ""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.register_buffer("known", None)

    def forward(self, x: Tensor) -> Any:
        if self.how == "value":
            self.known = torch.ones(())
        elif not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(()), persistent=self.how != "cache")
        return self.fc(x)

    def load_state_dict(self, state_dict: Any, *arguments: Any, **options: Any) -> Any:
        if self.how == "loads" and not hasattr(self, "late"):
            self.register_buffer("late", torch.zeros(()))
        return super().load_state_dict(state_dict, *arguments, **options)


@pytest.mark.parametrize("how", ["buffer", "value", "cache", "loads"])
def test_a_buffer_that_the_first_step_registers(fit: Fit, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(Late, "how", how)
    model = {"type": "Late", "args": {}}
    with temporarily(MODELS, Late):
        if how == "buffer":
            with pytest.raises(UserError, match="its first step has registered late in the part model"):
                fit("trainer.epochs=1", model=model)
            return
        run = fit("trainer.epochs=1", model=model)
        assert run.model.known == 1 if how == "value" else run.model.late == 1
        train.main(["-r", str(run.run_dir), "trainer.epochs=2"])
