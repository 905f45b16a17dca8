"""What a checkpoint may contain: tensors and plain values that ``torch.load(weights_only=True)`` can load.

Anything else would be saved without an error and fail only on loading, so it is rejected before it is saved.
"""

import copy
import io
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.text import at_most, dotted
from utils.tree import Keys

MAX_DEPTH = 100
MAX_NAMED = 5


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """A state with NumPy numbers converted to Python's, and arrays and tensor subclasses to tensors.

    Tensors are neither copied nor read. Raises UserError naming the part and key of values that cannot be converted.
    """
    found = _Plain()
    made: dict[str, Any] = found.convert(state, ())
    if found.problems:
        raise UserError(
            "a checkpoint of this run could not be loaded, since it may contain only tensors and plain values:\n  "
            f"{_listed(found.problems)}\n"
            "Where this state is created (state_dict, get_extra_state), return numbers, strings, tensors, or lists, "
            "tuples and dicts of them."
        )
    return made


def check_parts(parts: Mapping[str, Any], *, required: Mapping[str, Any], owner: object) -> None:
    """Raise UserError if a part returns a state that it could not load, or a required one is missing or replaced.

    parts, required: what ``stateful`` of a trainer and of its base class returned. owner: the trainer.
    """
    missing = [name for name in required if not isinstance(parts, Mapping) or name not in parts]
    if missing:
        raise UserError(
            f"stateful() of the trainer does not return {', '.join(missing)}, so no run could resume; add to what the "
            'base class returns: return {**super().stateful(), "name": part}'
        )
    for name, part in required.items():
        if getattr(parts[name], "state_dict", None) != part.state_dict:  # what wraps a part may pass on its method
            raise UserError(
                f'stateful() of the trainer returns another part as "{name}", of type {type(parts[name]).__name__}, so '
                f"a checkpoint would lack the run's own {name}; give it another name"
            )
    problems = []
    for name, part in parts.items():
        if part is owner:
            problems.append(f"{name} is the trainer itself, whose state is that of its parts")
        if not callable(getattr(part, "load_state_dict", None)):
            problems.append(f"{name} has no load_state_dict(); its type is {type(part).__name__}")
        for inner, module in part.named_modules() if isinstance(part, nn.Module) else ():
            kind = type(module)
            if (
                kind.get_extra_state is not nn.Module.get_extra_state
                and kind.set_extra_state is nn.Module.set_extra_state
            ):
                where = ".".join(filter(None, [name, inner]))
                problems.append(f"{where}: {kind.__name__} has get_extra_state() but no set_extra_state()")
        if isinstance(part, nn.Module) and _has_own_state(part) and not problems:
            try:
                part.load_state_dict(part.state_dict())
            except Exception as error:  # of the user's code, or torch's about missing keys
                problems.append(
                    f"{type(part).__name__}.load_state_dict() does not take what its state_dict() returns: {error}"
                )
    if problems:
        raise UserError(
            f"a checkpoint of this run could not be loaded:\n  {_listed(problems)}\n"
            "Define the method. In place of a random generator, a tensor or a collection, return an object that holds "
            "it and has state_dict() and load_state_dict(), as in docs/exactness.md"
        )


def _has_own_state(module: nn.Module) -> bool:
    """Whether a module has a ``state_dict`` of its own, and is not sharded: other processes then get no values."""
    sharded = any(hasattr(parameter, "device_mesh") for parameter in module.parameters())
    return type(module).state_dict is not nn.Module.state_dict and not sharded


class _Plain:
    def __init__(self) -> None:
        self.problems: list[str] = []

    def convert(self, value: Any, keys: Keys) -> Any:
        kind = type(value)
        if value is None or kind in (bool, float) or (kind is int and abs(value) < 2**63):
            return value
        if kind is str and value.isascii():
            return value
        if isinstance(value, Tensor):
            return self._tensor(value, keys)
        if kind in (dict, OrderedDict, Counter, list, tuple):
            return self._container(value, keys)
        if isinstance(value, np.generic):
            number = value.item()
            return self.convert(number, keys) if not isinstance(number, np.generic) else self._refuse(value, keys)
        if isinstance(value, np.ndarray):
            return self._array(value, keys)
        return value if _is_storable(value) else self._refuse(value, keys)

    def _container(self, value: Any, keys: Keys) -> Any:
        if len(keys) > MAX_DEPTH:
            self.problems.append(f"{dotted(keys[:3])}... is nested too deeply, or contains itself")
            return value
        if isinstance(value, (list, tuple)):
            return type(value)([self.convert(item, (*keys, index)) for index, item in enumerate(value)])
        items = {self.convert(key, (*keys, key)): self.convert(item, (*keys, key)) for key, item in value.items()}
        if type(value) is dict:
            return items
        made = copy.copy(value)  # with attributes, such as the _metadata of a module's state
        made.clear()
        made.update(items)
        vars(made).update(self._container(vars(value), keys))
        return made

    def _tensor(self, value: Tensor, keys: Keys) -> Any:
        if type(value) is Tensor or isinstance(value, nn.Parameter) or hasattr(value, "device_mesh"):  # a DTensor
            if value.is_nested and value.layout is torch.strided:
                return self._refuse(value, keys, "a nested tensor, which torch loads only with layout=torch.jagged")
            return self._refuse(value, keys, "a tensor on device meta, without values") if value.is_meta else value
        if hasattr(value, "__tensor_flatten__"):  # a subclass composed of other tensors
            return value if _is_storable(value) else self._refuse(value, keys)
        return value.detach().as_subclass(Tensor)

    def _array(self, value: Any, keys: Keys) -> Any:
        try:
            return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
        except (TypeError, ValueError):
            return self._refuse(value, keys, f"a NumPy array of type {value.dtype}")

    def _refuse(self, value: Any, keys: Keys, what: str = "") -> Any:
        name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        self.problems.append(f"{dotted(keys)} is {what or f'of type {name}'}")
        return value


def _is_storable(value: Any) -> bool:
    """Whether a value loads as what it was."""
    try:
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        return type(torch.load(file, weights_only=True)) is type(value)
    except Exception:  # any error: pickle runs the value's own code
        return False


def _listed(problems: list[str]) -> str:
    return "\n  ".join(at_most(MAX_NAMED, problems))
