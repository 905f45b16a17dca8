"""predict.py on pictures: the classes that test.py finds, without the data set, whatever the files and their names."""

import csv
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import predict
import train
from extras import picture_grid
from extras.predict import reading
from tests.conftest import load_script, small_config
from tests.helpers import Json
from utils import cli
from utils.signals import SignalWatch

test = load_script("test")

REPORT_PICTURES = True
CLASSES = ("<b>dog", "=2+2", "고양이")
Run = tuple[Path, Path]
"""A run folder, and the photos that are left of its data: those of test/."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on photos of three classes, tested, of which the training photos are gone."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(CLASSES):
            (folder / "data" / part / name).mkdir(parents=True)
            for number in range(count):
                shade = (label + (part == "test" and number == 2)) % 3  # one test photo looks like another class
                pixels = random.integers(0, 90, (36 + number, 40, 3), dtype=np.uint8) + np.uint8(70 * shade)
                Image.fromarray(pixels).save(folder / "data" / part / name / f"{number}.png")
    config = small_config(
        folder,
        data_loader={
            "type": "ImageFolderLoader",
            "args": {"data_dir": str(folder / "data"), "size": 32, "batch_size": 4, "mean": [0.4, 0.5, 0.6]},
        },
        model={"type": "LeNet", "args": {"in_channels": 3, "kernel_size": 5, "num_classes": 3}},
        trainer={"epochs": 3, "monitor": "min val_loss", "ema": {"decay": 0.6}},
    )
    trained = train.main(["-c", str(config)]).run_dir
    test.main(["-r", str(trained)])
    photos = (folder / "data" / "test").rename(folder / "photos")
    shutil.rmtree(folder / "data")
    return trained, photos


@pytest.fixture
def ask(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs predict.py: its status, what it prints, and what it says."""

    def command(*words: str | Path) -> tuple[int, str, str]:
        status = cli.run(predict.main, ["-r", str(run[0]), *map(str, words)])
        return status, *capfd.readouterr()

    return command


