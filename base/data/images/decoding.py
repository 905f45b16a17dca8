"""Image files of any size and mode to pixels, in several processes. Imported only where something is to be decoded."""

import functools
import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from base.data.images.cache import Decoded, Pixels
from base.data.images.folders import SUFFIXES, class_folders, class_name, is_image, left_out
from utils.errors import DataError
from utils.paths import display_path
from utils.signals import ignore_in_worker

NAMED = 1000  # broken files that a message names at most


def decode(root: Path, class_names: Sequence[str], size: int, *, every_class: bool) -> Decoded:
    """All images below a folder a class. Raises DataError, naming every file that cannot be decoded.

    every_class: whether each class must have images.
    """
    files = _Files(root, class_names, size)
    labels = np.array(files.targets, dtype=np.int64)
    empty = [
        name
        for name, count in zip(class_names, np.bincount(labels, minlength=len(class_names)), strict=True)
        if not count
    ]
    if empty and (every_class or not len(files)):
        raise DataError(f"{root}: no images of {', '.join(empty[:10])}; add some or remove the folder ({SUFFIXES})")
    return Decoded((len(files), size, size, 3), labels, _chunks(files, f"decoding {display_path(root)}"))


def read_image(path: str, *, size: int) -> Pixels:
    """A file as (size, size, 3): upright, the shorter side scaled to size, the middle of the longer one.

    What is transparent becomes white; of 16 bits the upper 8 are taken. Raises what Pillow raises, or ValueError.
    """
    with Image.open(path) as image:
        image.draft("RGB", (2 * size, 2 * size))  # a large JPEG is decoded at a part of its size, in a part of the time
        upright = ImageOps.exif_transpose(image)
        return np.asarray(ImageOps.fit(_to_rgb(upright), (size, size), Image.Resampling.BILINEAR))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are fractions of an unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow would make everything above 255 white
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 2**16:
            raise ValueError("its pixels are whole numbers of more than 16 bits; save it with 8 or 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


class _Files(ImageFolder):  # type: ignore[misc]  # torchvision has no types
    """Gives pixels, or the reason why a file has none as text. class_names: their places are the labels."""

    def __init__(self, root: Path, class_names: Sequence[str], size: int) -> None:
        self.class_names, self.size = class_names, size
        load = functools.partial(read_image, size=size)
        super().__init__(str(root), loader=load, is_valid_file=self._is_valid, allow_empty=True)

    def _is_valid(self, path: str) -> bool:
        *folders, name = Path(path).relative_to(self.root).parts
        return is_image(name) and not any(folder.startswith(".") for folder in folders)

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        place = {name: index for index, name in enumerate(self.class_names)}
        return list(place), {folder: place[class_name(folder)] for folder in class_folders(Path(directory))}

    def __getitem__(self, index: int) -> Pixels | str:
        path, _ = self.samples[index]
        try:
            pixels: Pixels = self.loader(path)
        except UnidentifiedImageError:
            return f"{display_path(Path(path))}: no image, or not whole"
        except Exception as error:  # Pillow raises many kinds for files that are damaged
            return f"{display_path(Path(path))}: {error or type(error).__name__}"
        return pixels


def _chunks(files: _Files, title: str) -> Generator[Pixels, None, None]:
    """The pixels of some images at a time, in their order."""
    chunk = max(1, min(64, 2**23 // (3 * files.size**2)))  # a process hands over 8 MB at most
    loader: DataLoader[list[Pixels | str]] = DataLoader(
        files,
        batch_size=chunk,
        num_workers=_processes(len(files) // chunk),
        collate_fn=list,  # NumPy's arrays, which need no shared memory: containers have little
        worker_init_fn=ignore_in_worker,
        generator=torch.Generator(),  # or it would draw from the model's
    )
    broken: list[str] = []
    start = time.perf_counter()
    for items in _counted(loader, len(files), title):
        broken += [item for item in items if isinstance(item, str)]
        if not broken:
            yield np.stack(items)
    if broken:
        more = f"\n... and {len(broken) - NAMED:,} more" if broken[NAMED:] else ""
        raise DataError(
            f"{len(broken):,} of {len(files):,} images cannot be read; mend or remove them:\n"
            + "\n".join(broken[:NAMED])
            + more
        )
    seconds = time.perf_counter() - start
    print(f"{title}: {len(files):,} images in {seconds:.1f} s{left_out(Path(files.root))}", file=sys.stderr, flush=True)


def _counted(chunks: Iterable[list[Pixels | str]], count: int, title: str) -> Iterator[list[Pixels | str]]:
    """Show how far it is: a bar in a terminal, a line for each 5,000 images where there is none."""
    terminal, done = sys.stderr.isatty(), 0
    with tqdm(total=count, desc=title, unit=" images", leave=False, disable=not terminal, dynamic_ncols=True) as bar:
        for items in chunks:
            yield items
            bar.update(len(items))
            if not terminal and (done + len(items)) // 5000 > done // 5000:
                print(f"{title}: {done + len(items):,} of {count:,}", file=sys.stderr, flush=True)
            done += len(items)


def _processes(chunks: int) -> int:
    """As many as there are processors; none for what this one does sooner than they would start."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(processors, chunks) if processors > 1 and chunks > 1 else 0
