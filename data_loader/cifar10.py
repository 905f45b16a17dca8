"""CIFAR10: 60,000 photographs of ten classes, 32x32 (Krizhevsky 2009)."""

from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from base.base_data_loader import BaseDataLoader
from base.data import SampleRandom, TensorSource
from utils.errors import DataError
from utils.paths import project_path
from utils.registry import DATA_LOADERS
from utils.schema import Fraction, Workers


@DATA_LOADERS.register
class CIFAR10Loader(BaseDataLoader):
    """CIFAR10, kept in memory as bytes. torchvision downloads it, checks its md5 sums and reads it.

    data_dir: folder of the data set, relative to the project's folder.
    download: fetch it if it is not there.
    crop: in training, shift each image by up to this many pixels in each direction; what comes in is black.
    flip: in training, mirror each image with probability 1/2.
    mean, std: per channel, of images in [0, 1]; the default scales to [-1, 1].
    """

    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(
        self,
        *,
        batch_size: PositiveInt,
        data_dir: str = "data",
        download: bool = True,
        crop: Annotated[int, Field(ge=0, le=32)] = 0,
        flip: bool = False,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        eval_batch_size: PositiveInt | None = None,
        validation_split: Fraction | NonNegativeInt = 0.1,
        shuffle: bool = True,
        num_workers: Workers = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            validation_split=validation_split,
            shuffle=shuffle,
            num_workers=num_workers,
        )
        self.data_dir, self.download = project_path(data_dir), download
        self.crop, self.flip = crop, flip
        if min(std) <= 0:
            raise ValueError(f'"std" must be greater than 0, got {list(std)}')
        # for a row of 32 pixels with 3 channels each: arithmetic on rows of 96 is far faster than on threes
        self.scale = (1 / (255 * torch.tensor(std))).repeat(32)  # (96,)
        self.shift = (-torch.tensor(mean) / torch.tensor(std)).repeat(32)  # (96,)
        self._read: dict[bool, tuple[Tensor, Tensor]] = {}

    def training_data(self, *, augment: bool) -> TensorSource:
        use = self.augment if augment and (self.crop or self.flip) else None
        return TensorSource(*self.read(train=True), augment=use, transform=self.normalize)

    def test_data(self) -> TensorSource:
        return TensorSource(*self.read(train=False), transform=self.normalize)

    def read(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """Images, uint8 of shape (N, 32, 32, 3), and labels, int64 of shape (N,). Raises DataError."""
        if train not in self._read:
            from torchvision.datasets import CIFAR10

            try:
                data: Any = CIFAR10(str(self.data_dir), train=train, download=self.download)
            except (RuntimeError, OSError) as error:
                raise DataError(
                    f"CIFAR10 cannot be read from {self.data_dir}: {error}\n"
                    'Set data_loader.args.data_dir to the folder that holds "cifar-10-batches-py", or let it download.'
                ) from error
            images = torch.from_numpy(data.data).contiguous()  # torchvision gives a transposed view
            self._read[train] = images, torch.tensor(data.targets)
        return self._read[train]

    def augment(self, images: Tensor, random: SampleRandom) -> Tensor:
        """Random crop and flip of a batch, uint8 of shape (B, H, W, 3) to the same."""
        if self.crop:
            images = random_crop(images, self.crop, random)
        if self.flip:
            images = random_flip(images, random)
        return images

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 of shape (B, H, W, 3) to float32 of shape (B, 3, H, W), by default in [-1, 1].

        In memory the channels stay last, which convolutions are faster on.
        """
        rows = images.flatten(2).float()  # (B, H, W * 3)
        torch.addcmul(self.shift, rows, self.scale, out=rows)  # in place: no second array to allocate
        return rows.view(images.shape).permute(0, 3, 1, 2)

    def pictures(self, inputs: Tensor) -> Tensor:
        """Undoes ``normalize``: float32 of shape (B, 3, H, W) to uint8 of shape (B, H, W, 3), exactly."""
        pixels = (inputs.permute(0, 2, 3, 1) - self.shift[:3]) / self.scale[:3]
        return pixels.round().clamp(0, 255).to(torch.uint8)


def random_crop(images: Tensor, padding: int, random: SampleRandom) -> Tensor:
    """Shift each image of (B, H, W, C) by up to ``padding`` pixels in both directions; zeros come in."""
    count, height, width, channels = images.shape
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))  # (B, H + 2p, W + 2p, C)
    top, left = random.integers(0, 2 * padding + 1, draws=2)[:, :, None]  # (B, 1), (B, 1)
    rows = torch.arange(count)[:, None] * padded.shape[1] + top + torch.arange(height)  # (B, H), of all padded rows
    # a row of a crop is W pixels in a row of memory: one index a row, where one a pixel takes seven times as long
    runs = padded.flatten().unfold(0, width * channels, channels)  # (number of pixels, W * C): from each pixel on
    return runs.index_select(0, (rows * padded.shape[2] + left).flatten()).view(images.shape)


def random_flip(images: Tensor, random: SampleRandom) -> Tensor:
    """Mirror each image of (B, H, W, C) left to right with probability 1/2."""
    mirrored = (random.uniform()[0] < 0.5).nonzero()[:, 0]  # indices of about half of the images
    return images.index_copy(
        0, mirrored, images.index_select(0, mirrored).flip(2)
    )  # half the work of torch.where on all of them
