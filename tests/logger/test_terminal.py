"""What a run shows in a terminal, in a file, and where neither bar nor colour is wanted."""

import contextlib
import errno
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

import train
from base.base_trainer import BaseTrainer
from extras.tensorboard import curves_address
from logger.console import Console
from tests.conftest import load_script
from tests.helpers import Fit
from tests.helpers import lines as records
from utils import cli
from utils.errors import DataError, Stopped
from utils.run_folder import RunFolder
from utils.streams import clear_loading

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
METRICS: list[Any] = ["accuracy", {"type": "top_k_accuracy", "args": {"k": 2}}]


class Terminal:
    """A pseudo-terminal of a width. What was written to it, and the lines that are on it at the end."""

    def __init__(self, columns: int) -> None:
        self.columns, self.written = columns, ""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self._chunks: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # how Linux says that nobody holds the other side any more
            while chunk := os.read(self._master, 65536):
                self._chunks.append(chunk)

    def close(self) -> None:
        self.stream.close()
        self._reader.join()
        os.close(self._master)
        self.written = b"".join(self._chunks).decode()

    def screen(self) -> list[str]:
        """The lines at the end. Only text, colours and carriage returns may have been written."""
        done, line, column = [], "", 0
        for character in COLOUR.sub("", self.written):
            if character == "\n":
                done.append(line.rstrip())
                line, column = "", 0
            elif character == "\r":
                column = 0
            else:
                assert character.isprintable(), repr(character)
                line = line[:column] + character + line[column + 1 :]
                column += 1
        return [*done, line.rstrip()]

    def drawn(self) -> list[str]:
        """Everything that stood in a line before the next carriage return, bars too."""
        pieces = re.split(r"[\r\n]+", COLOUR.sub("", self.written))
        return [piece.rstrip() for piece in pieces if piece.strip()]


