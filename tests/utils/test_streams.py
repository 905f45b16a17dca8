"""Output that nobody takes, in any encoding, with names that would steer a terminal: nothing fails or gets through."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import train
from logger.console import Console, styled
from tests import forked
from tests.helpers import PATIENCE, ROOT, needs_extra
from utils import cli
from utils.errors import UserError
from utils.signals import SignalWatch
from utils.streams import _hidden_module, say
from utils.text import printable

Write = Callable[..., Path]
EVIL = "a\x1b]0;title\x07\x1b[2J\x1b[31mred\r\b\x9bmü\u202e"
SHOWN = "a\\x1b]0;title\\x07\\x1b[2J\\x1b[31mred\\r\\x08\\x9bmü\\u202e"


def test_control_characters_are_shown_and_styles_stay() -> None:
    assert printable(EVIL) == SHOWN
    assert printable(f"{styled('good', 'good')}\n\t실험") == f"{styled('good', 'good')}\n\t실험"


def test_no_message_carries_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(1)
    console.open(tmp_path / "train.log")
    console.info(EVIL)
    console.warn(EVIL)
    console.close()
    captured = capsys.readouterr()
    assert captured.out == f"{SHOWN}\n"
    assert captured.err == f"warning: {SHOWN}\n"
    assert "\x1b" not in (tmp_path / "train.log").read_text()

    def fail(_: object) -> None:
        raise UserError(EVIL)

    assert cli.run(fail) == 2
    assert capsys.readouterr().err == f"error: {SHOWN}\n"


@pytest.mark.slow
def test_a_traceback_carries_none_either() -> None:
    code = "from utils.streams import prepare_streams as p; p(); raise ValueError('a\\x1b[2Jb')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("\nValueError: a\\x1b[2Jb\n")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("torch", 2), ("torch.mine", 1)])
def test_a_required_package_that_is_not_installed_is_named(name: str, status: int) -> None:
    code = f"from utils.streams import prepare_streams as p; p(); raise ModuleNotFoundError('No', name='{name}')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert ("Traceback" in done.stderr) == (status == 1)
    assert done.stderr.startswith("error: torch is not installed; activate the project's") == (status == 2)


@pytest.mark.parametrize(("name", "hidden"), [("email", "email"), ("own", None)])
def test_only_a_file_that_hides_a_module_is_to_be_renamed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, hidden: str | None
) -> None:
    module = ModuleType(name)
    module.__file__ = str(tmp_path / f"{name}.py")
    monkeypatch.setitem(sys.modules, name, module)
    errors = (ImportError(name=f"{name}.message"), AttributeError(obj=module))
    for folder in (tmp_path, ROOT):
        monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
        assert {_hidden_module(error) for error in errors} == {hidden if folder == tmp_path else None}


def test_a_component_with_such_a_name(write_config: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(train.main, ["-c", str(write_config(loss=EVIL))]) == 2
    assert not {"\x1b", "\x07", "\x9b"} & set(capsys.readouterr().err)


def test_streams_that_are_none(write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ["-c", str(write_config()), "trainer.verbosity=2"]
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.run(train.main, config) == 0
    assert cli.run(train.main, [*config, "x=1"]) == 2


def shell(command: str, *python: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """A line of bash; $T stands for train.py, run by this python."""
    made = {**os.environ, "OMP_NUM_THREADS": "1", "T": " ".join([*python, str(ROOT / "train.py")]), **environment}
    return subprocess.run(["bash", "-c", command], env=made, capture_output=True, timeout=PATIENCE, check=False)


@pytest.mark.slow
def test_a_name_that_the_encoding_does_not_have(write_config: Write) -> None:
    done = shell(f"$T -c {write_config(name='실험')} trainer.epochs=1", sys.executable, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert done.stdout.startswith(b"\\uc2e4\\ud5d8\n")


@needs_extra("schema")
def test_a_result_that_cannot_be_printed_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(UserError, match="standard output cannot be written: No space left on device"):
        train.main(["--list", "LeNet"])


def test_a_broken_pipe_is_ignored_only_on_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):  # of a process that reads data, say
        cli.run(broken)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr("sys.stdout.flush", broken)
    say("nobody reads this")


@pytest.mark.slow
@pytest.mark.parametrize(
    "streams",
    [">&-", "<&- >&- 2>&-", ">/dev/full", "| head -1", ">/dev/full 2>/dev/full"],
)
def test_nobody_takes_the_output(write_config: Write, tmp_path: Path, streams: str) -> None:
    command = f"$T -c {write_config()} trainer.epochs=1"
    # only a process of its own begins without a stream
    python = (sys.executable,) if "&-" in streams else forked.PYTHON
    done = shell(f"set -o pipefail; {command} {streams}", *python, **{forked.VARIABLE: forked.server()})
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    [run] = (tmp_path / "saved" / "small").iterdir()
    assert json.loads((run / "metrics.jsonl").read_text())["epoch"] == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU])
def test_a_signal_is_taken_only_where_nobody_else_has_it(number: signal.Signals) -> None:
    def mine(*_: object) -> None:
        pass

    before = signal.getsignal(number)
    try:
        for taken in (signal.SIG_IGN, mine):  # nohup, or a project's own use
            signal.signal(number, taken)
            with SignalWatch():
                assert signal.getsignal(number) == taken
        signal.signal(number, signal.SIG_DFL)
        with SignalWatch() as watch:
            os.kill(os.getpid(), number)
            assert watch.received == number
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_ctrl_c_ends_a_script_of_the_users_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """As k_fold.py of docs/recipes/k_fold.md, which leaves the signals to Python."""

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    assert cli.run(interrupted) == 130
    assert capsys.readouterr().err == "stopped immediately; earlier checkpoints are intact\n"


def test_an_error_leaves_sigterm_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: object) -> None:
        raise UserError("wrong")

    before = signal.getsignal(signal.SIGTERM)
    assert cli.run(fail) == 2
    assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().err == "error: wrong\n"


def test_two_sigints_at_once_are_one(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    monkeypatch.setattr("utils.signals.time.monotonic", lambda: now[0])
    with SignalWatch() as watch:
        for moment in (100.0, 100.1, 100.49):
            now[0] = moment
            os.kill(os.getpid(), signal.SIGINT)
        assert watch.received == signal.SIGINT
        now[0] = 100.6
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert "stopped immediately" in capfd.readouterr().err
