"""CIFAR10: 60,000 photographs of ten classes, 32x32 (Krizhevsky 2009)."""

from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeInt

from base.data.images.cache import Decoded, ImageCache, Images, files_below, fingerprint
from base.data.images.image_loader import ImageLoader
from base.data.sources import TensorSource
from utils.errors import DataError
from utils.paths import project_path
from utils.registry import DATA_LOADERS
from utils.schema import Changeable, Fraction


@DATA_LOADERS.register
class CIFAR10Loader(ImageLoader):
    """CIFAR10, downloaded, verified by its md5 sums and read with torchvision, then stored in cifar-10-cache.

    data_dir: folder of the data set, relative to the project's folder.
    download: download the data set if it is missing.
    validation_split: held-out part of the training data, as for every data set; None: a tenth or, with "folds", the
        fold.
    """

    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    size = 32

    def __init__(
        self,
        *,
        data_dir: Changeable[str] = "data",
        download: Changeable[bool] = True,
        validation_split: Fraction | NonNegativeInt | None = None,
        **images: Any,
    ) -> None:
        if validation_split is None:
            validation_split = 0.1 if images.get("folds") is None else 0
        super().__init__(validation_split=validation_split, **images)
        self.data_dir, self.download = project_path(data_dir), download
        self._read: dict[bool, Images] = {}

    def training_data(self, *, augment: bool) -> TensorSource:
        return self.source(self.read(train=True), augment=augment)

    def test_data(self) -> TensorSource:
        return self.source(self.read(train=False), augment=False)

    def read(self, *, train: bool) -> Images:
        """The images, from the cache unless the files have changed since they were verified. Raises DataError."""
        if train not in self._read:
            cached = self._cache(train=train).load(in_memory=self.in_memory)
            self._read[train] = cached or self._read_files(train=train)
        return self._read[train]

    def _cache(self, *, train: bool) -> ImageCache:
        root = self.data_dir / "cifar-10-batches-py"
        made_from = fingerprint(root, files_below(root), "CIFAR10", train)
        return ImageCache(self.data_dir / "cifar-10-cache", "train" if train else "test", made_from)

    def _read_files(self, *, train: bool) -> Images:
        """Read the images with torchvision, and cache them if the folder can be written."""
        from torchvision.datasets import CIFAR10

        try:
            data: Any = CIFAR10(str(self.data_dir), train=train, download=self.download)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"CIFAR10 cannot be read from {self.data_dir}: {error}\nSet data_loader.args.data_dir to the folder "
                'with the official "cifar-10-batches-py", or remove it and allow the download.'
            ) from error
        pixels = np.ascontiguousarray(data.data)  # torchvision returns a transposed view
        labels = np.array(data.targets)
        cache = self._cache(train=train)  # for the files as they are after a download
        try:
            return cache.keep(
                lambda: Decoded(pixels.shape, labels, (part for part in [pixels])), in_memory=self.in_memory
            )
        except OSError as error:
            if not self.in_memory:
                raise DataError(f'"in_memory": false needs {cache.pixels}, which cannot be written') from error
            return Images(torch.from_numpy(pixels), torch.from_numpy(labels))
