"""train.py as a process of its own, with two small data sets, that can kill itself where a test says so.

KILL_AT=N: SIGKILL just before the N-th time that a file in the run folder is opened, renamed, linked, cut or removed.
PAUSE_AT=STEP: at this optimizer step make the file RUNS/paused, and wait as long as it is there.
LEAVE_OUT=PART: forget this part of each checkpoint that is loaded, as a careless project would.
"""

import os
import sys

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()

import runpy
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from base.base_data_loader import BaseDataLoader
from base.base_trainer import BaseTrainer
from base.data import SampleRandom, Source, TensorSource
from data_loader.cifar10 import random_crop, random_flip
from tests.helpers import ROOT
from utils.registry import DATA_LOADERS

FILE_EVENTS = {"open", "os.rename", "os.link", "os.truncate", "os.remove", "os.mkdir", "os.listdir"}


def images(count: int) -> tuple[Tensor, Tensor]:
    """Noise, uint8 of shape (N, 3, 32, 32), and labels that cannot be learned from it: early stopping comes soon."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, 10, (count,), generator=generator)


@DATA_LOADERS.register
class SmallTensors(BaseDataLoader):
    """Images in memory, cropped and flipped a batch at a time."""

    def training_data(self, *, augment: bool) -> Source | Dataset[Any]:
        return TensorSource(*images(120), augment=_crop_and_flip if augment else None, transform=_scale)

    def test_data(self) -> Source | Dataset[Any]:
        return TensorSource(*images(20), transform=_scale)


@DATA_LOADERS.register
class SmallSamples(BaseDataLoader):
    """The same images one at a time, with torchvision's transforms."""

    def training_data(self, *, augment: bool) -> Source | Dataset[Any]:
        return _Transformed(120, augment=augment)

    def test_data(self) -> Source | Dataset[Any]:
        return _Transformed(20, augment=False)


class _Transformed(Dataset[Any]):
    def __init__(self, count: int, *, augment: bool) -> None:
        from torchvision.transforms import v2

        self.images, self.labels = images(count)
        random = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ColorJitter(0.2, 0.2)]
        self.transform = v2.Compose([*(random if augment else []), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images[index]), self.labels[index]


def _crop_and_flip(batch: Tensor, random: SampleRandom) -> Tensor:
    return random_flip(random_crop(batch, 4, random), random)


def _scale(batch: Tensor) -> Tensor:
    return batch / 255


def kill_at(count: int, folder: str) -> None:
    """SIGKILL before the count-th event that touches a file below this folder."""
    seen, main = 0, os.getpid()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in FILE_EVENTS and os.getpid() == main and any(str(item).startswith(folder) for item in arguments[:2]):
            seen += 1
            if seen == count:
                os.kill(main, signal.SIGKILL)

    sys.addaudithook(watch)


def pause_at(step: int, folder: str) -> None:
    """Wait in an optimizer step for as long as a file is there."""
    original = BaseTrainer.take_step

    def take_step(self: BaseTrainer, group: Any) -> Tensor | float:
        marker = Path(folder) / "paused"
        if self.progress.steps + 1 == step:
            marker.touch()
            while marker.exists():
                time.sleep(0.01)
        return original(self, group)

    BaseTrainer.take_step = take_step  # type: ignore[method-assign]


def leave_out(part: str) -> None:
    """From now on this part of a checkpoint is not loaded: it stays as it is at the start of a run."""
    original = BaseTrainer.load_state_dict

    def load(self: BaseTrainer, state: dict[str, Any], source: Path) -> None:
        original(self, {**state, part: self.state_dict()[part]}, source)

    BaseTrainer.load_state_dict = load  # type: ignore[method-assign]


if __name__ == "__main__":
    if "LEAVE_OUT" in os.environ:
        leave_out(os.environ["LEAVE_OUT"])
    if "PAUSE_AT" in os.environ:
        pause_at(int(os.environ["PAUSE_AT"]), os.environ["RUNS"])
    if "KILL_AT" in os.environ:
        kill_at(int(os.environ["KILL_AT"]), os.environ["RUNS"])
    sys.argv[0] = str(ROOT / "train.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
