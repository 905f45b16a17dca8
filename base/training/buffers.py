"""Buffers that a module replaces as it trains: by ones of another shape or dtype, or two that shared memory by two."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from utils.tree import same


def load_part(part: Any, state: Any) -> None:
    """Load the state of a part of a checkpoint: a module, or anything else with ``load_state_dict``."""
    fit_buffers(part, state)
    part.load_state_dict(state)


def fit_buffers(module: Any, state: Any) -> None:
    """Replace the buffers of a module that could not take their saved values, so that its ``load_state_dict`` can.

    state: what its ``state_dict`` returned. Does nothing for a part of a checkpoint that is not a module.
    """
    if not isinstance(module, nn.Module) or not isinstance(state, Mapping):
        return
    parameters = dict(module.named_parameters(remove_duplicate=False))
    shared: dict[int, str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or name in parameters:
            continue
        owner = _owner(module, name)
        if owner is None:
            continue
        leaf = name.rpartition(".")[2]
        buffer = getattr(owner, leaf)
        fits = isinstance(buffer, Tensor) and (buffer.shape, buffer.dtype) == (value.shape, value.dtype)
        first = shared.setdefault(id(buffer), name)
        if not fits or (first != name and not same(state[first], value)):
            device = next((each.device for each in (buffer, *parameters.values()) if each is not None), value.device)
            setattr(owner, leaf, value.detach().to(device).clone())


def _owner(module: nn.Module, name: str) -> nn.Module | None:
    """The module that has registered a buffer, perhaps as None; None if no module has."""
    path, _, leaf = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return None
    # torch returns what is registered by __getattr__ alone
    registered = hasattr(owner, leaf) and leaf not in vars(owner) and not hasattr(type(owner), leaf)
    return owner if registered and isinstance(getattr(owner, leaf), (Tensor, type(None))) else None
