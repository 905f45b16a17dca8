"""What a checkpoint may contain: tensors and plain values that ``torch.load(weights_only=True)`` can load.

Anything else would be saved without an error and fail only on loading, so it is rejected before it is saved.
"""

import contextlib
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
    problems = list[str]()
    converted: dict[str, Any] = _converted(state, (), problems)
    if problems:
        raise UserError(
            "a checkpoint of this run could not be loaded, since it may contain only tensors and plain values:\n  "
            f"{_listed(problems)}\n"
            "Where this state is created (state_dict, get_extra_state), return numbers, strings, tensors, or lists, "
            "tuples and dicts of them."
        )
    return converted


def check_parts(parts: Mapping[str, Any], *, required: Mapping[str, Any], owner: object) -> None:
    """Raise UserError if a part returns a state that it could not load, or a required one is missing or replaced.

    parts, required: what ``stateful`` of a trainer and of its base class returned. owner: the trainer.
    """
    given = parts if isinstance(parts, Mapping) else {}
    # by its method: what wraps a part may pass that on
    lacking = [name for name in required if getattr(given.get(name), "state_dict", None) != required[name].state_dict]
    if lacking:
        raise UserError(
            f"stateful() of the trainer does not return the run's own {', '.join(lacking)}, so no run could resume; "
            'add to what the base class returns: return {**super().stateful(), "name": part}'
        )
    problems = []
    for name, part in parts.items():
        if part is owner or not callable(getattr(part, "load_state_dict", None)):
            problems.append(f"{name}, of type {type(part).__name__}, has no load_state_dict() of its own")
        elif isinstance(part, nn.Module) and _has_own_state(part):
            try:
                part.load_state_dict(part.state_dict())
            except Exception as error:  # of the user's code, or torch's about missing keys
                problems.append(f"{name}: load_state_dict() does not take what state_dict() returns: {error}")
    if problems:
        raise UserError(
            f"a checkpoint of this run could not be loaded:\n  {_listed(problems)}\n"
            "Define the method. In place of a random generator, a tensor or a collection, return an object that holds "
            "it and has state_dict() and load_state_dict(), as in docs/exactness.md"
        )


def _has_own_state(module: nn.Module) -> bool:
    """Whether a module defines its state, and is not sharded: other processes then get no values."""
    sharded = any(hasattr(parameter, "device_mesh") for parameter in module.parameters())
    kinds: set[Any] = {nn.Module, *map(type, module.modules())}
    methods = {method for kind in kinds for method in (kind.state_dict, kind.get_extra_state)}
    return len(methods) > 2 and not sharded


def _converted(value: Any, keys: Keys, problems: list[str]) -> Any:
    kind = type(value)
    if value is None or kind in (bool, float, str) or (kind is int and abs(value) < 2**63):
        return value
    if isinstance(value, Tensor):
        return _converted_tensor(value, keys, problems)
    if kind in (dict, OrderedDict, Counter, list, tuple) and len(keys) < MAX_DEPTH:
        return _converted_container(value, keys, problems)
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        return _converted(value.item(), keys, problems)
    if isinstance(value, np.ndarray):
        with contextlib.suppress(TypeError):  # torch has no such dtype
            return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
    return value if len(keys) < MAX_DEPTH and _is_storable(value) else _refused(value, keys, problems)


def _converted_container(value: Any, keys: Keys, problems: list[str]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)([_converted(item, (*keys, index), problems) for index, item in enumerate(value)])
    items = {
        _converted(key, (*keys, key), problems): _converted(item, (*keys, key), problems) for key, item in value.items()
    }
    if type(value) is dict:
        return items
    container = copy.copy(value)  # with attributes, such as the _metadata of a module's state
    container.clear()
    container.update(items)
    vars(container).update(_converted_container(vars(value), keys, problems))
    return container


def _converted_tensor(value: Tensor, keys: Keys, problems: list[str]) -> Any:
    if hasattr(value, "__tensor_flatten__") and not hasattr(value, "device_mesh"):  # composed of others, not a DTensor
        return value if _is_storable(value) else _refused(value, keys, problems)
    if value.is_meta or (value.is_nested and value.layout is torch.strided):
        return _refused(value, keys, problems, "a tensor that torch cannot load: nested, or on device meta")
    is_known = type(value) is Tensor or isinstance(value, nn.Parameter) or hasattr(value, "device_mesh")
    return value if is_known else value.detach().as_subclass(Tensor)


def _refused(value: Any, keys: Keys, problems: list[str], what: str = "") -> Any:
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    where = dotted(keys if len(keys) < MAX_DEPTH else (*keys[:3], "...", keys[-1]))
    problems.append(f"{where} is {what or f'of type {name}'}")
    return value


def _is_storable(value: Any) -> bool:
    """Whether a value loads as what it was."""
    with contextlib.suppress(Exception):  # any error: pickle runs the value's own code
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        return type(torch.load(file, weights_only=True)) is type(value)
    return False


def _listed(problems: list[str]) -> str:
    return "\n  ".join(at_most(MAX_NAMED, problems))
