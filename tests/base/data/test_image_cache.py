"""The cache beside the data is used while it is of these data, whole and unchanged, and rebuilt otherwise."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from base.data.images.cache import Decoded, Images, files_below
from data_loader.cifar10 import CIFAR10Loader
from tests.helpers import same, state
from utils.errors import DataError


@pytest.fixture
def cifar10(own_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small CIFAR10 without a cache. The file "read" appears when torchvision reads it."""
    shutil.copytree(own_cifar10 / "cifar-10-batches-py", tmp_path / "cifar10" / "cifar-10-batches-py")
    original = CIFAR10Loader._read_files

    def read_files(self: CIFAR10Loader, *, train: bool) -> Images:
        (tmp_path / "read").touch()
        return original(self, train=train)

    monkeypatch.setattr(CIFAR10Loader, "_read_files", read_files)
    return tmp_path / "cifar10"


def read(folder: Path, **args: Any) -> tuple[Tensor, Tensor, bool]:
    """Pixels, labels, and whether torchvision had to read the files."""
    mark = folder.parent / "read"
    mark.unlink(missing_ok=True)
    images = CIFAR10Loader(batch_size=10, data_dir=str(folder), download=False, **args).read(train=True)
    pixels = images.pixels if isinstance(images.pixels, Tensor) else images.pixels.rows(slice(0, 100))
    return pixels, images.labels, mark.exists()


def test_the_second_run_reads_the_cache_and_gets_the_same(cifar10: Path) -> None:
    pixels, labels, from_files = read(cifar10)
    assert from_files
    for args in ({}, {"in_memory": False}):
        again, other_labels, from_files = read(cifar10, **args)
        assert not from_files
        assert torch.equal(pixels, again)
        assert torch.equal(labels, other_labels)
    assert sorted(path.name for path in (cifar10 / "cifar-10-cache").iterdir()) == [
        ".train.lock",
        "train.npy",
        "train.npz",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("in_memory", [True, False])
def test_training_ends_with_the_same_bits(fit: Callable[..., Any], cifar10: Path, in_memory: bool) -> None:
    args = {"data_dir": str(cifar10), "batch_size": 16, "crop": 2, "flip": True}
    model = {"type": "LeNet", "args": {"in_channels": 3, "kernel_size": 5}}
    data = {"type": "CIFAR10Loader", "args": args}
    fresh = fit(data_loader=data, model=model)
    kept = fit(data_loader={**data, "args": {**args, "in_memory": in_memory, "num_workers": 2}}, model=model)
    for part in ("model", "optimizer", "metrics", "random"):
        assert same(state(fresh.run_dir)[part], state(kept.run_dir)[part]), part


def rewrite(path: Path, data: bytes | bytearray) -> None:
    """Other bytes under the old time."""
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", ["size", "content", "time", "new file", "renamed"])
def test_changed_files_are_read_again(cifar10: Path, change: str) -> None:
    read(cifar10)
    batch = cifar10 / "cifar-10-batches-py" / "data_batch_3"
    if change == "size":
        batch.write_bytes(batch.read_bytes() + b"x")
    elif change == "content":
        rewrite(batch, batch.read_bytes()[:-1] + b".")
    elif change == "time":
        os.utime(batch)
    elif change == "new file":
        (batch.parent / "more").touch()
    else:
        (batch.parent / "data_batch_1").rename(cifar10 / "other")
        batch.rename(batch.parent / "data_batch_1")
        (cifar10 / "other").rename(batch)
    pixels, _, from_files = read(cifar10)
    assert from_files
    again, _, from_files = read(cifar10)
    assert not from_files
    assert torch.equal(pixels, again)


@pytest.mark.parametrize("file", ["train.npy", "train.npz"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "flipped", "other shape"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_damaged_cache_is_rebuilt(cifar10: Path, file: str, damage: str, in_memory: bool) -> None:
    whole, labels, _ = read(cifar10)
    path = cifar10 / "cifar-10-cache" / file
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "gone":
        path.unlink()
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        rewrite(path, data)
    else:
        with path.open("wb") as opened:
            np.save(opened, np.zeros((100, 16, 16, 3), np.uint8))
    pixels, other_labels, from_files = read(cifar10, in_memory=in_memory)
    assert from_files
    assert torch.equal(whole, pixels)
    assert torch.equal(labels, other_labels)
    assert not read(cifar10)[2]


def test_where_nothing_can_be_written_it_is_done_without(cifar10: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (cifar10 / "cifar-10-cache").write_text("in the way")
    for _ in range(2):
        assert read(cifar10)[2]
    assert capfd.readouterr() == ("", "")
    with pytest.raises(DataError, match=r'"in_memory": false needs .*train\.npy, which cannot be written'):
        read(cifar10, in_memory=False)


def test_a_write_that_fails_leaves_nothing_half_written(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert read(cifar10)[2]
    assert [path.name for path in (cifar10 / "cifar-10-cache").iterdir()] == [".train.lock"]
    assert read(cifar10)[2]
    assert not read(cifar10)[2]


def test_one_process_at_a_time_writes_and_the_others_take_what_it_wrote(
    cifar10: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    loader = CIFAR10Loader(batch_size=10, data_dir=str(cifar10), download=False)
    cache, tried = loader._cache(train=True), []

    def taken_at_first(file: Any) -> bool:
        tried.append(file)
        if len(tried) == 1:  # the other process writes meanwhile
            file.close()
            chunks = (np.ones((1, 32, 32, 3), np.uint8) for _ in range(1))
            cache._write(Decoded((1, 32, 32, 3), np.array([3]), chunks))
        return len(tried) > 1

    monkeypatch.setattr("base.data.images.cache.lock_file", taken_at_first)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    cache.keep(lambda: pytest.fail("it is there"), in_memory=True)
    assert "waiting for another process, which is creating" in capfd.readouterr().err


def test_files_below_a_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / ".git").mkdir()
    for name in ("a/b/x", "a/y", "a/.hidden", "a/.git/z"):
        (tmp_path / name).touch()
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert files_below(tmp_path) == [f"{tmp_path}/{name}" for name in ("broken", "a/y", "a/b/x")]


def test_folders_that_link_to_each_other_are_read_once(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
        (tmp_path / name / "link").symlink_to(tmp_path / other)
    assert files_below(tmp_path / "a") == [f"{tmp_path}/a/x", f"{tmp_path}/a/link/x"]
