"""A backward pass without torch's checks computes what one with them computes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import graph

from utils import fast_step
from utils.fast_step import backward_unchecked


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What torch's own ``backward`` has checked."""
    calls: list[Any] = []
    original: Any = torch.autograd._make_grads

    def recorded(losses: Any, *more: Any, **others: Any) -> Any:
        calls.append(losses)
        return original(losses, *more, **others)

    monkeypatch.setattr(torch.autograd, "_make_grads", recorded)
    return calls


@pytest.fixture
def forgets_engine() -> Iterator[Callable[[], None]]:
    yield fast_step._engine.cache_clear
    fast_step._engine.cache_clear()


def gradients(run: Callable[[Tensor], None], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    inputs, targets = torch.randn(16, 20, dtype=dtype), torch.randint(0, 3, (16,))
    for _ in range(2):  # the second adds to the first
        run(nn.functional.cross_entropy(model(inputs), targets))
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("weight", [None, 0.25])
def test_gradients_are_those_of_torch(checked: list[Any], dtype: torch.dtype, weight: float | None) -> None:
    def gradient(loss: Tensor) -> Tensor | None:
        return None if weight is None else torch.full_like(loss, weight)

    ours = gradients(lambda loss: backward_unchecked(loss, gradient(loss)), dtype)
    assert not checked
    torchs = gradients(lambda loss: loss.backward(gradient(loss)), dtype)  # type: ignore[no-untyped-call]
    assert len(ours) == 4
    assert all(map(torch.equal, ours, torchs))


def test_hooks_of_tensors_and_of_the_graph_are_called() -> None:
    called = []
    weight = torch.ones((), requires_grad=True)
    hooked: Any = weight
    hooked.register_hook(lambda gradient: called.append("tensor"))
    hooked.register_post_accumulate_grad_hook(lambda _: called.append("accumulated"))
    loss = 2 * weight
    assert loss.grad_fn is not None
    loss.grad_fn.register_hook(lambda *_: called.append("node"))
    backward_unchecked(loss)
    assert called == ["node", "tensor", "accumulated"]


def test_the_graph_is_freed() -> None:
    weight = torch.ones((), requires_grad=True)
    loss = weight.exp() * 2
    backward_unchecked(loss)
    with pytest.raises(RuntimeError, match="second time"):
        backward_unchecked(loss)


class Tagged(Tensor):
    """A subclass whose methods go through ``__torch_function__``."""


def test_other_losses_take_torchs_own_method(checked: list[Any]) -> None:
    weight = torch.ones(1, requires_grad=True)
    backward_unchecked(2 * weight)  # shape (1,)
    assert len(checked) == 1
    backward_unchecked((2 * weight).sum().as_subclass(Tagged))
    assert len(checked) > 1
    assert weight.grad is not None
    assert weight.grad.item() == 4


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch's compiler
def test_torchs_compiler_sees_the_losss_own_method() -> None:
    weight = torch.ones(3, requires_grad=True)

    def step() -> None:
        backward_unchecked(weight.sum())

    with pytest.raises(Exception, match=r"Unsupported Tensor\.backward\(\)"):
        torch.compile(step, backend="eager", fullgraph=True)()
    torch.compile(step, backend="eager")()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, 1.0, 1.0]


def test_errors_are_torchs(checked: list[Any]) -> None:
    with pytest.raises(RuntimeError, match="does not require grad"):
        backward_unchecked(torch.ones(()))
    with pytest.raises(RuntimeError, match="real scalar outputs"):
        backward_unchecked(torch.ones((), dtype=torch.complex64, requires_grad=True) * 2)


@pytest.mark.parametrize("change", ["gone", "other arguments", "does nothing"])
def test_another_version_of_torch_takes_its_own_method(
    checked: list[Any], forgets_engine: Callable[[], None], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    forgets_engine()
    if change == "gone":
        monkeypatch.delattr(graph, "_engine_run_backward")
    elif change == "other arguments":
        monkeypatch.setattr(graph, "_engine_run_backward", lambda outputs: None)
    else:
        monkeypatch.setattr(graph, "_engine_run_backward", lambda *_, **__: None)
    backward_unchecked(torch.ones((), requires_grad=True) * 2)
    assert len(checked) == 1
