"""Data sets as users write them, which jobs.py loads by torch's DataLoader."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

CLASSES = 10


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Tensors of 20 numbers."""

    def __init__(self, count: int = 20_000) -> None:
        self.rows, self.targets = torch.randn(count, 20), torch.randint(0, CLASSES, (count,))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index], self.targets[index]


class Windows(Rows):
    """Twenty consecutive values of one column of a table, as of a time series: views, not contiguous."""

    def __init__(self, count: int = 20_000) -> None:
        super().__init__(count)
        self.table = torch.randn(count + 20, 4)

    def __getitem__(self, index: int) -> Any:
        return self.table[index : index + 20, 1], self.targets[index]


class RowStream(IterableDataset[tuple[Tensor, Tensor]]):
    """Tensors of 20 numbers, one after the other."""

    def __init__(self, count: int = 20_000) -> None:
        self.rows = Rows(count)

    def __iter__(self) -> Iterator[Any]:
        return map(self.rows.__getitem__, range(len(self.rows)))


class Photographs(Dataset[tuple[Tensor, int]]):
    """PIL images of 32x32: crop, flip, to tensor, normalise."""

    def __init__(self, count: int = 1_500) -> None:
        from PIL import Image
        from torchvision.transforms import v2

        pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.images = [Image.fromarray(image) for image in pixels]
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.5,) * 3)]
        self.transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), *to_tensor])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images[index]), index % CLASSES
