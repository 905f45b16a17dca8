"""Deterministic attention, for ``runtime.deterministic="warn"``.

torch's fast kernels for the backward pass of attention have a deterministic variant, but it is only used if operations
without any are errors: in mode "error" of ``torch.set_deterministic_debug_mode``. This module sets that mode for as
long as such a kernel is chosen.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional as F  # noqa: N812

WARN, ERROR = 1, 2
"""torch's numbers of the modes."""


def use_deterministic_attention() -> None:
    """Let gradients of ``torch.nn.functional.scaled_dot_product_attention`` be deterministic in mode "warn".

    Modules of torch and of most libraries call it by this name. Compiled code calls torch's kernels directly.
    """
    attention = F.scaled_dot_product_attention
    if hasattr(attention, "__wrapped__"):
        return

    @functools.wraps(attention)
    def deterministic(*args: Any, **kwargs: Any) -> Tensor:
        outputs: Tensor = attention(*args, **kwargs)
        if torch.compiler.is_compiling() or torch.get_deterministic_debug_mode() != WARN:
            return outputs
        if (node := _attention_of(outputs.grad_fn)) is not None:
            node.register_prehook(lambda _: torch.set_deterministic_debug_mode(ERROR))
            node.register_hook(lambda *_: torch.set_deterministic_debug_mode(WARN))
        return outputs

    F.scaled_dot_product_attention = deterministic


def _attention_of(node: Node | None) -> Node | None:
    """The node of the backward pass that is a single kernel. Slices follow it if sizes were padded."""
    for _ in range(3):
        if node is None or "ScaledDotProduct" in node.name():
            return node
        node = node.next_functions[0][0] if node.next_functions else None
    return None
