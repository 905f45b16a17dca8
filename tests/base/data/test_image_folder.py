"""A user's images: found, decoded as a person sees them, and each mistake reported with its place."""

import contextlib
import errno
import io
import multiprocessing
import os
import shutil
import struct
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, TiffImagePlugin
from torch import Tensor

from base.data.images.folder import read_image
from data_loader.image_folder import ImageFolderLoader
from tests.small_data import write_images
from utils.errors import DataError, UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes for training and testing, with Korean letters and a space."""
    folder = tmp_path / "photos"
    write_images(folder, {"train/고양이": 12, "train/big dog": 8, "test/고양이": 3, "test/big dog": 2})
    return folder


def loader(folder: Path, **args: Any) -> ImageFolderLoader:
    return ImageFolderLoader(**{"data_dir": str(folder), "size": 16, "batch_size": 4, **args})


def pixels(made: ImageFolderLoader, part: str = "train") -> Tensor:
    images = made.read(part).pixels
    assert isinstance(images, Tensor)
    return images


def parts(folder: Path) -> Image.Image:
    """Red on the left and blue on the right, 40 wide and 20 high."""
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (20, 0, 40, 20))
    return image


def test_folders_name_the_classes(photos: Path) -> None:
    made = loader(photos)
    assert made.class_names == ("big dog", "고양이")
    assert pixels(made).shape == (20, 16, 16, 3)
    assert pixels(made).dtype == torch.uint8
    assert made.read("train").labels.tolist() == [0] * 8 + [1] * 12
    assert made.read("test").labels.tolist() == [0] * 2 + [1] * 3
    assert made.training(seed=0).num_samples == 18
    validation = made.validation()
    assert validation is not None
    assert validation.num_samples == 2
    assert made.test().num_samples == 5


@pytest.mark.parametrize("in_memory", [True, False])
def test_later_runs_decode_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool) -> None:
    before = pixels(loader(photos))
    monkeypatch.setattr("data_loader.image_folder.decode", lambda *_, **__: pytest.fail("decoded again"))
    images = loader(photos, in_memory=in_memory).read("train").pixels
    assert torch.equal(before, images if isinstance(images, Tensor) else images.rows(slice(0, 20)))


def _replace(folder: Path) -> None:
    Image.new("RGB", (9, 9), RED).save(folder / "3.png")


CHANGES: dict[str, Callable[[Path], Any]] = {
    "changed": _replace,
    "added": lambda folder: Image.new("RGB", (9, 9)).save(folder / "new.jpg"),
    "removed": lambda folder: (folder / "0.png").unlink(),
    "renamed": lambda folder: (folder / "0.png").rename(folder / "zero.png"),
    "moved to another class": lambda folder: (folder / "0.png").rename(folder.parent / "big dog" / "cat.png"),
    "a class renamed": lambda folder: folder.rename(folder.parent / "cat"),
    "nested": lambda folder: write_images(folder, {"more/still more": 1}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(photos: Path, tmp_path: Path, change: str) -> None:
    loader(photos).read("train")
    CHANGES[change](photos / "train" / "고양이")
    made = loader(photos)
    fresh = loader(photos, cache_dir=str(tmp_path / "elsewhere"))
    assert torch.equal(pixels(made), pixels(fresh))
    assert torch.equal(made.read("train").labels, fresh.read("train").labels)
    assert made.class_names == fresh.class_names


def test_each_size_has_an_array_of_its_own(photos: Path) -> None:
    for size in (16, 8):
        assert pixels(loader(photos, size=size)).shape[1:] == (size, size, 3)
    assert {path.name for path in (photos / "cache").glob("*.npy")} == {"train-16.npy", "train-8.npy"}


def test_validation_may_have_a_folder_of_its_own(photos: Path) -> None:
    write_images(photos, {"val/big dog": 4})
    own = loader(photos)
    validation = own.validation()
    assert validation is not None
    assert (own.training(seed=0).num_samples, validation.num_samples) == (20, 4)
    images, labels = next(validation.one_pass()).data
    assert labels.tolist() == [0] * 4
    assert torch.equal(images, own.normalize(pixels(own, "val")))
    split = loader(photos, validation_split=5).validation()
    assert split is not None
    assert split.num_samples == 5


def test_files_that_are_not_images_are_skipped_and_reported(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cats = photos / "train" / "고양이"
    for name in ("notes.txt", "film.gif", ".hidden.png", "._0.png"):
        (cats / name).write_bytes(b"no image")
    write_images(cats, {".ipynb_checkpoints": 2})
    write_images(photos, {"train/.git": 1})
    (cats / "linked.PNG").symlink_to(cats / "0.png")
    (photos / "train" / "linked class").symlink_to(photos / "test" / "big dog")
    made = loader(photos)
    assert made.class_names == ("big dog", "linked class", "고양이")
    assert made.read("train").labels.bincount().tolist() == [8, 2, 13]
    assert "23 images in" in (said := capfd.readouterr().err)
    assert "skipped 2 files that are not images" in said


def test_a_folder_that_cannot_be_read_is_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(photos, {"train/big dog/more": 2})
    scandir = os.scandir

    def denied(path: Any) -> Any:
        if str(path).endswith("more"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", denied)
    with pytest.raises(DataError, match="big dog/more cannot be read: Permission denied"):
        loader(photos).read("train")


def test_a_class_is_the_same_however_a_system_writes_its_letters(photos: Path) -> None:
    (photos / "test" / "고양이").rename(photos / "test" / unicodedata.normalize("NFD", "고양이"))
    made = loader(photos)
    assert made.read("test").labels.tolist().count(1) == 3


def _empty(folder: Path) -> None:
    for image in (folder / "train" / "big dog").iterdir():
        image.unlink()


MISTAKES: list[tuple[Callable[[Path], Any], str]] = [
    (shutil.rmtree, "train cannot be read: No such file"),
    (lambda folder: (folder / "train").rename(folder / "training"), r"data_dir should have train/CLASS/\*.jpg"),
    (_empty, "no images of big dog"),
    (
        lambda folder: [path.rename(folder / path.name) for path in (folder / "train").iterdir()],
        "one folder of images per class, but has no folders",
    ),
    (
        lambda folder: write_images(folder, {"train": 2}),
        r"one folder of images per class, but has images that are not \(0.png ...\)",
    ),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_another_layout_is_reported(photos: Path, change: Callable[[Path], Any], message: str) -> None:
    change(photos)
    with pytest.raises(DataError, match=message):
        loader(photos).training(seed=0)


def test_test_images_of_unknown_classes_are_refused_and_missing_ones_are_not(photos: Path) -> None:
    shutil.rmtree(photos / "test" / "big dog")
    assert loader(photos).read("test").labels.tolist() == [1] * 3
    write_images(photos, {"test/bird": 1})
    with pytest.raises(
        DataError, match=r"a class that is not in the training data: bird; expected one of: big dog, 고양이"
    ):
        loader(photos).test()
    shutil.rmtree(photos / "test")
    with pytest.raises(DataError, match="test cannot be read: No such file"):
        loader(photos).test()


def test_all_broken_files_are_named_at_once(photos: Path) -> None:
    cats = photos / "train" / "고양이"
    whole = (cats / "0.png").read_bytes()
    (cats / "1.png").write_bytes(whole[: len(whole) // 2])
    (cats / "2.png").write_bytes(b"")
    (cats / "3.jpg").write_bytes(b"<html>not found</html>")
    (cats / "broken.png").symlink_to(cats / "nothing.png")
    os.mkfifo(cats / "pipe.png")
    Image.new("F", (4, 4)).save(cats / "fractions.tiff")
    with pytest.raises(DataError) as error:
        loader(photos).training(seed=0)
    assert "6 of 24 images cannot be read" in str(error.value)
    for name in (
        "1.png",
        "2.png: not an image",
        "3.jpg: not an image",
        "broken.png",
        "pipe.png",
        "fractions.tiff: the pixels are float32 from 0 to 0",
    ):
        assert name in str(error.value)
    assert not list((photos / "cache").glob("*.np*"))
    assert not list((photos / "cache").glob(".*.tmp"))


def test_where_nothing_can_be_written_the_message_names_the_way_out(photos: Path, tmp_path: Path) -> None:
    (photos / "cache").write_text("in the way")
    with pytest.raises(DataError, match='set "cache_dir"'):
        loader(photos).training(seed=0)
    assert len(pixels(loader(photos, cache_dir=str(tmp_path / "elsewhere")))) == 20


def test_processes_decode_the_same_as_one(photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone = pixels(loader(photos))
    monkeypatch.setattr("base.data.images.folder.worker_count", lambda chunks: 2)
    assert torch.equal(alone, pixels(loader(photos, cache_dir=str(tmp_path))))


def test_a_disk_that_is_full_ends_the_processes_too(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell():  # the header fits
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr("base.data.images.folder.worker_count", lambda chunks: 2)
    monkeypatch.setattr("base.data.images.cache.atomic_write", lambda path: contextlib.nullcontext(Full()))
    before = set(multiprocessing.active_children())  # of other tests
    with pytest.raises(DataError, match="No space left") as error:
        loader(photos).training(seed=0)
    assert set(multiprocessing.active_children()) <= before, "they would wait for ever, and this process for them"
    del error


def test_the_middle_is_kept_upright(tmp_path: Path) -> None:
    """The shorter side becomes the edge; the longer one loses its ends."""
    image = Image.new("RGB", (80, 20), GREEN)
    image.paste(RED, (30, 0, 40, 20))
    image.paste(BLUE, (40, 0, 50, 20))
    image.save(tmp_path / "wide.png")
    found = read_image(str(tmp_path / "wide.png"), size=10)
    assert found.shape == (10, 10, 3)
    assert (found[:, 1:4] == RED).all()
    assert (found[:, 6:9] == BLUE).all()
    turned = Image.Exif()
    turned[0x0112] = 6  # "turn by 90 degrees to the right to see it upright"
    image.crop((30, 0, 50, 20)).save(tmp_path / "turned.png", exif=turned)
    found = read_image(str(tmp_path / "turned.png"), size=20)
    assert (found[:8] == RED).all()
    assert (found[12:] == BLUE).all()


def test_an_image_of_the_right_size_keeps_its_bits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "image.png")
    assert (read_image(str(tmp_path / "image.png"), size=32) == values).all()


@pytest.mark.parametrize("name", ["L.png", "1.png", "P.png", "LA.png", "RGBA.png", "CMYK.jpg", "CMYK.tiff", "RGB.webp"])
def test_every_kind_of_pixels_becomes_rgb(tmp_path: Path, name: str) -> None:
    image = Image.new("RGB", (8, 8), WHITE).convert(name.split(".")[0])
    image.save(tmp_path / name)
    assert (read_image(str(tmp_path / name), size=4) >= 254).all()


def test_16_bits_lose_the_lower_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0x80FF, np.uint16)).save(tmp_path / "grey.png")
    assert (read_image(str(tmp_path / "grey.png"), size=4) == 0x80).all()
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(tmp_path / "more.tiff")
    with pytest.raises(ValueError, match="int32 from 70000 to 70000"):
        read_image(str(tmp_path / "more.tiff"), size=4)


def test_what_is_transparent_is_white_whatever_colour_it_hides(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (*RED, 0))
    image.save(tmp_path / "alpha.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([*RED, *GREEN])
    palette.save(tmp_path / "palette.png", transparency=0)
    for name in ("alpha.png", "palette.png"):
        assert (read_image(str(tmp_path / name), size=4) == 255).all()


def test_a_mistake_has_its_place_in_the_config(fit: Callable[..., Any], photos: Path) -> None:
    args = {"data_dir": str(photos / "train"), "size": 16, "batch_size": 4}
    with pytest.raises(UserError, match=r"config\.json:\d+:\d+: .*train cannot be read"):
        fit(data_loader={"type": "ImageFolderLoader", "args": args}, model="LeNet")
    for wrong, says in (
        ({"crop": 17}, '"crop" must be at most 16'),
        ({"std": [1, 1, 0]}, '"std" must be greater than 0'),
    ):
        with pytest.raises(UserError, match=says):
            fit(data_loader={"type": "ImageFolderLoader", "args": {**args, **wrong}}, model="LeNet")


def gradient(dtype: Any, white: float) -> Any:
    """Grey from black to white, (16, 16)."""
    return np.linspace(0, white, 256).reshape(16, 16).astype(dtype)


@pytest.mark.parametrize(
    ("name", "dtype", "stored", "args"),
    [
        ("16.png", np.uint16, 65535, {}),
        ("16.tiff", np.uint16, 65535, {}),
        ("12.png", np.uint16, 4095, {"white": 4095.0}),
        ("32.tiff", np.int32, 65535, {}),
        ("32.tiff", np.int32, 255, {"white": 255.0}),
        ("32.tiff", np.int32, 70_000, {"white": 70_000.0}),
        ("float.tiff", np.float32, 1, {"white": 1.0}),
        ("float.tiff", np.float32, 255, {"white": 255.0}),
    ],
)
def test_grey_of_more_than_8_bits_goes_from_black_to_white(
    tmp_path: Path, name: str, dtype: Any, stored: float, args: dict[str, float]
) -> None:
    Image.fromarray(gradient(dtype, stored)).save(tmp_path / name)
    found = read_image(str(tmp_path / name), size=16, **args)[:, :, 0]
    assert np.abs(found.astype(int) - gradient(int, 255)).max() <= 1


@pytest.mark.parametrize(("dtype", "white"), [(np.int32, 255), (np.float32, 1)])
def test_a_tiff_that_says_what_is_white_is_read_so(tmp_path: Path, dtype: Any, white: int) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[341] = float(white)
    tags.tagtype[341] = 12
    tags[0x0112] = 3  # upside down
    Image.fromarray(gradient(dtype, white)).save(tmp_path / "said.tiff", tiffinfo=tags)
    found = read_image(str(tmp_path / "said.tiff"), size=16)[::-1, ::-1, 0]
    assert np.abs(found.astype(int) - gradient(int, 255)).max() <= 1


def test_pixels_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    pixels = gradient(np.float32, 1)
    pixels[3, 3] = np.nan
    Image.fromarray(pixels).save(tmp_path / "nan.tiff")
    with pytest.raises(ValueError, match="the pixels are float32 from nan to nan"):
        read_image(str(tmp_path / "nan.tiff"), size=16, white=1.0)


@pytest.mark.parametrize(("name", "dtype"), [("dark.tiff", np.int32), ("dark.png", np.uint16)])
def test_an_image_that_comes_out_as_one_shade_is_named(
    photos: Path, capfd: pytest.CaptureFixture[str], name: str, dtype: Any
) -> None:
    assert "warning" not in (loader(photos).read("train"), capfd.readouterr().err)[1]
    Image.fromarray(gradient(dtype, 255)).save(photos / "train" / "big dog" / name)
    loader(photos).read("train")
    said = capfd.readouterr().err
    assert "warning: 1 image came out as a single shade" in said
    assert f"{name}; data_loader.args.white" in said
    assert pixels(loader(photos, white=255)).amax(dim=(1, 2, 3)).min() > 150
    assert "warning" not in capfd.readouterr().err


@pytest.mark.parametrize("tag", [0x0100, 0x011A, 0x8769, 0x0131])
@pytest.mark.parametrize("turned", [False, True])
def test_of_the_exif_only_the_orientation_counts(tmp_path: Path, tag: int, turned: bool) -> None:
    """ImageWidth, XResolution, the EXIF directory and Software, stored as a byte, which none of them is."""
    entries = [(0x0112, 3, struct.pack("<HH", 6 if turned else 1, 0)), (tag, 1, b"\7\0\0\0")]
    directory = b"".join(struct.pack("<HHI", number, kind, 1) + value for number, kind, value in sorted(entries))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + b"\0\0\0\0"
    image = parts(tmp_path).crop((10, 0, 30, 20))
    image.save(tmp_path / "odd.jpg", exif=exif, quality=95)
    found = read_image(str(tmp_path / "odd.jpg"), size=20).astype(int)
    red = found[:8] if turned else found[:, :8]
    assert np.abs(red - RED).max() < 40


@pytest.mark.parametrize("name", ["turned.png", "turned.tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / name, exif=exif)
    with Image.open(tmp_path / name) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert (expected == values).all() == (orientation == 1)
    assert (read_image(str(tmp_path / name), size=16) == expected).all()
