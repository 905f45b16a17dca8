"""Batches are torch's own, and small tensors come from worker processes by value."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from base.data.batches import Batches
from base.data.collate import SMALL, collate_samples
from base.data.sample_source import SampleSource
from tests.helpers import same
from utils.errors import DataError
from utils.tree import tensors


class Named(NamedTuple):
    row: Tensor
    label: int


SAMPLES: dict[str, Callable[[int], Any]] = {
    "tensors": lambda index: (torch.full((3, 2), float(index)), torch.tensor(index)),
    "tensor and number": lambda index: (torch.full((3,), float(index)), index),
    "numbers": lambda index: (index, index / 2, index % 2 == 0, str(index)),
    "arrays": lambda index: (np.full(3, index), np.float32(index)),
    "arrays without dimensions": lambda index: (np.array(index), np.array(index / 2, np.float16)),
    "arrays that begin elsewhere": lambda index: (np.arange(60.0).reshape(3, 4, 5)[:, ::2].transpose(2, 0, 1), index),
    "images with the channels last": lambda index: (np.arange(24).reshape(2, 4, 3).transpose(2, 0, 1) + index, index),
    "videos": lambda index: (np.arange(48.0).reshape(2, 2, 4, 3).transpose(3, 0, 1, 2) + index, index),
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


MIXED: dict[str, Callable[[int], Any]] = {
    "arrays of two dtypes": lambda index: (np.ones(2, [np.float32, np.int64][index % 2]), [1, 1.5][index % 2]),
    "numbers of two kinds": lambda index: ([1, True][index % 2], [1.5, 1][index % 2], [True, 2][index % 2]),
}


@pytest.mark.parametrize("kind", SAMPLES | MIXED)
def test_a_batch_is_what_torch_makes_of_the_samples(kind: str) -> None:
    samples = [(SAMPLES | MIXED)[kind](index) for index in range(5)]
    made, expected = collate_samples(samples), default_collate(samples)
    assert type(made) is type(expected)
    assert same(made, expected)
    assert [each.stride() for each in tensors(made)] == [each.stride() for each in tensors(expected)]


@pytest.mark.parametrize("nest", [lambda row: row, lambda row: (row, 1), lambda row: ({"x": [row]}, 1)])
def test_rows_of_a_memory_mapped_file_give_no_warning(tmp_path: Path, nest: Callable[[Any], Any]) -> None:
    np.save(tmp_path / "rows.npy", np.arange(12.0).reshape(4, 3))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    torch.set_warn_always(True)  # otherwise once in a process
    try:
        made = collate_samples([nest(rows[index]) for index in range(4)])
    finally:
        torch.set_warn_always(False)
    assert same(made, default_collate([nest(np.array(row)) for row in rows]))


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
        [(np.ones(2), 0), (np.ones(3), 1)],
        [(np.array(["text"]), 0), (np.array(["text"]), 1)],
        [(0, 0), (2**64, 1)],
        [(0, 0), ("text", 1)],
    ],
    ids=[
        *("shapes", "lengths", "kinds", "nothing", "sparse", "keys", "shapes in dicts", "shapes in lists"),
        *("shapes of arrays", "texts in an array", "an integer of more than 64 bits", "number and text"),
    ],
)
def test_samples_that_do_not_fit_raise_what_torch_raises(samples: list[Any]) -> None:
    with pytest.raises(Exception) as expected:  # noqa: PT011  (whatever torch raises)
        default_collate(samples)
    with pytest.raises(expected.type) as raised:
        collate_samples(samples)
    assert str(raised.value) == str(expected.value)


def test_flipped_images_become_a_batch_of_any_size_with_and_without_workers() -> None:
    """torch refuses arrays with negative strides, which NumPy reads: no batch may fail in a worker process alone."""
    for size in (2, 300):
        image = np.arange(size * size * 3.0).reshape(size, size, 3)
        samples: Any = [(image, 0), (image[:, ::-1], 1)]
        for count in (0, 1):
            [loaded] = Batches(SampleSource(samples), batch_size=2, num_workers=count).one_pass()
            assert loaded.data[0][1].equal(torch.from_numpy(image[:, ::-1].copy()))


@pytest.mark.parametrize("kind", [torch.conj, lambda row: row.conj().imag])
def test_conjugated_tensors_become_a_batch_of_any_size_with_workers(kind: Callable[[Tensor], Tensor]) -> None:
    for size in (2, SMALL):
        samples: Any = [(kind(torch.full((size,), index * 1j)), index) for index in range(2)]
        [loaded] = Batches(SampleSource(samples), batch_size=2, num_workers=1).one_pass()
        assert same(loaded.data, default_collate(samples))


@pytest.mark.parametrize("kind", SAMPLES)
def test_workers_load_the_same_batches(kind: str) -> None:
    samples: Any = [SAMPLES[kind](index) for index in range(12)]
    here, there = (
        [loaded.data for loaded in Batches(SampleSource(samples), batch_size=5, num_workers=count).one_pass()]
        for count in (0, 1)
    )
    assert [type(batch) for batch in here] == [type(batch) for batch in there]
    assert all(same(*pair) for pair in zip(here, there, strict=True))


SENT: dict[str, tuple[Tensor, bool]] = {
    "small": (torch.arange(10.0), False),
    "largest": (torch.arange(SMALL // 4, dtype=torch.int32), False),
    "large": (torch.arange(SMALL // 4 + 1, dtype=torch.int32), True),
    "view": (torch.arange(SMALL)[5:15], False),  # not its whole storage
    "bfloat16": (torch.arange(10.0).bfloat16(), True),  # NumPy has no such dtype
    # would lose its strides
    "channels last": (torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last), True),
    "requires grad": (torch.ones(3, requires_grad=True), True),
    "conjugated": (torch.full((3,), 1j).conj(), False),
    "negated": (torch.full((3,), 1j).conj().imag, False),
    "conjugated, large": (torch.full((SMALL,), 1j).conj(), True),
}
"""Tensors, and whether a worker sends them through shared memory."""


def first(samples: list[Any]) -> Any:
    return samples[0]


@pytest.mark.usefixtures("without_accelerator")  # which would copy them to pinned memory
@pytest.mark.parametrize("kind", SENT)
def test_small_tensors_come_from_a_worker_by_value(kind: str) -> None:
    sent, shared = SENT[kind]
    samples: Any = [sent]
    [loaded] = Batches(SampleSource(samples, first), batch_size=1, num_workers=1).one_pass()
    found = loaded.data
    assert found.is_shared() == shared
    assert found.stride() == sent.resolve_neg().stride()
    assert same(found, sent)
    with torch.no_grad():
        found.zero_()  # may be written to


@pytest.mark.usefixtures("without_accelerator")
def test_a_worker_stacks_a_large_batch_in_shared_memory() -> None:
    """So that it is not copied once more."""
    samples: Any = [(torch.ones(SMALL // 8), 0)] * 4
    [loaded] = Batches(SampleSource(samples), batch_size=4, num_workers=1).one_pass()
    inputs, targets = loaded.data
    assert inputs.is_shared()
    assert not targets.is_shared()


def stacked(samples: list[Any]) -> Any:
    """As in a project's own collate."""
    inputs, targets = zip(*samples, strict=True)
    return [torch.stack([*map(torch.as_tensor, inputs)]), torch.tensor(targets)]


