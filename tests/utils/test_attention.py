"""Deterministic attention: torch's mode "error" for its backward pass alone."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from utils.attention import use_deterministic_attention

WARN, ERROR = 1, 2


@pytest.fixture(autouse=True)
def attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_deterministic_debug_mode()
    monkeypatch.setattr(F, "scaled_dot_product_attention", inspect.unwrap(F.scaled_dot_product_attention))
    torch.set_deterministic_debug_mode(WARN)
    use_deterministic_attention()
    yield
    torch.set_deterministic_debug_mode(before)


class Look(torch.autograd.Function):
    """Passes a tensor on, and notes the mode in the backward pass."""

    modes: list[int]

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        Look.modes.append(torch.get_deterministic_debug_mode())
        return gradient


def watch_attention(outputs: Tensor) -> None:
    """Note the mode in the backward pass of the attention that outputs depend on."""
    nodes: list[Any] = [outputs.grad_fn]
    for node in nodes:
        if "ScaledDotProduct" in node.name():
            node.register_prehook(lambda _: Look.modes.append(torch.get_deterministic_debug_mode()))
            return
        nodes += [each for each, _ in node.next_functions if each is not None]
    pytest.fail("no attention")


def modes(*, mask: Tensor | None = None) -> list[int]:
    """The modes before, in and after the backward pass of attention. mask: as of torch's function."""
    Look.modes = []
    values = torch.randn(2, 4, 8, 12, requires_grad=True)
    outputs = F.scaled_dot_product_attention(Look.apply(values), values, values, attn_mask=mask)
    if mask is None:
        watch_attention(outputs)
    Look.apply(outputs).sum().backward()
    return Look.modes


def test_the_mode_holds_for_the_backward_pass_of_attention_alone() -> None:
    assert modes() == [WARN, ERROR, WARN]
    assert torch.get_deterministic_debug_mode() == WARN


def test_attention_that_is_made_of_other_operations_is_left_alone() -> None:
    """As with a mask that gets gradients."""
    assert modes(mask=torch.zeros(8, 8, requires_grad=True)) == [WARN, WARN]


@pytest.mark.parametrize("mode", [0, ERROR])
def test_other_modes_stay(mode: int) -> None:
    torch.set_deterministic_debug_mode(mode)
    assert modes() == [mode, mode, mode]


def test_it_is_done_once_and_changes_no_number() -> None:
    used = F.scaled_dot_product_attention
    use_deterministic_attention()
    assert F.scaled_dot_product_attention is used
    values = torch.randn(2, 4, 8, 16)
    assert torch.equal(used(values, values, values), inspect.unwrap(used)(values, values, values))


def test_torchs_own_layers_use_it() -> None:
    Look.modes = []
    layer = nn.MultiheadAttention(16, 2, batch_first=True)
    inputs = torch.randn(2, 5, 16)
    outputs, _ = layer(inputs, inputs, inputs, need_weights=False)
    watch_attention(outputs)
    outputs.sum().backward()
    assert Look.modes == [ERROR]


def test_the_padding_of_sizes_is_seen_through() -> None:
    """A GPU's kernels take multiples of 8; torch pads and cuts others, so that a slice follows the attention."""
    Look.modes = []
    values = torch.randn(2, 4, 8, 16, requires_grad=True)
    kernel = inspect.unwrap(F.scaled_dot_product_attention)

    def padded(*args: Any) -> Tensor:
        outputs: Tensor = kernel(*args)[..., :12]
        return outputs

    F.scaled_dot_product_attention = padded  # type: ignore[assignment]
    use_deterministic_attention()
    outputs = F.scaled_dot_product_attention(Look.apply(values), values, values)
    watch_attention(outputs)
    outputs.sum().backward()  # type: ignore[no-untyped-call]
    assert Look.modes == [ERROR, WARN]
