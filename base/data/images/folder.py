"""A folder with one folder of images per class: its classes, its files, and their pixels, decoded by several processes.

torchvision and Pillow are imported only when images are decoded.
"""

import os
import time
import unicodedata
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from base.data.images.cache import Decoded, Pixels
from base.data.workers import read_once, worker_count
from logger.console import counting
from utils.errors import DataError
from utils.paths import display_path
from utils.streams import say_error
from utils.text import at_most

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as in torchvision
ORIENTATION = 0x0112  # tags of EXIF and TIFF
S_MAX_SAMPLE_VALUE = 341  # MaxSampleValue, by its specification, is not meant for display
FLAT = 3  # largest range of pixel values in an image that shows nothing
MOST_FLAT = 3
MOST_NAMED = 1000  # unreadable files named in a message


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def class_name(folder: str) -> str:
    """The class of a folder: its name in Unicode's composed form (macOS may store the same Korean name decomposed)."""
    return unicodedata.normalize("NFC", folder)


def class_folders(root: Path) -> list[str]:
    """The names of the class folders. Raises DataError if there are none, or if images lie next to them."""
    try:
        entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}") from error
    if beside := [path.name for path in entries if is_image(path.name) and path.is_file()]:
        raise DataError(f"{root}: {len(beside):,} images ({beside[0]} ...) are not in a folder named after their class")
    if not (folders := [path.name for path in entries if path.is_dir()]):
        raise DataError(f"{root} has no folders; it should have one folder of images per class")
    return folders


