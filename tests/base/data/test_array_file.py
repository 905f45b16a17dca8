"""Data that stay on the disk give the batches that data in memory give."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from base.array_file import ArrayFile
from base.data.batches import Batches, BatchRange
from base.data.orders import Shuffled
from base.data.sample_random import SampleRandom
from base.data.sources import TensorSource
from utils.errors import DataError


def saved(folder: Path, array: npt.NDArray[np.generic]) -> Path:
    np.save(folder / "data.npy", array)
    return folder / "data.npy"


def jitter(inputs: Tensor, random: SampleRandom) -> Tensor:
    return inputs + random.uniform()[0].float()[:, None]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(60, dtype=np.uint8).reshape(10, 2, 3),
        np.arange(30, dtype=np.float32).reshape(10, 3),
        np.arange(10, dtype=np.int64),
        np.arange(10) % 2 == 0,
        np.empty((10, 0), dtype=np.float64),
    ],
    ids=["images", "vectors", "labels", "bools", "nothing"],
)
def test_rows_are_those_of_the_array(tmp_path: Path, array: npt.NDArray[np.generic]) -> None:
    file, tensor = ArrayFile.open(saved(tmp_path, array)), torch.from_numpy(array)
    for indices in (torch.tensor([7, 0, 9, 7]), slice(3, 8), slice(8, 12), torch.tensor([], dtype=torch.int64)):
        rows = file.rows(indices)
        assert rows.dtype == tensor.dtype
        assert torch.equal(rows, tensor[indices])
    with pytest.raises(IndexError):
        file.rows(torch.tensor([0, 99]))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_are_those_of_the_data_in_memory(tmp_path: Path, shuffle: bool, workers: int) -> None:
    array, labels = np.random.default_rng(0).random((50, 4), np.float32), torch.arange(50)
    file = ArrayFile.open(saved(tmp_path, array))
    sources = [TensorSource(inputs, labels, augment=jitter) for inputs in (torch.from_numpy(array), file)]
    part = torch.arange(3, 50, 2)
    order = Shuffled(len(part), 1) if shuffle else None
    memory, disk = (
        Batches(source, batch_size=5, indices=part, order=order, seed=1, num_workers=count)
        for source, count in zip(sources, (0, workers), strict=True)
    )
    ranges = list(itertools.islice(memory.ranges(), 12))
    for from_memory, from_disk in zip(memory.load(ranges), disk.load(ranges), strict=True):
        assert torch.equal(from_memory.data[0], from_disk.data[0])
        assert torch.equal(from_memory.data[1], from_disk.data[1])


def test_workers_get_the_name_and_not_the_data(tmp_path: Path) -> None:
    file = ArrayFile.open(saved(tmp_path, np.zeros((1000, 1000), np.uint8)))
    sent = pickle.dumps(file)
    assert len(sent) < 1000
    assert not pickle.loads(sent).rows(torch.tensor([999])).any()


def test_nothing_but_the_rows_is_read(tmp_path: Path) -> None:
    """A terabyte, nearly all of it a hole in the file, which reading any more of would fill the memory."""
    path = tmp_path / "large.npy"
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 1000)}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + 10**12)
        file.seek(start + 123_456_789 * 1000)
        file.write(bytes(range(250)) * 4)
    rows = ArrayFile.open(path).rows(torch.tensor([999_999_999, 123_456_789]))
    assert not rows[0].any()
    assert rows[1].tolist() == [*range(250)] * 4


def test_what_is_not_an_array_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, np.zeros((10, 4), np.uint8))
    whole = path.read_bytes()
    for damaged, reason in ((whole[:-1], "greater than file size"), (b"", "np.save"), (b"x" * 200, "np.save")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=reason):
            ArrayFile.open(path)
    for array in (np.zeros((3, 4), order="F"), np.array(5), np.array([{}]), np.array(["a"]), np.zeros(3, ">f4")):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(DataError, match=r"data\.npy"):
            ArrayFile.open(path)
    with pytest.raises(DataError, match="No such file"):
        ArrayFile.open(tmp_path / "missing.npy")


def test_a_file_that_changes_under_a_run_is_an_error_and_no_other_data(tmp_path: Path) -> None:
    path = saved(tmp_path, np.zeros((10, 4), np.uint8))
    source = TensorSource(ArrayFile.open(path), torch.arange(10))
    sent = pickle.dumps(source)
    path.unlink()
    saved(tmp_path, np.ones((10, 4), np.uint8))
    with pytest.raises(DataError, match="replaced while in use"):
        pickle.loads(sent)
    inputs, _ = next(Batches(source, batch_size=2).load([BatchRange(0, 0, 2)])).data
    assert not inputs.any(), "this process has the old file open"