@contextmanager
def terminal(
    monkeypatch: pytest.MonkeyPatch, columns: int = 80, environment: Mapping[str, str] = {}
) -> Iterator[Terminal]:
    """Standard output and error on a terminal, with a bar that is drawn at every step and batch."""
    for name, value in {"TERM": "xterm-256color", "NO_COLOR": "", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("logger.console.INTERVAL", 0.0)
    monkeypatch.setattr("logger.console.DELAY", 0.0)
    made = Terminal(columns)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", made.stream)
        patch.setattr(sys, "stderr", made.stream)
        try:
            yield made
        finally:
            made.close()


def log(run: Path) -> list[str]:
    """train.log without its times."""
    return [line[20:] if line[:4].isdigit() else line for line in (run / "train.log").read_text().splitlines()]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Paths as a user sees them, short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("tensorboard")
def test_a_terminal_of_80_columns(fit: Fit, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as shown:
        result = fit("trainer.verbosity=2", "trainer.epochs=3", "trainer.monitor=min val_loss", metrics=METRICS)
    run = result.run_dir.relative_to(home)
    screen = shown.screen()
    assert screen[:7] == [
        "small",
        "  model     TwoLayerNet, 53 parameters",
        "  data      RandomTensorLoader, 40 samples for training, 10 for validation",
        "  training  SGD, 3 epochs of 5 steps",
        "  monitor   val_loss (lower is better)",
        "  device    cpu, fp32",
        f"  run       {run}",
    ]
    assert screen[7:9] == [
        "             loss              accuracy         top_k_accuracy",
        "epoch     train     valid     train     valid     train     valid   time",
    ]
    best = min(records(result.run_dir), key=lambda record: record["val_loss"])
    for record, row in zip(records(result.run_dir), screen[9:12], strict=True):
        cells = row.split()
        assert cells[0] == f"{record['epoch']}/3"
        assert [float(cell) for cell in cells[1:3]] == pytest.approx([record["loss"], record["val_loss"]], rel=1e-3)
    assert screen[8 + best["epoch"]].endswith(" best")
    script = os.path.relpath(Path(train.__file__).parent / "test.py")
    script = str(Path(train.__file__).parent / "test.py") if script.startswith("..") else script
    assert screen[12:] == [
        "done after 3 epochs, 15 steps",
        f"  best      val_loss = {best['val_loss']:#.4g} in epoch {best['epoch']}",
        f"  run       {run}",
        f"  test      python {script} -r {run}",
        "  view      tensorboard --logdir saved/small",
        f"            {curves_address('min val_loss', ('loss', 'val_loss'))}",
        "",
    ]
    assert log(result.run_dir) == screen[:-1]
    assert COLOUR.search(shown.written)


def test_the_bar_shows_progress_loss_best_value_speed_and_eta(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, columns=100) as shown:
        fit("trainer.verbosity=2", "trainer.epochs=3", "trainer.monitor=min val_loss", "trainer.early_stop=2")
    bar = re.compile(
        r"epoch 2/3  40% \|.*\| loss \d\.\d+  best val_loss \d\.\d+  [\d.]+[kMG]? samples/s  ETA 00:\d\d, run 00:\d\d"
    )
    assert any(bar.fullmatch(line) for line in shown.drawn())
    assert any(re.fullmatch(r"evaluating  50% \|.*\| ETA 00:\d\d", line) for line in shown.drawn())


def test_a_terminal_shows_at_once_that_a_command_is_loading(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "trainer.epochs=1"])
    with terminal(monkeypatch) as shown:
        cli.answer_early(train.__doc__)
        clear_loading()
    assert shown.drawn() == ["loading ..."]
    assert shown.screen() == [""]
    cli.answer_early(train.__doc__)
    clear_loading()
    assert capsys.readouterr().out == "", "a file needs no such line"


@pytest.mark.parametrize("columns", [44, 60, 80, 200])
def test_nothing_is_wider_than_the_terminal(
    fit: Fit, home: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    long = {"type": "top_k_accuracy", "name": "accuracy_of_the_two_most_probable_classes", "args": {"k": 2}}
    with terminal(monkeypatch, columns) as shown:
        fit("trainer.verbosity=2", "trainer.monitor=max val_accuracy", metrics=["accuracy", long])
    drawn = shown.drawn()
    first, last = (
        next(i for i, line in enumerate(drawn) if line.startswith(start)) for start in ("  run ", "done after")
    )
    assert max(map(len, drawn[first + 1 : last])) < columns
    assert max(len(line) for line in drawn if "% |" in line) <= columns - 2, "no room for the echo of ^C"


def test_a_terminal_that_does_not_know_its_size_has_80_columns(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, columns=0) as shown:
        fit("trainer.verbosity=2", metrics=METRICS)
    bars = [line for line in shown.drawn() if "% |" in line]
    assert 60 < max(map(len, bars)) <= 78


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_plain_text_where_it_is_asked_for(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    with terminal(monkeypatch, environment=environment) as shown:
        result = fit("trainer.verbosity=2", "trainer.epochs=1")
    text = shown.written.replace("\r\n", "\n")  # the terminal's own doing
    assert all(character.isprintable() or character == "\n" for character in text)
    assert re.search(r"^epoch 1/1  step 2/5  loss ", text, flags=re.MULTILINE)
    assert log(result.run_dir) == text.splitlines()


@pytest.mark.parametrize("verbosity", [0, 1, 2])
def test_verbosity(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verbosity: int
) -> None:
    """In a terminal and in a file: warnings only; a line an epoch; what happens within it too."""
    with terminal(monkeypatch) as shown:
        fit(f"trainer.verbosity={verbosity}")
    result = fit(f"trainer.verbosity={verbosity}")
    printed = capsys.readouterr().out
    assert ("% |" in shown.written) == (verbosity == 2)
    assert ("step 2/5" in printed) == (verbosity == 2)
    assert (" 2/2 " in shown.written) == (" 2/2 " in printed) == (verbosity > 0)
    assert "\x1b" not in printed
    assert "\r" not in printed
    if verbosity == 0:
        assert shown.written == printed == ""
    else:
        assert log(result.run_dir) == printed.splitlines()


def test_a_resumed_run_continues_its_table(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = BaseTrainer.optimizer_step

    def stop(self: BaseTrainer, group: Any) -> Any:
        loss = original(self, group)
        if self.progress.steps == 7:
            self.experiment.signals.received = signal.SIGTERM
        return loss

    with monkeypatch.context() as patch, terminal(monkeypatch) as first:
        patch.setattr(BaseTrainer, "optimizer_step", stop)
        with pytest.raises(Stopped):
            fit("trainer.verbosity=2")
    assert first.screen()[-4].split()[0] == "1/2"
    assert first.screen()[-3] == "warning: stopped and saved in epoch 2, after step 7. To resume:"
    run = RunFolder.newest(str(tmp_path / "saved"), "small")
    with terminal(monkeypatch) as second:
        train.main(["-r", str(run.path)])
    screen = second.screen()
    at = screen.index("  resuming  from step 7, in epoch 2")
    assert screen[at + 2].split()[0] == "epoch"
    assert screen[at + 3].split()[0] == "2/2"
    assert [line for line in second.drawn() if re.search(r"2/2  40% ", line)], (
        "the bar starts at the step of the checkpoint"
    )
    assert not [line for line in second.drawn() if re.search(r"2/2   0% ", line)]


def test_nan_is_shown_in_its_column(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("base.training.metrics.Mean.compute", lambda self: float("nan"))
    with terminal(monkeypatch) as shown:
        fit("trainer.verbosity=2", "trainer.epochs=1", "trainer.monitor=max accuracy")
    row = next(line for line in shown.screen() if line.startswith("  1/1"))
    assert row.split()[1:5] == ["nan"] * 4
    assert not row.endswith("best")


@pytest.mark.slow
def test_testing_leaves_no_bar_behind(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    result = fit()
    with terminal(monkeypatch) as shown:
        load_script("test").main(["-r", str(result.run_dir), "trainer.verbosity=2"])
    assert any(line.startswith("evaluating") for line in shown.drawn())
    assert "evaluating" not in "".join(shown.screen())
    found = json.loads((result.run_dir / "test" / "metrics.json").read_text())
    assert found["samples"] == 20


class Echo(io.StringIO):
    """A terminal whose user types ^C, or makes it narrower, while a bar is shown."""

    columns = 80
    echoed = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        count = super().write(text)
        if "40% |" in text and not self.echoed:
            self.echoed = True
            super().write("^C")
            self.columns = 50
        return count


def test_nothing_is_left_of_a_bar_that_was_typed_into_and_made_narrower(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Echo()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(Console, "width", property(lambda self: stream.columns))
    monkeypatch.setattr("logger.console.INTERVAL", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    fit("trainer.verbosity=2", "trainer.epochs=1")
    text = COLOUR.sub("", stream.getvalue())
    before, after = text.split("^C", 1)
    assert max(map(len, re.split(r"[\r\n]", after.split("done after")[0]))) < 50
    line, column = list(before.rpartition("\n")[2].rpartition("\r")[2] + "^C"), 0
    assert len(line) < 80
    screen = ""
    line = line[:49]  # what a narrower terminal cuts off is gone
    for character in after.partition("\n")[0]:
        column = 0 if character == "\r" else column
        if character != "\r":
            line[column : column + 1] = [character]
            column += 1
    screen = "".join(line)
    assert "^C" not in screen
    assert "|" not in screen


class Gone(io.StringIO):
    """A terminal that somebody closed."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.usefixtures("tensorboard")
def test_a_terminal_that_is_gone_does_not_stop_a_run(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr("logger.console.INTERVAL", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    result = fit("trainer.verbosity=2")
    assert result.epochs == 2
    assert log(result.run_dir)[-2] == f"  view      tensorboard --logdir {result.run_dir.parent}"


def test_an_error_takes_the_bar_away(write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: BaseTrainer) -> None:
        raise DataError("the disk is gone")

    monkeypatch.setattr(BaseTrainer, "validate", fail)
    with terminal(monkeypatch) as shown:
        assert cli.run(train.main, ["-c", str(write_config()), "trainer.verbosity=2"]) == 2
    assert any("100% |" in line for line in shown.drawn())
    assert shown.screen()[-2:] == ["error: the disk is gone", ""]


class OutStream(io.StringIO):
    """The output of a notebook's cell: no terminal, but a carriage return goes back to the start of the line there."""


OutStream.__module__ = "ipykernel.iostream"


def test_a_notebook_has_one_line_that_is_redrawn(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = OutStream()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr("logger.console.INTERVAL", 0)
    fit("trainer.verbosity=2")
    written = stream.getvalue()
    assert "\x1b" not in written
    assert re.search(r"\repoch 1/2 .*\|.*\r", written)
    shown = re.sub(r".*\r(?=[^\n])", "", written).splitlines()  # as notebooks do it
    assert not [line for line in shown if line.startswith("epoch ") and "|" in line]
    assert len([line for line in shown if re.match(r"  [12]/2 ", line)]) == 2
    assert max(len(line) for line in re.split("[\r\n]", written) if "|" in line) <= 80


def test_a_bar_needs_no_other_process() -> None:
    """A lock for several processes starts one from Python 3.14 on, which would hold the terminal open."""
    assert type(tqdm.get_lock()) is type(threading.RLock())
