"""Batches are torch's own, and small tensors come from worker processes by value."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from base.data.batches import Batches
from base.data.collate import SMALL, collate_samples
from base.data.sample_source import SampleSource
from tests.helpers import same


class Named(NamedTuple):
    row: Tensor
    label: int


SAMPLES: dict[str, Callable[[int], Any]] = {
    "tensors": lambda index: (torch.full((3, 2), float(index)), torch.tensor(index)),
    "tensor and number": lambda index: (torch.full((3,), float(index)), index),
    "numbers": lambda index: (index, index / 2, index % 2 == 0, str(index)),
    "arrays": lambda index: (np.full(3, index), np.float32(index)),
    "nested": lambda index: (torch.full((3,), index), {"box": torch.ones(4) * index, "name": str(index)}),
    "dict": lambda index: {"row": torch.full((3,), index), "label": index},
    "named tuple": lambda index: Named(torch.full((3,), index), index),
    "dict of tensors": lambda index: {"row": torch.full((3,), index), "label": torch.tensor(index)},
    "list": lambda index: [torch.full((3,), index), index],
    "tensor": lambda index: torch.full((3,), index),
    "empty tensor": lambda index: (torch.empty(0, 3), torch.tensor(index)),
    "bfloat16": lambda index: (torch.full((3,), index, dtype=torch.bfloat16), index),
    "complex": lambda index: (torch.full((3,), index * 1j).conj(), index),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_batch_is_what_torch_makes_of_the_samples(kind: str) -> None:
    samples = [SAMPLES[kind](index) for index in range(5)]
    made, expected = collate_samples(samples), default_collate(samples)
    assert type(made) is type(expected)
    assert same(made, expected)


@pytest.mark.parametrize(
    "samples",
    [
        [(torch.ones(2), 0), (torch.ones(3), 1)],
        [(torch.ones(2), 0), (torch.ones(2),)],
        [(torch.ones(2), 0), (1, 1)],
        [(torch.ones(2), None), (torch.ones(2), None)],
        [(torch.ones(2).to_sparse(), 0), (torch.ones(2).to_sparse(), 1)],
        [{"row": torch.ones(2)}, {"raw": torch.ones(2)}],
        [{"row": torch.ones(2)}, {"row": torch.ones(3)}],
        [[torch.ones(2)], [torch.ones(3)]],
    ],
    ids=["shapes", "lengths", "kinds", "nothing", "sparse", "keys", "shapes in dicts", "shapes in lists"],
)
def test_samples_that_do_not_fit_raise_what_torch_raises(samples: list[Any]) -> None:
    with pytest.raises(Exception) as expected:  # noqa: PT011  (whatever torch raises)
        default_collate(samples)
    with pytest.raises(expected.type) as raised:
        collate_samples(samples)
    assert str(raised.value) == str(expected.value)


class Samples(Dataset[Any]):
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return SAMPLES[self.kind](index)


@pytest.mark.parametrize("kind", SAMPLES)
def test_workers_load_the_same_batches(kind: str) -> None:
    here, there = (
        [loaded.data for loaded in Batches(SampleSource(Samples(kind)), batch_size=5, num_workers=count).one_pass()]
        for count in (0, 1)
    )
    assert [type(batch) for batch in here] == [type(batch) for batch in there]
    assert all(same(*pair) for pair in zip(here, there, strict=True))


SENT: dict[str, tuple[Callable[[], Tensor], bool]] = {
    "small": (lambda: torch.arange(10.0), False),
    "largest": (lambda: torch.arange(SMALL // 4, dtype=torch.int32), False),
    "large": (lambda: torch.arange(SMALL // 4 + 1, dtype=torch.int32), True),
    "view": (lambda: torch.arange(SMALL)[5:15], False),  # not its whole storage
    "bfloat16": (lambda: torch.arange(10.0).bfloat16(), True),  # NumPy has no such dtype
    "channels last": (
        lambda: torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
        True,
    ),  # NumPy's would not be
    "requires grad": (lambda: torch.ones(3, requires_grad=True), True),
}
"""Tensors, and whether a worker sends them through shared memory."""


class OneTensor(Dataset[Tensor]):
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Tensor:
        return SENT[self.kind][0]()


def first(samples: list[Any]) -> Any:
    return samples[0]


@pytest.mark.parametrize("kind", SENT)
def test_small_tensors_come_from_a_worker_by_value(kind: str) -> None:
    [loaded] = Batches(SampleSource(OneTensor(kind), first), batch_size=1, num_workers=1).one_pass()
    found, (make, shared) = loaded.data, SENT[kind]
    assert found.is_shared() == shared
    assert found.stride() == make().stride()
    assert same(found, make())
    with torch.no_grad():
        found.zero_()  # may be written to


def test_a_worker_stacks_a_large_batch_in_shared_memory() -> None:
    """So that it is not copied once more."""
    source = SampleSource([(torch.ones(SMALL // 8), 0)] * 4)  # type: ignore[arg-type]
    [loaded] = Batches(source, batch_size=4, num_workers=1).one_pass()
    inputs, targets = loaded.data
    assert inputs.is_shared()
    assert not targets.is_shared()