def training_classes(data_dir: Path) -> tuple[str, ...]:
    """The classes of data_dir/train, sorted by name. Raises DataError if the folder's layout is different."""
    layout = "train/CLASS/*.jpg and test/CLASS/*.jpg"
    if not data_dir.is_dir():
        raise DataError(f"no such folder: {data_dir}; data_dir should have {layout}")
    if not (data_dir / "train").is_dir():
        folders = sorted(path.name for path in data_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
        listed = f"the folders {', '.join(folders[:10])}{' ...' if folders[10:] else ''}, but no train/"
        raise DataError(f"{data_dir} has {listed if folders else 'no folders'}; it should have {layout}")
    return tuple(sorted({class_name(folder) for folder in class_folders(data_dir / "train")}))


def check_classes(root: Path, known: tuple[str, ...]) -> None:
    """Raise DataError if a class of the folder is not in the training data."""
    if unknown := [folder for folder in class_folders(root) if class_name(folder) not in known]:
        raise DataError(
            f"{root} has classes that are not in {root.parent / 'train'}: {', '.join(unknown[:10])}; "
            f"expected one of: {', '.join(known[:10])}{' ...' if known[10:] else ''}"
        )


def skipped_files(root: Path) -> str:
    """The files skipped because they are not images, for a message; empty if there are none."""
    names = [name for _, _, files in os.walk(root, followlinks=True) for name in files if not name.startswith(".")]
    suffixes = sorted({Path(name).suffix or name for name in names if not is_image(name)})
    count = sum(not is_image(name) for name in names)
    return f"; skipped: {count:,} files that are not images ({' '.join(suffixes[:5])})" if count else ""


def decode(
    root: Path, class_names: Sequence[str], size: int, *, every_class: bool, white: float | None = None
) -> Decoded:
    """Decode all images of some classes. Raises DataError naming every file that cannot be decoded.

    every_class: whether every class must have images. white: see ``read_image``.
    """
    files = _Files(root, class_names, size, white)
    labels = np.array([label for _, label in files.samples], dtype=np.int64)
    empty = [
        name
        for name, count in zip(class_names, np.bincount(labels, minlength=len(class_names)), strict=True)
        if not count
    ]
    if empty and (every_class or not len(files)):
        raise DataError(f"{root}: no images of {', '.join(empty[:10])}; add some or remove the folder ({SUFFIXES})")
    return Decoded((len(files), size, size, 3), labels, _chunks(files, f"decoding {display_path(root)}"))


def file_names(root: Path, class_names: Sequence[str]) -> list[str]:
    """The files that ``decode`` reads, in order, relative to root."""
    return [str(Path(path).relative_to(root)) for path, _ in _Files(root, class_names, 1, None).samples]


def read_image(image: "str | Pixels", *, size: int, white: float | None = None) -> Pixels:
    """The pixels of a file, (size, size, 3): upright, the shorter side scaled to size, the longer one cropped.

    Transparent pixels become white. Raises what Pillow raises, or ValueError.

    image: a path, or pixels in bytes, (H, W, 3) or (H, W).
    white: in grey images of more than 8 bits, the value of white; 0 is black. None: as given by the format, which is
        65535 for 16-bit and 32-bit integers, or by the TIFF tag SMaxSampleValue if present. Floats need one of the two.
    """
    from PIL import Image, ImageOps

    with Image.open(image) if isinstance(image, str) else Image.fromarray(image) as opened:
        opened.draft("RGB", (2 * size, 2 * size))  # decodes a large JPEG at a reduced size, which is faster
        upright = _upright(opened)
        return np.asarray(ImageOps.fit(_to_rgb(upright, white), (size, size), Image.Resampling.BILINEAR))


def _upright(image: "Image.Image") -> "Image.Image":
    """Rotate an image as its EXIF data says. Reads nothing else of the EXIF data and writes none, unlike
    ImageOps.exif_transpose: cameras and editors leave much malformed data in it.
    """
    from PIL import Image

    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises many types
        return image
    if isinstance(orientation, tuple):
        orientation = orientation[0] if orientation else 1
    if isinstance(orientation, bytes):
        orientation = orientation[0] if len(orientation) == 1 else 1
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


def _white(image: "Image.Image") -> float | None:
    """The value of white, according to the file or its format; None if neither gives it."""
    value = getattr(image, "tag_v2", {}).get(S_MAX_SAMPLE_VALUE)
    value = value[0] if isinstance(value, tuple) and value else value
    if isinstance(value, (int, float)) and value > 0:
        return float(value)
    return None if image.mode == "F" else 65535.0


def _to_rgb(image: "Image.Image", white: float | None) -> "Image.Image":
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would make everything above 255 white
        return Image.fromarray(_to_bytes(np.asarray(image), white or _white(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_bytes(values: np.ndarray, white: float | None) -> Pixels:
    """Grey values (H, W) from 0 to white as bytes; of 16 bits, the upper 8."""
    advice = "save it with 8 or 16 bits, or set data_loader.args.white to the value of white"
    if white is None:
        raise ValueError(f"the pixels are floats in an unknown range; {advice}")
    if not (values.min() >= 0 and values.max() <= white):
        found = f"the pixels range from {values.min():g} to {values.max():g}"
        range_ = "0 to 65535: integers of more than 16 bits" if white == 65535 else f"0 to {white:g}"
        raise ValueError(f"{found}, not within {range_}; {advice}")
    levels = white if values.dtype.kind == "f" else white + 1
    scaled: Pixels = np.minimum(values.astype(np.float64) * (256 / levels), 255).astype(np.uint8)
    return scaled


class _Files(Dataset[Pixels | str]):
    """The images of some classes, found by torchvision: pixels, or as a string the reason why a file has none.

    class_names: an image's label is the index of its class here.
    """

    def __init__(self, root: Path, class_names: Sequence[str], size: int, white: float | None) -> None:
        from torchvision.datasets.folder import make_dataset

        self.root = root
        self.size = size
        self.white = white
        labels = {folder: class_names.index(class_name(folder)) for folder in class_folders(root)}
        self.samples: list[tuple[str, int]] = make_dataset(
            str(root), labels, is_valid_file=self._is_valid, allow_empty=True
        )

    def _is_valid(self, path: str) -> bool:
        *folders, name = Path(path).relative_to(self.root).parts
        return is_image(name) and not any(folder.startswith(".") for folder in folders)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Pixels | str:
        from PIL import UnidentifiedImageError

        path, _ = self.samples[index]
        try:
            return read_image(path, size=self.size, white=self.white)
        except UnidentifiedImageError:
            return f"{display_path(Path(path))}: not an image, or truncated"
        except Exception as error:  # Pillow raises many types for damaged files
            return f"{display_path(Path(path))}: {error or type(error).__name__}"


def _chunks(files: _Files, title: str) -> Generator[Pixels, None, None]:
    """The pixels of several images at a time, in order."""
    chunk = max(1, min(64, 2**23 // (3 * files.size**2)))  # a process sends 8 MB at most
    broken: list[str] = []
    flat: list[str] = []
    seen = 0
    start = time.perf_counter()
    with counting(title, "images", len(files)) as advance:
        for items in read_once(files, chunk, worker_count(len(files) // chunk)):
            broken += [item for item in items if isinstance(item, str)]
            for (path, _), item in zip(files.samples[seen:], items, strict=False):
                if not isinstance(item, str) and np.ptp(item) <= FLAT:
                    flat.append(f"{display_path(Path(path))} (all about {int(item.max())} of 255)")
            seen += len(items)
            if not broken:
                yield np.stack(items)
            advance(len(items))
    if broken:
        named = "\n".join(at_most(MOST_NAMED, broken))
        raise DataError(f"{len(broken):,} of {len(files):,} images cannot be read; repair or remove them:\n{named}")
    seconds = time.perf_counter() - start
    if flat:
        more = f" and {len(flat) - MOST_FLAT:,} more" if flat[MOST_FLAT:] else ""
        say_error(
            f"warning: {len(flat):,} of {len(files):,} images came out as a single shade: "
            f"{', '.join(flat[:MOST_FLAT])}{more}. Are they empty, or saved with values from a small part of their "
            "range? data_loader.args.white sets the value of white in grey images of more than 8 bits",
        )
    say_error(f"{title}: {len(files):,} images in {seconds:.1f} s{skipped_files(files.root)}")
