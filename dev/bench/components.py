"""The models and data of jobs.py as users register them, for the configs in dev/bench/configs."""

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from base.base_data_loader import BaseDataLoader
from base.base_model import BaseModel
from base.data import SampleRandom, TensorSource
from base.data.images.cache import Images
from base.data.images.image_loader import ImageLoader
from dev.bench import jobs, own_data
from utils.registry import DATA_LOADERS, MODELS


@MODELS.register
def ResNet18() -> Any:  # noqa: N802
    return jobs.resnet18()


@MODELS.register
class GPT(jobs.GPT, BaseModel):
    def forward(self, codes: Tensor) -> Tensor:
        """(B, T) -> (B, V, T), as the loss takes it"""
        return super().forward(codes).transpose(1, 2)


@MODELS.register
class SmallUNet(jobs.SmallUNet, BaseModel):
    pass


@MODELS.register
class SmallNet(jobs.SmallNet, BaseModel):
    pass


def flip(images: Tensor, masks: Tensor, random: SampleRandom) -> tuple[Tensor, Tensor]:
    flipped = random.uniform()[0] < 0.5  # (B,)
    images[flipped], masks[flipped] = images[flipped].flip(-1), masks[flipped].flip(-1)
    return images, masks


class Made(BaseDataLoader):
    """Data that are made here. count: how many samples."""

    def __init__(self, *, count: PositiveInt, **batches: Any) -> None:
        super().__init__(**batches)
        self.count = count

    def test_data(self) -> Any:
        return self.training_data(augment=False)


@DATA_LOADERS.register
class Noise(ImageLoader):
    size = 32

    def __init__(self, *, count: PositiveInt, **batches: Any) -> None:
        super().__init__(**batches)
        self.images = Images(*jobs.photographs(count))

    def training_data(self, *, augment: bool) -> TensorSource:
        return self.source(self.images, augment=augment)

    def test_data(self) -> TensorSource:
        return self.source(self.images, augment=False)


@DATA_LOADERS.register
class Texts(Made):
    def training_data(self, *, augment: bool) -> TensorSource:
        return TensorSource(*jobs.texts(self.count))


@DATA_LOADERS.register
class Discs(Made):
    def training_data(self, *, augment: bool) -> TensorSource:
        return TensorSource(*jobs.discs(self.count), augment_pair=flip if augment else None, any_device=True)


@DATA_LOADERS.register
class OwnRows(Made):
    def training_data(self, *, augment: bool) -> Dataset[Any]:
        torch.manual_seed(0)
        return own_data.Rows(self.count)


@DATA_LOADERS.register
class OwnWindows(Made):
    def training_data(self, *, augment: bool) -> Dataset[Any]:
        torch.manual_seed(0)
        return own_data.Windows(self.count)


@DATA_LOADERS.register
class OwnStream(Made):
    def training_data(self, *, augment: bool) -> Dataset[Any]:
        torch.manual_seed(0)
        return own_data.RowStream(self.count)


@DATA_LOADERS.register
class OwnPhotographs(Made):
    def training_data(self, *, augment: bool) -> Dataset[Any]:
        return own_data.Photographs(self.count)
