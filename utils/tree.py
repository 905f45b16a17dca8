"""Nested structures of tensors: batches, outputs of a model, states of a checkpoint.

A nest is a tensor, or a tuple, named tuple, list, dict or dataclass of nests. Anything else is a leaf, which stays as
it is.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

Keys = tuple[Any, ...]
"""Path to a tensor in a nest: dict keys, names of fields, and positions."""
LEAVES = (str, int, float, bool, bytes, type(None))
"""Types without items: those of most values in a checkpoint, in which looking for fields takes time."""


def map_tensors(function: Callable[[Tensor], Any], nest: Any) -> Any:
    """The same nest with the function applied to every tensor."""
    if isinstance(nest, Tensor):  # the most frequent nest, at a quarter of the time
        return function(nest)
    return map_with_keys(lambda keys, tensor: function(tensor), nest)


def map_with_keys(function: Callable[[Keys, Tensor], Any], nest: Any, keys: Keys = ()) -> Any:
    """Like ``map_tensors``, for a function that also takes the path to the tensor."""
    if isinstance(nest, Tensor):
        return function(keys, nest)
    return _map_items(lambda key, item: map_with_keys(function, item, (*keys, key)), nest)


def copied(nest: Any) -> Any:
    """A copy of a nest, and of its tensors, of any layout, sets and bytearrays; other leaves are shared."""
    return map_tensors(lambda tensor: tensor.detach().clone(), nest)


def to_device(nest: Any, device: torch.device) -> Any:
    """The same nest on a device. The host does not wait for a copy to an accelerator from pinned memory.

    An object with a method ``to``, such as a graph or a PackedSequence, is moved by it.
    """
    if isinstance(nest, Tensor):
        # to the CPU, it could be read too early; MPS reads memory that was freed meanwhile (pytorch issue 189690)
        return nest.to(device, non_blocking=device.type not in ("cpu", "mps"))
    if callable(getattr(type(nest), "to", None)):
        return nest.to(device)
    return _map_items(lambda _, item: to_device(item, device), nest)


def _map_items(function: Callable[[Any, Any], Any], nest: Any) -> Any:
    """A nest of the same type, with the function applied to the key or position of each item and the item itself."""
    if type(nest) in LEAVES:
        return nest
    items = {key: function(key, item) for key, item in _items(nest)}
    if isinstance(nest, (list, tuple)):
        # a named tuple takes its fields separately; every other sequence takes an iterable
        return type(nest)(*items.values()) if hasattr(nest, "_fields") else type(nest)([*items.values()])
    if not items and not isinstance(nest, (dict, set, bytearray)):  # which a part may change after a save
        return nest
    mapped = copy.copy(nest)  # not type(nest)(...): Counter and defaultdict are not created from pairs
    for key, item in items.items():
        if isinstance(nest, dict):
            mapped[key] = item
        else:
            object.__setattr__(mapped, key, item)  # a frozen one refuses setattr
    return mapped


def fields(nest: Any) -> dict[str, Any]:
    """The fields of a dataclass that is not also a dict, list or tuple; empty for anything else."""
    if not dataclasses.is_dataclass(nest) or isinstance(nest, (type, dict, list, tuple)):
        return {}
    return {field.name: getattr(nest, field.name) for field in dataclasses.fields(nest) if hasattr(nest, field.name)}


def by_keys(nest: Any) -> dict[Keys, Tensor]:
    """Every tensor in a nest by its path, in order."""
    return dict(_with_keys(nest, ()))


def _with_keys(nest: Any, keys: Keys) -> Iterator[tuple[Keys, Tensor]]:
    if isinstance(nest, Tensor):
        yield keys, nest
        return
    for key, item in _items(nest):
        yield from _with_keys(item, (*keys, key))


def _items(nest: Any) -> Iterable[tuple[Any, Any]]:
    """The items of a nest by key, field or position; empty for a leaf."""
    if type(nest) in LEAVES:
        return ()
    if isinstance(nest, (list, tuple)):
        return zip(getattr(nest, "_fields", range(len(nest))), nest, strict=True)
    return (nest if isinstance(nest, dict) else fields(nest)).items()


def tensors(nest: Any) -> Iterator[Tensor]:
    """Every tensor in a nest, in order."""
    return (tensor for _, tensor in _with_keys(nest, ()))


def has_strides(tensor: Tensor) -> bool:
    """Whether the values of a tensor are found by its strides: it is neither sparse nor nested."""
    return tensor.layout is torch.strided and not tensor.is_nested


def is_dense(tensor: Tensor) -> bool:
    """Whether the values are one block of memory without gaps or overlaps, in any order of the dimensions."""
    return has_strides(tensor) and torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def stored_values(tensor: Tensor) -> Tensor:
    """The values of a tensor; of a sparse or nested one, only those that it stores."""
    if tensor.is_sparse:
        return tensor.coalesce().values()
    return tensor if tensor.layout is torch.strided else tensor.values()


def digest(tensor: Tensor) -> str:
    """A hash of a tensor's values in memory, the same for equal bits. The tensor must have strides."""
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return blake2b(values.numpy().tobytes(), digest_size=16).hexdigest()


def size_of(nest: Any) -> int:
    """Bytes of all tensors in a nest; of a sparse one, as if it were dense."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(nest))


def same(one: Any, other: Any, *, alike: Callable[[Any, Any], bool] | None = None) -> bool:
    """Whether two nests have the same structure and leaves. alike: compares two leaves; None: bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key], alike=alike) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(*items, alike=alike) for items in zip(one, other, strict=True))
    if type(one) is type(other) and (values := fields(one)):
        return same(values, fields(other), alike=alike)
    return (alike or same_leaf)(one, other)


def same_leaf(one: Any, other: Any) -> bool:
    """Whether two tensors or other leaves are equal bit for bit; NaN equals itself."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other or (one != one and other != other))
    if one.is_nested and other.is_nested:
        return same([*one.unbind()], [*other.unbind()])
    if (one.shape, one.dtype, one.device, one.layout) != (other.shape, other.dtype, other.device, other.layout):
        return False
    if one.layout is not torch.strided:
        one, other = one.to_dense(), other.to_dense()
    return bool(((one == other) | ((one != one) & (other != other))).all())


def describe_batch(batch: Any) -> str:
    """Shapes and dtypes of the tensors in a batch, for a message: "(64, 3, 32, 32) float32, (64,) int64".

    Those of a dict or named tuple have its keys before them: "image: (64, 3, 32, 32) float32, label: (64,) int64".
    """
    parts = []
    for keys, tensor in by_keys(batch).items():
        name = ".".join(key for key in keys if isinstance(key, str))
        shape_and_dtype = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        parts.append(f"{name}: {shape_and_dtype}" if name else shape_and_dtype)
    more = [f"and {len(parts) - 8} more tensors"] if len(parts) > 9 else []
    return ", ".join([*(parts[:8] if more else parts), *more]) or type(batch).__name__
