"""Data loaders for small colour images: bytes in memory or on disk, random crop and flip, normalisation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeInt
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from base.base_data_loader import BaseDataLoader
from base.data.images.cache import Images
from base.data.images.folder import read_image
from base.data.sample_random import SampleRandom
from base.data.sources import TensorSource
from utils.errors import DataError
from utils.schema import Changeable, TrainingOnly
from utils.tree import describe_batch


class ImageLoader(BaseDataLoader):
    """Square images as uint8 of shape (N, size, size, 3); whole batches are augmented and normalised at once.

    crop: in training, shift each image by up to this many pixels in each direction; the uncovered border is black.
    flip: in training, mirror each image with probability 1/2.
    mean, std: per channel, for images in [0, 1]; the default scales to [-1, 1].
    in_memory: keep the images in memory. If False, reads each batch from disk, for data larger than memory.
    """

    size: int
    """Height and width in pixels; subclasses set it before calling this constructor."""
    white: float | None = None
    """See ``read_image``."""

    def __init__(
        self,
        *,
        crop: TrainingOnly[NonNegativeInt] = 0,
        flip: TrainingOnly[bool] = False,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        in_memory: Changeable[bool] = True,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        if crop > self.size:
            raise ValueError(f'"crop" must be at most {self.size}, the edge of an image, got {crop}')
        if min(std) <= 0:
            raise ValueError(f'"std" must be greater than 0, got {list(std)}')
        self.crop, self.flip, self.in_memory = crop, flip, in_memory
        # for a whole row of pixels: arithmetic on rows of 32 * 3 values is far faster than on 3 channels
        self.scale = (1 / (255 * torch.tensor(std))).repeat(self.size)  # (W * 3,)
        self.shift = (-torch.tensor(mean) / torch.tensor(std)).repeat(self.size)  # (W * 3,)

    def source(self, images: Images, *, augment: bool) -> TensorSource:
        """Batches of float32 images of shape (B, 3, size, size) and int64 labels of shape (B,)."""
        augmentation = self.augment if augment and (self.crop or self.flip) else None
        own = type(self).augment is ImageLoader.augment and type(self).normalize is ImageLoader.normalize
        return TensorSource(
            images.pixels, images.labels, augment=augmentation, transform=self.normalize, any_device=own
        )

    def prepare_input(self, raw: Path | Tensor | Mapping[str, str], facts: Mapping[str, Any]) -> Tensor:
        """Convert a file of any size and format, or image bytes, (H, W, 3) or (H, W), to float32 of (3, size, size)."""
        if isinstance(raw, Path):
            image: Any = str(raw)
        elif isinstance(raw, Tensor) and raw.dtype == torch.uint8 and (raw.dim() == 2 or raw.shape[2:] == (3,)):
            if raw.dim() == 2 and raw.shape[1] in (3, 4):  # a row of pixels, not a picture of this width
                raise DataError(f"{describe_batch(raw)} is a row of pixels; save a single image as array[None]")
            image = raw.numpy()
        else:
            got = describe_batch(raw) if isinstance(raw, Tensor) else "the row of a table"
            raise DataError(f"{type(self).__name__} takes images: files, or uint8 (H, W, 3) or (H, W); got {got}")
        pixels = torch.from_numpy(np.array(read_image(image, size=self.size, white=self.white)))
        return self.normalize(pixels[None])[0]  # (H, W, 3) -> (3, H, W)

    def augment(self, images: Tensor, random: SampleRandom) -> Tensor:
        """Random crop and flip of a batch, uint8 of shape (B, H, W, 3)."""
        if self.crop:
            images = random_crop(images, self.crop, random)
        if self.flip:
            images = random_flip(images, random)
        return images

    def normalize(self, images: Tensor) -> Tensor:
        """Convert uint8 of shape (B, H, W, 3) to float32 of shape (B, 3, H, W), by default in [-1, 1].

        Keeps the channels-last memory format, with which convolutions are faster.
        """
        rows = images.flatten(2).float()  # (B, H, W * 3)
        if self.scale.device != images.device:  # with device_cache
            self.scale, self.shift = self.scale.to(images.device), self.shift.to(images.device)
        torch.addcmul(self.shift, rows, self.scale, out=rows)  # in place, to avoid a second array
        return rows.view(images.shape).permute(0, 3, 1, 2)

    def pictures(self, inputs: Tensor) -> Tensor:
        """Undo ``normalize``: float32 of shape (B, 3, H, W) to uint8 of shape (B, H, W, 3), exactly."""
        shift, scale = self.shift[:3].to(inputs.device), self.scale[:3].to(inputs.device)
        pixels = (inputs.permute(0, 2, 3, 1) - shift) / scale
        return pixels.round().clamp(0, 255).to(torch.uint8)


def random_crop(images: Tensor, padding: int, random: SampleRandom) -> Tensor:
    """Shift each image of (B, H, W, C) by up to ``padding`` pixels in both directions; fill with zeros."""
    count, height, width, channels = images.shape
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))  # (B, H + 2p, W + 2p, C)
    padded_height, padded_width = padded.shape[1:3]
    top, left = random.integers(0, 2 * padding + 1, draws=2)  # (B,), (B,)

    # a crop is identified by its first pixel, counted over all padded images
    first_pixels = (torch.arange(count, device=images.device) * padded_height + top) * padded_width + left  # (B,)
    last_possible = count * padded_height * padded_width - (height - 1) * padded_width - width
    # a view of the crop at every possible first pixel; indexing single pixels takes seven times as long
    crops = padded.as_strided(
        (last_possible + 1, height, width * channels), (channels, padded_width * channels, 1)
    )  # (last_possible + 1, H, W * C)
    return crops.index_select(0, first_pixels).view(images.shape)


def random_flip(images: Tensor, random: SampleRandom) -> Tensor:
    """Mirror each image of (B, H, W, C) with probability 1/2; in place on the CPU."""
    if not images.is_cpu:
        return torch.where((random.uniform()[0] < 0.5).view(-1, 1, 1, 1), images.flip(2), images)
    mirrored = np.flatnonzero(random.uniform()[0].numpy() < 0.5)
    # half the work of torch.where on all images; NumPy copies whole images, while index_copy_ takes twice as long
    images.numpy()[mirrored] = images.index_select(0, torch.from_numpy(mirrored)).flip(2).numpy()
    return images
