"""curves.png of a run: what is on it, that it follows metrics.jsonl, and that nothing about it can harm a training."""

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import train
from extras.curves import CurvesWriter, curves_writer, picture
from extras.letters import readable, shortened
from extras.records import charts
from tests.helpers import Fit
from utils.distributed import process_group as processes
from utils.files import atomic_write

pytestmark = pytest.mark.usefixtures("curves_picture")

Numbers = list[float | None]


def records(**values: Numbers) -> list[dict[str, float | None]]:
    count = len(next(iter(values.values())))
    return [
        {"epoch": epoch + 1, "step": 10 * epoch, **{name: line[epoch] for name, line in values.items()}, "seconds": 1.0}
        for epoch in range(count)
    ]


def pixels(content: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    image = Image.open(io.BytesIO(content))
    image.load()
    return np.asarray(image.convert("RGB"))


def drawn(colour: str, image: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    """Pixels that have exactly this colour."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((image == wanted).all(2).sum())


def written(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> list[str]:
    """The texts on a picture."""
    texts: list[str] = []
    original = ImageDraw.ImageDraw.text

    def text(self: Any, at: Any, words: str, **style: Any) -> None:
        texts.append(words)
        original(self, at, words, **style)

    with monkeypatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", text)
        picture.draw(*arguments, **options)
    return texts


def test_training_and_validation_share_a_chart() -> None:
    ones: Numbers = [1.0]
    found = charts(
        records(
            accuracy=ones, loss=ones, kl=ones, top_k_accuracy=ones, val_loss=ones, val_accuracy=ones,
            val_top_k_accuracy=ones, val_day_loss=ones, val_day_accuracy=ones, val_f1=ones, lr=ones, lr_backbone=ones,
            samples_per_second=ones,
        )
    )  # fmt: skip
    assert found == {
        "loss": {"train": "loss", "valid": "val_loss", "valid day": "val_day_loss"},
        "accuracy": {"train": "accuracy", "valid": "val_accuracy", "valid day": "val_day_accuracy"},
        "kl": {"train": "kl"},
        "top_k_accuracy": {"train": "top_k_accuracy", "valid": "val_top_k_accuracy"},
        "f1": {"valid": "val_f1"},
        "learning rate": {"lr": "lr", "backbone": "lr_backbone"},
    }


def test_each_metric_has_a_panel_with_both_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    data = records(loss=[3.0, 2.0, 1.0], val_loss=[3.5, 2.25, 2.75], accuracy=[0.1, 0.2, 0.3], lr=[0.1, 0.1, 0.1])
    image = pixels(picture.draw(data, title="small/run", monitor="min val_loss"))
    assert image.shape == (34 + 300, 1000, 3), "two panels side by side, and none for a learning rate that never moves"
    left, right = image[:, :500], image[:, 500:]
    assert drawn("#0072B2", left) > 300
    assert drawn("#D55E00", left) > 300
    assert drawn("#0072B2", right) > 300
    assert not drawn("#D55E00", right)
    texts = written(monkeypatch, data, title="small/run", monitor="min val_loss")
    assert {"small/run", "loss", "best 2.250 in epoch 2", "train 1.000", "valid 2.750", "accuracy"} <= set(texts)


def test_the_learning_rate_is_named_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule by steps may have its peak within an epoch, which no point shows."""
    texts = written(monkeypatch, records(loss=[3.0, 2.0], lr=[0.1, 0.01]), title="a")
    assert "learning rate (end of epoch)" in texts


def test_a_gap_is_left_where_a_value_is_missing() -> None:
    whole = pixels(picture.draw(records(loss=[1.0] * 9), title="a"))
    gap = pixels(picture.draw(records(loss=[1.0, 1.0, *[None] * 5, 1.0, 1.0]), title="a"))
    assert drawn("#0072B2", gap) < 0.7 * drawn("#0072B2", whole)


@pytest.mark.parametrize(
    "values",
    [
        [1.0], [None], [0.0, 0.0], [5e-324, 1e-300, 1e300], [1e299, -1e299], [1e150, 1e-150], [math.inf, 1.0],
        [1.0, 1.0 + 2**-52], [-1e-300, 0.0], [10.0 ** (-place / 4) for place in range(60)],
        [math.sin(place) for place in range(5000)],
    ],
)  # fmt: skip
def test_any_numbers_can_be_drawn(values: Numbers) -> None:
    pixels(picture.draw(records(loss=values, val_loss=values), title="a", monitor="min val_loss"))


def test_letters_that_the_font_lacks_are_spelt_or_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extras.pen._eastern_font", lambda size: None)
    name = "고양이\x1b[31m<b>"
    data: list[dict[str, float | None]] = [{"epoch": 1, name: 1.0, "val_漢字": 2.0}]
    texts = written(monkeypatch, data, title=f"{name}/run")
    assert texts[0] == "goyangi\\x1b[31m<b>/run"
    assert "goyangi\\x1b[31m<b>" in texts
    assert "(letters of no font here)" in texts


def test_names_are_spelt_in_letters_that_a_font_has() -> None:
    latin = str.isascii
    assert readable("고양이 A", latin, "?") == readable("\u1100\u1169양이 A", latin, "?") == "goyangi A"
    assert readable("カ漢", latin, "?") == "?"
    assert readable("two\nlines\udcff", latin, "?") == "two lines\\udcff"
    assert shortened("a" * 30 + "end12", 16) == "aaaaaaaaaa…end12"


def test_the_picture_follows_metrics_jsonl_over_a_resume(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves_writer, "PICTURE", "curves.png")
    run = fit("trainer.epochs=1").run_dir
    first = (run / "curves.png").read_bytes()
    with (run / "metrics.jsonl").open("a") as file:  # of an epoch that no checkpoint has
        file.write(json.dumps({"epoch": 2, "step": 10, "loss": 9.0}) + "\n")
    train.main(["-r", str(run)])
    assert (run / "curves.png").read_bytes() == first
    train.main(["-r", str(run), "trainer.epochs=3"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    title = f"{run.parent.name}/{run.name}"
    assert (run / "curves.png").read_bytes() == picture.draw(lines, title=title) != first


def test_a_short_epoch_is_drawn_at_the_end_and_a_long_one_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("extras.curves.curves_writer.time.perf_counter", lambda: now)
    drawings: list[float] = []
    monkeypatch.setattr(curves_writer, "curves_png", lambda *_: drawings.append(now))
    writer = CurvesWriter(tmp_path, monitor=None, warn=pytest.fail)
    for expected in (0, 0, 0, 0, 1, 1):
        now += 1
        writer.epoch({})
        assert len(drawings) == expected
    writer.flush()
    writer.flush()
    assert len(drawings) == 2
    now += 60
    writer.epoch({})
    assert len(drawings) == 3


@pytest.mark.parametrize("kind", ["folder", "Pillow"])
def test_nothing_about_it_breaks_a_training(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    if kind == "folder":
        monkeypatch.setattr(curves_writer, "PICTURE", "checkpoints")
    else:
        monkeypatch.setitem(sys.modules, "extras.curves.picture", None)
    monkeypatch.setattr(CurvesWriter, "PAUSE", 0)
    result = fit("trainer.epochs=3")
    assert result.epochs == 3
    warnings = [line for line in capsys.readouterr().err.splitlines() if "curves" in line or "checkpoints" in line]
    assert len(warnings) == 1
    assert "cannot be written: " in warnings[0]
    assert warnings[0].endswith("the training continues without it")
    assert not (result.run_dir / "curves.png").exists()
    assert not list(result.run_dir.glob(".*.tmp"))


def test_a_run_without_an_epoch_has_no_picture(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "curves.png") as file:
        file.write(b"older")
    writer = CurvesWriter(tmp_path, monitor=None, warn=pytest.fail)
    writer.resume({}, step=0)
    writer.flush()
    assert not list(tmp_path.iterdir())


def test_only_the_main_process_draws(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.ProcessGroup, "is_main_process", property(lambda self: False))
    assert not list(fit("trainer.epochs=1").run_dir.glob("curves*"))
