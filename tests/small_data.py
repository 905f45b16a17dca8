"""The same few images as tensors in memory, as a map-style data set, both with random transforms, and as files."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from base.base_data_loader import BaseDataLoader
from base.data.images.image_loader import random_crop, random_flip
from base.data.sample_random import SampleRandom
from base.data.sources import Source, TensorSource


def images(count: int) -> tuple[Tensor, Tensor]:
    """Noise, uint8 of shape (N, 3, 32, 32), and labels that cannot be learned from it: early stopping comes soon."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, 10, (count,), generator=generator)


class SmallTensors(BaseDataLoader):
    """Images in memory, cropped and flipped a batch at a time."""

    def training_data(self, *, augment: bool) -> Source | Dataset[Any]:
        return TensorSource(*images(120), augment=_crop_and_flip if augment else None, transform=_scale)

    def test_data(self) -> Source | Dataset[Any]:
        return TensorSource(*images(20), transform=_scale)


class SmallSamples(BaseDataLoader):
    """The same images one at a time, with torchvision's transforms."""

    def training_data(self, *, augment: bool) -> Source | Dataset[Any]:
        return _Transformed(120, augment=augment)

    def test_data(self) -> Source | Dataset[Any]:
        return _Transformed(20, augment=False)


class DrawingSamples(BaseDataLoader):
    """The same images, with noise from global generators."""

    draws: tuple[str, ...] = ("python", "numpy", "torch")
    """The generators that a sample draws from, one after the other."""
    every = 1
    """Samples among which one draws."""

    def training_data(self, *, augment: bool) -> Source | Dataset[Any]:
        return _Noisy(120, self.draws if augment else (), self.every)

    def test_data(self) -> Source | Dataset[Any]:
        return _Noisy(20, (), self.every)


class FromPython(DrawingSamples):
    draws = ("python",)


class FromNumpy(DrawingSamples):
    draws = ("numpy",)


class FromTorch(DrawingSamples):
    draws = ("torch",)


class FromNone(DrawingSamples):
    draws = ()


class NowAndThen(DrawingSamples):
    every = 17


DRAWING = (DrawingSamples, FromPython, FromNumpy, FromTorch, FromNone, NowAndThen)


class _Noisy(Dataset[Any]):
    DRAWS: Mapping[str, Callable[[], float]] = {
        "python": lambda: random.gauss(0, 1),
        "numpy": lambda: np.random.randn(),
        "torch": lambda: float(torch.randn(())),
    }

    def __init__(self, count: int, draws: tuple[str, ...], every: int) -> None:
        self.images, self.labels = images(count)
        self.draws = draws
        self.every = every

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        drawing = index % self.every == self.every - 1
        # one generator for each sample that draws now and then, or else all of them
        draws = self.draws if self.every == 1 else self.draws[index % 3 :][:1]
        noise = sum(self.DRAWS[name]() for name in draws) if drawing else 0.0
        return self.images[index].float() / 255 + noise, self.labels[index]


class _Transformed(Dataset[Any]):
    def __init__(self, count: int, *, augment: bool) -> None:
        from torchvision.transforms import v2

        self.images, self.labels = images(count)
        changes = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ColorJitter(0.2, 0.2)]
        self.transform = v2.Compose([*(changes if augment else []), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images[index]), self.labels[index]


def write_images(folder: Path, counts: Mapping[str, int]) -> None:
    """So many images of noise in each folder below this one, none of a size or shape of another."""
    random = np.random.default_rng(0)
    for below, count in counts.items():
        (folder / below).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = random.integers(0, 256, (36 + number, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / below / f"{number}.png")


def _crop_and_flip(batch: Tensor, random: SampleRandom) -> Tensor:
    images = batch.permute(0, 2, 3, 1).contiguous()  # (B, C, H, W) -> (B, H, W, C)
    return random_flip(random_crop(images, 4, random), random).permute(0, 3, 1, 2)


def _scale(batch: Tensor) -> Tensor:
    return batch / 255
