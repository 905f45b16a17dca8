"""Nests of tensors of any kind, as batches are."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from utils.tree import by_keys, copied, describe_batch, map_tensors, map_with_keys, same, tensors, to_device


@dataclass
class Graph:
    x: Tensor
    edges: Tensor
    name: str = "molecule"
    unset: Tensor = field(init=False)


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    edges: Tensor


class Pair(NamedTuple):
    x: Tensor
    edges: Tensor


X, EDGES = torch.ones(3, 2), torch.zeros(2, 5, dtype=torch.int64)
NESTS: list[Any] = [
    Graph(X, EDGES), Frozen(X, EDGES), Pair(X, EDGES), [X, EDGES], (X, EDGES), {"x": X, "edges": EDGES},
    [Frozen(X, EDGES)],
]  # fmt: skip


@pytest.mark.parametrize("nest", NESTS, ids=lambda nest: type(nest).__name__)
def test_every_tensor_of_a_nest_is_found_and_mapped(nest: Any) -> None:
    assert [each.shape for each in tensors(nest)] == [X.shape, EDGES.shape]
    doubled = map_tensors(lambda tensor: tensor * 2, nest)
    assert type(doubled) is type(nest)
    assert next(tensors(doubled)).equal(X * 2)
    assert next(tensors(nest)).equal(X), "the nest itself stays as it is"
    moved = to_device(nest, torch.device("meta"))
    assert all(tensor.is_meta for tensor in tensors(moved))


def test_fields_are_keys() -> None:
    assert describe_batch(Graph(X, EDGES)) == "x: (3, 2) float32, edges: (2, 5) int64"
    keys: list[Any] = []
    map_with_keys(lambda path, tensor: keys.append(path), [Graph(X, EDGES)])
    assert keys == [(0, "x"), (0, "edges")]
    keys.clear()
    map_with_keys(lambda path, tensor: keys.append(path), (Pair(X, EDGES), X))
    assert keys == [*by_keys((Pair(X, EDGES), X))] == [(0, "x"), (0, "edges"), (1,)]


def test_dataclasses_are_compared_by_their_fields() -> None:
    assert same(Frozen(X, EDGES), Frozen(X.clone(), EDGES.clone()))
    assert not same(Frozen(X, EDGES), Frozen(X + 1, EDGES))


def test_nan_equals_only_itself() -> None:
    nan = float("nan")
    assert same([nan], [nan])
    assert not same([nan], [1.0])
    assert not same([1.0], [nan])


def test_anything_else_is_a_leaf() -> None:
    for leaf in (None, "text", 1.5, object(), Graph):
        assert map_tensors(lambda tensor: tensor * 2, leaf) is leaf
        assert list(tensors(leaf)) == []


def test_a_copy_shares_nothing_that_can_change() -> None:
    nest = {"seen": {1}, "bytes": bytearray(b"1")}
    copy = copied(nest)
    nest["seen"].add(2)  # type: ignore[attr-defined]
    nest["bytes"] += b"2"  # type: ignore[operator]
    assert copy == {"seen": {1}, "bytes": b"1"}