@pytest.fixture
def no_shared_memory() -> Iterator[None]:
    """None larger than a tensor that is sent by value, as in a container where others have filled /dev/shm."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("no_shared_memory")
@pytest.mark.parametrize("collate", [collate_samples, stacked])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, torch.Tensor.bfloat16, torch.Tensor.t])
def test_workers_send_large_batches_without_shared_memory(collate: Any, kind: Callable[[Any], Any]) -> None:
    samples: Any = [(kind(torch.arange(SMALL // 2.0).view(2, -1) + index), index) for index in range(4)]
    batches = Batches(SampleSource(samples, collate), batch_size=2, num_workers=1)
    for loaded, start in zip(batches.one_pass(), (0, 2), strict=True):
        assert same(loaded.data, default_collate(samples[start : start + 2]))


@pytest.mark.usefixtures("no_shared_memory")
@pytest.mark.parametrize("kind", SENT)
def test_tensors_come_from_a_worker_without_shared_memory(kind: str) -> None:
    sent, _ = SENT[kind]
    samples: Any = [sent]
    [loaded] = Batches(SampleSource(samples, first), batch_size=1, num_workers=1).one_pass()
    assert loaded.data.stride() == sent.resolve_neg().stride()
    assert same(loaded.data, sent)


@pytest.mark.usefixtures("no_shared_memory")
def test_an_own_collate_by_torch_says_that_there_is_no_shared_memory() -> None:
    samples: Any = [torch.ones(SMALL)] * 2
    with pytest.raises(DataError, match=r"list: no shared memory for a batch \(.*\); .*--shm-size"):
        list(Batches(SampleSource(samples, default_collate), batch_size=2, num_workers=1).one_pass())


def functions(samples: list[Any]) -> Any:
    """A batch that only this process can use."""
    return [lambda: samples]


def computed(samples: list[Any]) -> Any:
    """As by a network that extracts features."""
    return torch.ones(2, requires_grad=True) * torch.tensor(samples)


def objects(samples: list[Any]) -> Any:
    """An array is not a tensor: its objects are sent."""
    return np.array([*functions(samples), None])


@pytest.mark.parametrize(
    ("collate", "says"), [(functions, "local object"), (objects, "local object"), (computed, "torch.no_grad()")]
)
@pytest.mark.parametrize("first", [1, 3])
def test_a_batch_that_cannot_be_sent_is_an_error_rather_than_a_wait_without_end(
    collate: Any, says: str, first: int
) -> None:
    """first: the first sample in such a batch."""
    samples: Any = [1, 2, 3, 4]
    source = SampleSource(samples, lambda batch: collate(batch) if batch[0] >= first else torch.tensor(batch))
    assert len([*Batches(source, batch_size=2).one_pass()]) == 2
    with pytest.raises(DataError, match=f"a batch cannot be sent from a worker process: .*{re.escape(says)}"):
        list(Batches(source, batch_size=2, num_workers=1).one_pass())