Ask = Callable[..., tuple[int, str, str]]


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def save(path: Path, pixels: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder of two pictures."""
    for number, shade in enumerate((20, 200)):
        save(tmp_path / "two" / f"{number}.png", np.full((40, 50, 3), shade, np.uint8))
    return tmp_path / "two"


@pytest.mark.slow
def test_it_finds_what_a_test_finds_without_the_data_set(run: Run, ask: Ask) -> None:
    trained, photos = run
    status, output, errors = ask(photos)
    assert status == 0
    assert "9 predictions by" in errors
    found = table(output)
    with (trained / "test" / "predictions.csv").open(newline="") as file:
        tested = list(csv.DictReader(file))
    assert [os.path.relpath(row["file"], photos) for row in found] == [row["file"].lstrip("'") for row in tested]
    assert [row["class"] for row in found] == [row["predicted"] for row in tested]
    assert len({row["class"] for row in found}) > 1
    for row, other in zip(found, tested, strict=True):
        names = [name for name in row if name.startswith("p_")]
        assert names == [f"p_{name}" for name in CLASSES]
        for name in names:
            assert float(row[name]) == pytest.approx(float(other[name]), abs=2e-5)
        assert float(row["probability"]) == max(float(row[name]) for name in names)


def test_a_test_names_the_files_of_mistakes(run: Run) -> None:
    report = (run[0] / "test" / "report.md").read_text()
    assert "![mistakes](mistakes.png)" in report
    with (run[0] / "test" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [f"{name}/{number}.png" for name in CLASSES for number in range(3)]
    assert [row["file"].removeprefix("'") for row in rows] == expected
    assert rows[3]["file"] == "'=2+2/0.png"  # which a spreadsheet would compute


def test_any_size_and_mode_is_taken_as_in_training(ask: Ask, two: Path) -> None:
    save(two / "big.jpg", np.full((500, 700, 3), 20, np.uint8))
    save(two / "grey.png", np.full((9, 11), 20, np.uint8))
    save(two / "deep.png", np.full((40, 40), 20 * 257, np.uint16))
    save(two / "clear.png", np.dstack([np.full((40, 40, 3), 20, np.uint8), np.full((40, 40), 255, np.uint8)]))
    status, output, _ = ask(two)
    assert status == 0
    values = {Path(row["file"]).name: row["probability"] for row in table(output)}
    assert values.pop("1.png") != values["0.png"]
    assert len(values) == 5
    for value in values.values():
        assert float(value) == pytest.approx(float(values["0.png"]), rel=1e-4)


def test_an_array_of_bytes_is_as_a_picture(run: Run, ask: Ask, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    for number, each in enumerate(pixels):
        save(tmp_path / "single" / f"{number}.png", each)
    np.save(tmp_path / "x.npy", pixels)
    np.savez_compressed(tmp_path / "xy.npz", x=pixels, y=np.arange(5))
    np.savez(tmp_path / "other.npz", a=pixels, b=pixels[:0])
    expected = [list(row.values())[1:] for row in table(ask(tmp_path / "single")[1])]
    for word in ("x.npy", "xy.npz", "other.npz:a"):
        status, output, _ = ask(tmp_path / word)
        assert status == 0
        rows = table(output)
        assert [row["row"] for row in rows] == list("01234")
        assert {row["file"] for row in rows} == {str(tmp_path / word)}
        assert [list(row.values())[2:] for row in rows] == expected


def test_names_come_from_folders_patterns_and_stdin(
    ask: Ask, two: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save(two / "deep" / "er" / "2.PNG", np.full((8, 8, 3), 9, np.uint8))
    (two / "notes.txt").write_text("not a picture")
    (two / ".hidden.png").write_text("")
    (two / "deep" / "circle").symlink_to(two)

    def names(output: str) -> list[str]:
        return [os.path.relpath(row["file"], two) for row in table(output)]

    everything = ["0.png", "1.png", "deep/er/2.PNG"]
    status, output, errors = ask(two)
    assert (status, names(output)) == (0, everything)
    assert "skipped 1 file of other kinds in folders" in errors
    (two / "deep" / "circle").unlink()
    assert names(ask(two / "[01].png")[1]) == everything[:2]
    assert names(ask(two / "**" / "*.PNG")[1])[:1] == everything[2:]
    save(two / "[01].png", np.full((8, 8, 3), 9, np.uint8))  # a name is itself before it is a pattern
    assert names(ask(two / "[01].png")[1]) == ["[01].png"]
    for separator in ("\n", "\0"):
        listed = separator.join(str(two / name) for name in everything) + separator
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
        assert names(ask("-")[1]) == everything
    monkeypatch.setattr("sys.stdin", None)  # closed
    assert ask("-")[2] == "error: -: no names on standard input\n"


def test_what_cannot_be_read_is_named_and_skipped(ask: Ask, two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (two / "text.png").write_text("not a picture")
    (two / "short.png").write_bytes((two / "0.png").read_bytes()[:60])
    (two / "empty.jpg").touch()
    (two / "link.png").symlink_to(two / "nowhere.png")
    (two / "self.png").symlink_to("self.png")
    os.mkfifo(two / "pipe.png")
    (two / "bomb.png").write_bytes(header_of_png(30_000, 30_000))
    names = "\n".join(str(two / name) for name in ("gone.png", "1.png"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(names.encode())))
    status, output, errors = ask(two, "-", "--out", two.parent / "found.csv")
    assert (status, output) == (1, "")
    assert [Path(row["file"]).name for row in table((two.parent / "found.csv").read_text())] == [
        "0.png", "1.png", "1.png",
    ]  # fmt: skip
    for name in ("text", "short", "link", "self", "pipe", "bomb", "gone"):
        assert len([line for line in errors.splitlines() if line.startswith(f"skipped {two / name}.png: ")]) == 1
    assert f"skipped {two / 'empty.jpg'}: not an image" in errors
    assert "decompression bomb" in errors
    assert errors.endswith("error: 8 inputs could not be read, as listed above; the others were predicted\n")
    assert "Traceback" not in errors


def header_of_png(width: int, height: int) -> bytes:
    """What a picture of a billion pixels begins with; nothing more is read of it."""

    def chunk(content: bytes) -> bytes:
        return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))

    header = chunk(b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT" + zlib.compress(bytes(1000)))


def test_nothing_that_can_be_read_leaves_the_older_file(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "old.csv").write_text("older")
    status, _, errors = ask(tmp_path / "a.png", "--out", tmp_path / "old.csv")
    assert status == 1
    assert errors.endswith("error: the input could not be read; see above\n")
    assert (tmp_path / "old.csv").read_text() == "older"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no inputs; give"),
        (["gone.png"], "gone.png: no such file or folder"),
        (["*.webp"], "*.webp: no such file or folder"),
        (["empty"], "empty: no input (.jpg"),
        (["-"], "-: no input (.jpg"),
        (["two", "--out", "x.txt"], "the suffix selects the format: .csv, .json, .jsonl, .npz"),
        (["two", "--out", "x.csv", "--json"], "contradict each other"),
        (["two", "--out", "nowhere/x.csv"], "x.csv: it is a folder, or in no folder that exists"),
        (["two", "--show", "x.jpg"], "the suffix selects the format: .png"),
        (["two/0.png", "--show", "two/0.png"], "two/0.png is one of the inputs and would be overwritten"),
        (["several.npz:a", "--out", "several.npz"], "several.npz is one of the inputs and would be overwritten"),
        (["two", "model.args.num_classes=4"], "do not match this model"),
        (["table.csv"], "takes images: files, or uint8 (H, W, 3) or (H, W); got the row of a table"),
        (["floats.npy"], "takes images: files, or uint8 (H, W, 3) or (H, W); got (3, 32, 32) float32"),
        (["single.npy"], "single.npy, row 0: (32, 3) uint8 is a row of pixels; save a single image as array[None]"),
        (["two", "--columns", "a"], "--columns names columns of a table, but no input is a table"),
        (["several.npz"], "several.npz: name the array, as in several.npz:a; it contains a, b"),
        (["several.npz:c"], 'several.npz: no array "c"; it contains a, b'),
        (["two", "optimizer.args.lr=5"], "override optimizer.args.lr=5: this command does not use optimizer.args.lr"),
        (["two", "trainer.epochs=5"], "override trainer.epochs=5: this command does not use trainer.epochs"),
        (["two", "metrics=[]"], "override metrics=[]: this command does not use metrics; leave it out"),
        (["two", "model.weights=other.pth"], "this command does not use model.weights; leave it out"),
        (["two", "loss=mse_loss"], "this command does not use loss; leave it out"),
        (["two", "runtime.timeout=5"], "this command does not use runtime.timeout; leave it out"),
        (["two", "data_loader.args.fold=1"], "this command does not use data_loader.args.fold; leave it out"),
        (["two", "data_loader.args.flip=true"], "this command does not use data_loader.args.flip; leave it out"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_message(
    ask: Ask, two: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(two.parent)
    Path("empty").mkdir()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"empty")))
    Path("table.csv").write_text("a,b\n1,2\n")
    np.save("floats.npy", np.zeros((2, 3, 32, 32), np.float32))
    np.save("single.npy", np.zeros((32, 32, 3), np.uint8))
    np.savez("several.npz", a=np.zeros(3), b=np.zeros(3))
    before = sorted(Path().rglob("*"))
    status, output, errors = ask(*words)
    assert (status, output) == (2, "")
    assert message in errors
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors
    assert sorted(Path().rglob("*")) == before


def test_names_are_text(ask: Ask, two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["=cmd|' C calc'!A0.png", 'a,"b"\n.png', "\x1b[31mred.png", "<script>.png", "고양이.png", "+1.png"]
    for name in names:
        shutil.copy(two / "0.png", two.parent / name)
    (two.parent / "\x1b[2Jbroken.png").touch()
    monkeypatch.chdir(two.parent)
    status, output, errors = ask(*names, "\x1b[2Jbroken.png", "--out", "names.csv")
    assert (status, output) == (1, "")
    assert "\x1b" not in errors
    assert "skipped \\x1b[2Jbroken.png: not an image" in errors
    text = Path("names.csv").read_bytes().decode()
    safe = [f"'{names[0]}", names[1], "\\x1b[31mred.png", *names[3:5], "'+1.png"]
    assert [row["file"] for row in table(text)] == safe
    assert "p_=2+2" in text.splitlines()[0]
    assert not any(cell.startswith(("=", "+", "@")) for row in table(text) for cell in row.values())
    assert ask(*names[:2], "--json")[0] == 0


def test_a_name_that_is_not_utf8_is_written(ask: Ask, two: Path) -> None:
    try:
        shutil.copy(os.fsencode(two / "0.png"), os.fsencode(two) + b"/\xff.png")
    except OSError:
        pytest.skip("the file system takes only UTF-8")
    status, output, _ = ask(two, "--json")
    assert status == 0
    assert os.fsencode(json.loads(output)[2]["file"]) == os.fsencode(two) + b"/\xff.png"


def test_json_and_npz_have_what_the_table_has(ask: Ask, two: Path, tmp_path: Path) -> None:
    rows = table(ask(two)[1])
    for name in ("x.json", "x.jsonl", "x.npz"):
        assert ask(two, "--out", tmp_path / name)[0] == 0
    records = json.loads((tmp_path / "x.json").read_text())
    assert [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()] == records
    assert json.loads(ask(two, "--json")[1]) == records
    with np.load(tmp_path / "x.npz") as arrays:
        for place, (row, record) in enumerate(zip(rows, records, strict=True)):
            assert record["file"] == row["file"] == arrays["file"][place]
            assert record["class"] == row["class"].lstrip("'") == arrays["class"][place]  # no formula in a table
            chances = [float(row[f"p_{name}"]) for name in record["probabilities"]]
            assert list(record["probabilities"].values()) == chances
            assert arrays["probabilities"][place].tolist() == np.array(chances, np.float32).tolist()
            assert record["probability"] == float(row["probability"])


def test_a_full_disk_leaves_the_older_file(
    ask: Ask, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old.csv", "old.json", "old.npz"):
        (tmp_path / name).write_text("older")

        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("utils.files.os.fsync", full)
            status, _, errors = ask(two, "--out", tmp_path / name)
        assert status == 2
        assert errors == f"error: {tmp_path / name} cannot be written: No space left on device\n"
        assert (tmp_path / name).read_text() == "older"
    monkeypatch.setattr("sys.stdout.write", full)
    status, _, errors = ask(two)
    assert (status, errors) == (2, "error: standard output cannot be written: No space left on device\n")
    assert not list(tmp_path.glob(".*"))


def test_the_reader_of_the_output_may_have_exited(ask: Ask, two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in predict.py ... | head."""

    def closed(*_: Any) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("sys.stdout.write", closed)
    status, _, errors = ask(two)
    assert (status, errors.startswith("2 predictions by")) == (0, True), errors


def test_a_signal_leaves_the_older_file(ask: Ask, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.csv").write_text("older")
    original = SignalWatch.check

    def check(self: SignalWatch) -> None:
        self.received = 15
        original(self)

    monkeypatch.setattr(SignalWatch, "check", check)
    status, _, errors = ask(two, "--out", tmp_path / "old.csv")
    assert (status, errors) == (143, "stopped; nothing was written\n")
    assert (tmp_path / "old.csv").read_text() == "older"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_processes_read_the_same(ask: Ask, two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    for number in range(8):
        save(two / f"more{number}.png", random.integers(0, 256, (33, 35, 3), dtype=np.uint8))
    (two / "broken.png").touch()
    monkeypatch.setattr(reading, "worker_count", lambda chunks: 2)
    alone = ask(two)
    monkeypatch.setattr(reading, "FEW", 2)
    monkeypatch.setattr(reading, "CHUNK", 3)
    shared = ask(two)
    assert alone[:2] == shared[:2]
    assert alone[0] == 1
    assert len(table(shared[1])) == 10


def test_the_picture_has_what_is_predicted(
    run: Run, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extras.predict import grid

    cells: list[Any] = []
    original = grid.grid

    def kept(drawn: Any, total: int) -> bytes:
        cells.extend(drawn)
        return original(drawn, total)

    monkeypatch.setattr(grid, "grid", kept)
    predict.main(["-r", str(run[0]), str(two), "--out", str(tmp_path / "x.csv"), "--show", str(tmp_path / "x.png")])
    rows = table((tmp_path / "x.csv").read_text())
    shares = [float(cell.above[0].split()[-1].rstrip("%")) / 100 for cell in cells]
    assert shares == pytest.approx([float(row["probability"]) for row in rows], abs=0.0051)
    assert [Path(row["file"]).name for row in rows] == [cell.below[-1] for cell in cells]
    assert [int(cell.picture.mean().round()) for cell in cells] == [20, 200]
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "PNG"


def test_long_names_in_the_picture_do_not_overlap(written: dict[str, float]) -> None:
    from extras.predict.grid import grid, shown
    from extras.predict.outputs import Field

    fields = [Field("class", ["zebra_very_long_name_of_a_class"] * 2), Field("probability", [0.36, 1.0])]
    grid(shown(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), ["a.png", "b.png"], fields, 0), 2)
    assert list(written) == ["Predictions", "zebra_very_l…s 36%", "a.png", "zebra_very_l… 100%", "b.png"]
    assert max(written.values()) <= picture_grid.COLUMN


def test_the_facts_are_kept_in_the_checkpoint(run: Run) -> None:
    data: Json = torch.load(run[0] / "checkpoints" / "best.pth", weights_only=True)["data"]
    assert data["first_batch"] == {
        "inputs": {"shape": [3, 32, 32], "dtype": "float32"},
        "outputs": {"shape": [3], "dtype": "float32"},
        "targets": {"shape": [], "dtype": "int64", "highest": 2},
    }
