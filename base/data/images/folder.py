"""A folder with one folder of images per class: its classes, its files, and their pixels, decoded by several processes.

torchvision and Pillow are imported only when images are decoded.
"""

import functools
import time
import unicodedata
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from base.data.images.cache import Decoded, Pixels, files_below
from base.data.workers import read_once, worker_count
from logger.console import counting
from utils.errors import DataError, os_errors_as
from utils.files import open_regular
from utils.paths import display_path
from utils.streams import say_error
from utils.text import at_most, count

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as in torchvision
ORIENTATION = 0x0112  # tags of EXIF and TIFF
S_MAX_SAMPLE_VALUE = 341
FLAT = 3  # largest range of pixel values in an image that shows nothing
MOST_NAMED = 1000  # unreadable files named in a message


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return name.lower().endswith(SUFFIXES)


def class_name(folder: str) -> str:
    """The class of a folder: its name in Unicode's composed form (macOS may store the same Korean name decomposed)."""
    return unicodedata.normalize("NFC", folder)


def class_folders(root: Path) -> list[str]:
    """The names of the class folders. Raises DataError if there are none, or if images lie next to them."""
    layout = "; data_dir should have train/CLASS/*.jpg and test/CLASS/*.jpg"
    with os_errors_as(DataError, f"{root} cannot be read", advice=layout):
        entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    folders = [path.name for path in entries if path.is_dir()]
    beside = [path.name for path in entries if is_image(path.name) and path.is_file()]
    if beside or not folders:
        found = f"has images that are not ({beside[0]} ...)" if beside else "has no folders"
        raise DataError(f"{root} should have one folder of images per class, but {found}")
    return folders


def find_images(root: Path, class_names: Sequence[str]) -> list[tuple[str, int]]:
    """The path of each image in the class folders, and the index of its class.

    Raises DataError for other classes, and for a folder that cannot be read.
    """
    found = []
    for folder in class_folders(root):
        if class_name(folder) not in class_names:
            known = ", ".join(at_most(10, class_names))
            raise DataError(f"{root} has a class that is not in the training data: {folder}; expected one of: {known}")
        label = class_names.index(class_name(folder))
        found += [(path, label) for path in files_below(root / folder, _raise_unreadable) if is_image(path)]
    return found


def _raise_unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def decode(
    root: Path, class_names: Sequence[str], size: int, *, every_class: bool, white: float | None = None
) -> Decoded:
    """Decode all images of some classes. Raises DataError naming every file that cannot be decoded.

    every_class: whether every class must have images. white: see ``read_image``.
    """
    samples = find_images(root, class_names)
    labels = np.array([label for _, label in samples], dtype=np.int64)
    empty = [class_names[index] for index in sorted({*range(len(class_names))} - {*labels.tolist()})]
    if empty and (every_class or not samples):
        raise DataError(f"{root}: no images of {', '.join(empty[:10])}; add some or remove the folder ({SUFFIXES})")
    paths = [path for path, _ in samples]
    return Decoded((len(samples), size, size, 3), labels, _chunks(root, paths, size, white))


def read_image(image: "str | Pixels", *, size: int, white: float | None = None) -> Pixels:
    """The pixels of a file, (size, size, 3): upright, the shorter side scaled to size, the longer one cropped.

    Transparent pixels become white. Raises what Pillow raises, or ValueError.

    image: a path, or pixels in bytes, (H, W, 3) or (H, W).
    white: in grey images of more than 8 bits, the value of white; 0 is black. None: that of the TIFF tag
        SMaxSampleValue, or else 65535. Floats need one of the two.
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

    image.load()  # which rotates a TIFF
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises many types
        return image
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


def _to_rgb(image: "Image.Image", white: float | None) -> "Image.Image":
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would make everything above 255 white
        return Image.fromarray(_to_bytes(np.asarray(image), white or _white(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _white(image: "Image.Image") -> float | None:
    value = getattr(image, "tag_v2", {}).get(S_MAX_SAMPLE_VALUE)
    value = value[0] if isinstance(value, tuple) and value else value
    return float(value) if isinstance(value, (int, float)) and value > 0 else None


def _to_bytes(values: np.ndarray, white: float | None) -> Pixels:
    """Grey values (H, W) from 0 to white as bytes; of 16 bits, the upper 8."""
    is_float = values.dtype.kind == "f"
    if white is None and not is_float:
        white = 65535
    if white is None or not (values.min() >= 0 and values.max() <= white):  # NaN is neither
        found = f"the pixels are {values.dtype} from {values.min():g} to {values.max():g}"
        raise ValueError(f"{found}; save them with 8 or 16 bits, or set data_loader.args.white to the value of white")
    levels = white if is_float else white + 1
    scaled: Pixels = np.minimum(values.astype(np.float64) * (256 / levels), 255).astype(np.uint8)
    return scaled


def _pixels(path: str, *, size: int, white: float | None) -> Pixels | str:
    """The pixels of a file, or as a string the reason why it has none."""
    from PIL import UnidentifiedImageError

    try:
        open_regular(Path(path)).close()  # a named pipe would block
        return read_image(path, size=size, white=white)
    except UnidentifiedImageError:
        return f"{display_path(Path(path))}: not an image, or truncated"
    except Exception as error:  # Pillow raises many types for damaged files
        return f"{display_path(Path(path))}: {error or type(error).__name__}"


def _chunks(root: Path, paths: list[str], size: int, white: float | None) -> Generator[Pixels, None, None]:
    """The pixels of several images at a time, in order."""
    read = functools.partial(_pixels, size=size, white=white)
    chunk = max(1, min(64, 2**23 // (3 * size**2)))  # a process sends 8 MB at most
    broken: list[str] = []
    flat: list[str] = []
    names = iter(paths)
    start = time.perf_counter()
    title = f"decoding {display_path(root)}"
    with counting(title, "images", len(paths)) as advance:
        for items in read_once(read, paths, chunk, worker_count(len(paths) // chunk)):
            broken += [item for item in items if isinstance(item, str)]
            named = [(item, next(names)) for item in items]
            flat += [name for item, name in named if not isinstance(item, str) and np.ptp(item) <= FLAT]
            if not broken:
                yield np.stack(items)
            advance(len(items))
    if broken:
        reasons = "\n".join(at_most(MOST_NAMED, broken))
        raise DataError(f"{len(broken):,} of {len(paths):,} images cannot be read; repair or remove them:\n{reasons}")
    seconds = time.perf_counter() - start
    if flat:
        say_error(
            f"warning: {count(len(flat), 'image')} came out as a single shade, as {display_path(Path(flat[0]))}; "
            "data_loader.args.white sets the value of white in grey images of more than 8 bits",
        )
    skipped = sum(not is_image(path) for path in files_below(root))
    others = f"; skipped {count(skipped, 'file')} that are not images" if skipped else ""
    say_error(f"{title}: {len(paths):,} images in {seconds:.1f} s{others}")
