"""Nests of tensors of any kind, as batches are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from utils.tree import (
    by_keys,
    copied,
    describe_batch,
    digest,
    has_strides,
    map_tensors,
    map_with_keys,
    same,
    stored_values,
    tensors,
    to_device,
)


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


class Pairs(list[Tensor]):
    """Takes a sequence, which it indexes."""

    def __init__(self, items: Sequence[Tensor]) -> None:
        super().__init__([items[0], items[1]])


X, EDGES = torch.ones(3, 2), torch.zeros(2, 5, dtype=torch.int64)
NESTS: list[Any] = [
    Graph(X, EDGES), Frozen(X, EDGES), Pair(X, EDGES), [X, EDGES], (X, EDGES), {"x": X, "edges": EDGES},
    [Frozen(X, EDGES)], Pairs([X, EDGES]),
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


class Comparing(type):
    """Its classes cannot be hashed."""

    def __eq__(cls, other: object) -> bool:
        return cls is other


class Compared(metaclass=Comparing):
    pass


def test_anything_else_is_a_leaf() -> None:
    for leaf in (None, "text", 1.5, object(), Graph, Compared()):
        assert map_tensors(lambda tensor: tensor * 2, leaf) is leaf
        assert list(tensors(leaf)) == []


def test_a_copy_shares_nothing_that_can_change() -> None:
    nest = {"seen": {1}, "bytes": bytearray(b"1")}
    copy = copied(nest)
    nest["seen"].add(2)  # type: ignore[attr-defined]
    nest["bytes"] += b"2"  # type: ignore[operator]
    assert copy == {"seen": {1}, "bytes": b"1"}


SPARSE = torch.eye(3).to_sparse()
NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": X}, {"a": X.clone()}, True),
        ({"a": X}, {"b": X}, False),
        ({"a": X}, [X], False),
        ([X], {0: X}, False),
        ([X], [X, X], False),
        ([X], X, False),
        ((X, None), [X, None], True),
        (Graph(X, EDGES), Frozen(X, EDGES), False),
        ("a", "a", True),
        (1, 2, False),
        (1, 1.0, False),
        (1, X, False),
        (X, 1, False),
        (X, -X, False),
        (X, X.double(), False),
        (X, X[:1], False),
        (SPARSE, SPARSE.clone(), True),
        (SPARSE, 2 * SPARSE, False),
        (SPARSE, SPARSE.to_dense(), False),
        (NESTED, NESTED.clone(), True),
        (NESTED, 2 * NESTED, False),
        (NESTED, X, False),
        (X, NESTED, False),
    ],
)
def test_what_is_the_same(one: Any, other: Any, expected: bool) -> None:
    assert same(one, other) is expected


def test_stored_values() -> None:
    assert [has_strides(each) for each in (X, SPARSE, NESTED)] == [True, False, False]
    twice = torch.sparse_coo_tensor(torch.tensor([[0, 0]]), torch.tensor([1.0, 2.0]), (3,), check_invariants=True)
    assert stored_values(X) is X
    assert stored_values(twice).tolist() == [3.0]
    assert stored_values(NESTED).tolist() == [1.0] * 5


def test_a_digest_is_of_the_values_alone() -> None:
    values = torch.arange(6.0).view(2, 3)
    assert digest(values.t().contiguous()) == digest(values.t()) != digest(values)
    assert digest(values.clone().requires_grad_()) == digest(values)


def test_a_batch_of_many_tensors_is_described_by_the_first() -> None:
    shape = "(3, 2) float32"
    assert describe_batch([X] * 9) == ", ".join([shape] * 9)
    assert describe_batch([X] * 10) == ", ".join([*[shape] * 8, "and 2 more tensors"])
    assert describe_batch({"a": [X], 1: X}) == f"a: {shape}, {shape}"
    assert describe_batch([]) == "list"
