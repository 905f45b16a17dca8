"""What lies where in a folder of images, a folder a class; without opening any of them."""

import os
import unicodedata
from pathlib import Path

from utils.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of torchvision


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def class_name(folder: str) -> str:
    """The class of a folder: its name, composed, since a Mac writes the same Korean name in another way."""
    return unicodedata.normalize("NFC", folder)


def class_folders(root: Path) -> list[str]:
    """The names of the folders in a folder. Raises DataError if there are none, or images beside them."""
    try:
        entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}") from error
    if beside := [path.name for path in entries if is_image(path.name) and path.is_file()]:
        raise DataError(
            f"{root}: {len(beside):,} images ({beside[0]} ...) lie in no folder; the folder names the class"
        )
    if not (folders := [path.name for path in entries if path.is_dir()]):
        raise DataError(f"{root} holds no folder; it should hold one for each class, with its images")
    return folders


def training_classes(data_dir: Path) -> tuple[str, ...]:
    """The classes of data_dir/train, in the order of their names. Raises DataError if it is laid out otherwise."""
    layout = "train/CLASS/*.jpg and test/CLASS/*.jpg"
    if not data_dir.is_dir():
        raise DataError(f"there is no folder {data_dir}; data_dir should hold {layout}")
    if not (data_dir / "train").is_dir():
        there = sorted(path.name for path in data_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
        held = f"the folders {', '.join(there[:10])}{' ...' if there[10:] else ''}" if there else "no folder"
        raise DataError(f"{data_dir} holds {held}, and no train/; it should hold {layout}")
    return tuple(sorted({class_name(folder) for folder in class_folders(data_dir / "train")}))


def check_classes(root: Path, known: tuple[str, ...]) -> None:
    """Raise DataError if a folder is of a class that the training data have not."""
    if other := [folder for folder in class_folders(root) if class_name(folder) not in known]:
        raise DataError(
            f"{root} holds classes that are not in {root.parent / 'train'}: {', '.join(other[:10])}; "
            f"there are: {', '.join(known[:10])}{' ...' if known[10:] else ''}"
        )


def left_out(root: Path) -> str:
    """Which files are taken for no images, for a message; empty if there are none."""
    names = [name for _, _, files in os.walk(root, followlinks=True) for name in files if not name.startswith(".")]
    suffixes = sorted({Path(name).suffix or name for name in names if not is_image(name)})
    count = sum(not is_image(name) for name in names)
    return f"; left out: {count:,} files that are no images ({' '.join(suffixes[:5])})" if count else ""
