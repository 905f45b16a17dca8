"""Your own images: one folder per class, with files of any size and format."""

import functools
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from base.data.images.cache import ImageCache, Images, fingerprint
from base.data.images.folder import class_folders, class_name, decode, find_images
from base.data.images.image_loader import ImageLoader
from base.data.sources import TensorSource
from utils.errors import DataError, os_errors_as
from utils.paths import project_path
from utils.registry import DATA_LOADERS
from utils.schema import Changeable, Fraction


@DATA_LOADERS.register
class ImageFolderLoader(ImageLoader):
    """Images in data_dir/train/CLASS and data_dir/test/CLASS, of any size and format.

    They are decoded once, upright, with the shorter side scaled to size and the longer one cropped, into an array that
    later runs read. The array is rebuilt when a file is added, removed, renamed or changed.

    data_dir: folder of the data set, relative to the project's folder.
    size: height and width of the images in pixels, as the model sees them.
    white: in grey images of more than 8 bits, the value of white (0 is black); None: as the TIFF tag
        SMaxSampleValue says, or else 65535.
    cache_dir: folder for the arrays, which can be deleted at any time; None: data_dir/cache.
    validation_split: as for every data set; None: uses data_dir/val if it exists, else holds out a tenth of
        data_dir/train or, with "folds", the fold.
    """

    def __init__(
        self,
        *,
        data_dir: Changeable[str],
        size: PositiveInt,
        white: PositiveFloat | None = None,
        cache_dir: Changeable[str | None] = None,
        validation_split: Fraction | NonNegativeInt | None = None,
        **images: Any,
    ) -> None:
        self.size = size
        self.white = white
        self.data_dir = project_path(data_dir)
        self.cache_dir = project_path(cache_dir) / self.data_dir.name if cache_dir else self.data_dir / "cache"
        by_default = validation_split is None and images.get("folds") is None
        self.has_val_folder = by_default and (self.data_dir / "val").is_dir()
        split = 0.1 if by_default and not self.has_val_folder else validation_split or 0
        super().__init__(validation_split=split, **images)
        self._read: dict[str, Images] = {}

    def test_names(self) -> list[str]:
        root = self.data_dir / "test"
        return [str(Path(path).relative_to(root)) for path, _ in find_images(root, self.class_names)]

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(sorted({class_name(folder) for folder in class_folders(self.data_dir / "train")}))

    def training_data(self, *, augment: bool) -> TensorSource:
        return self.source(self.read("train"), augment=augment)

    def validation_data(self) -> TensorSource | None:
        return self.source(self.read("val"), augment=False) if self.has_val_folder else None

    def test_data(self) -> TensorSource:
        return self.source(self.read("test"), augment=False)

    def read(self, part: str) -> Images:
        """The images in data_dir/part, decoded unless they are in the cache. Raises DataError."""
        if part not in self._read:
            root = self.data_dir / part
            files = [path for path, _ in find_images(root, self.class_names)]
            made_from = fingerprint(root, files, "images, version 3", self.size, self.white, self.class_names)
            cache = ImageCache(self.cache_dir, f"{part}-{self.size}", made_from)
            self._read[part] = cache.load(in_memory=self.in_memory) or self._decode(part, cache)
        return self._read[part]

    def _decode(self, part: str, cache: ImageCache) -> Images:
        make = functools.partial(decode, self.data_dir / part, self.class_names, self.size, white=self.white)
        advice = '; set "cache_dir" to a writable folder'
        with os_errors_as(DataError, f"{cache.pixels} cannot be written", advice=advice):
            return cache.keep(functools.partial(make, every_class=part == "train"), in_memory=self.in_memory)
