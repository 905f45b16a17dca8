"""sweep.py with real trials: each is a run like any other, and a sweep that is killed ends as one that is not."""

import contextlib
import io
import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import train
from extras.compare import compare
from extras.sweep.results import Result
from tests import forked
from tests.campaign import differences, wait_for
from tests.conftest import load_script, small_config
from tests.helpers import PATIENCE, ROOT, lines
from utils import cli

pytestmark = pytest.mark.slow

sweep = load_script("sweep")
SPACES = ("optimizer.args.lr=0.1,1e30", "seed=0..1", "--jobs", "2")
NOTE = "-<b>wider</b>"
TRAINER = {"epochs": 3, "monitor": "min val_loss", "save_every_steps": 2, "tensorboard": True}


@dataclass
class Done:
    """A sweep that nobody disturbed."""

    config: Path
    result: Result
    printed: str

    @property
    def folder(self) -> Path:
        return self.result.folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("sweep")
    config = small_config(folder, trainer=TRAINER)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        result = sweep.main(["-c", str(config), *SPACES, f"--note={NOTE}"])
    return Done(config, result, printed.getvalue())


def start(*words: str) -> forked.Process:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return forked.Process("sweep.py", *words, cwd=ROOT, env=environment, session=True)


def outcomes(folder: Path) -> list[Any]:
    """Without the times."""
    found = [json.loads((path / "outcome.json").read_text()) for path in sorted(folder.glob("trial-*"))]
    return [{**outcome, "seconds": 0} for outcome in found]


def test_a_trial_is_the_run_that_train_makes(done: Done, tmp_path: Path) -> None:
    overrides = ["optimizer.args.lr=0.1", "seed=1", f"trainer.save_dir={tmp_path}"]
    alone = train.main(["-c", str(done.config), *overrides]).run_dir
    trial = done.folder / "trial-001"
    assert lines(trial) == lines(alone)
    config, other = (json.loads((run / "config.json").read_text()) for run in (trial, alone))
    assert {**config, "trainer": 0} == {**other, "trainer": 0}
    named = {path.name for path in alone.iterdir() if "tfevents" not in path.name}
    assert named <= {path.name for path in trial.iterdir()}
    assert "it starts from the beginning" not in (trial / "train.log").read_text()


def test_what_it_says(done: Done) -> None:
    first, *_ = done.printed.splitlines()
    assert first == "small: 4 trials of a grid, 2 at once, compared by min val_loss"
    assert "done: 4 trials, 2 failed" in done.printed
    assert [outcome["state"] for outcome in outcomes(done.folder)] == ["complete"] * 2 + ["failed"] * 2
    assert "loss" in outcomes(done.folder)[3]["reason"]
    assert "95% interval" in done.printed


def test_its_note_is_that_of_its_trials(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"  note: {NOTE}" in done.printed
    for path in done.folder.glob("trial-*"):
        assert json.loads((path / "environment.json").read_text())["note"] == NOTE
    assert "Note: -&lt;b&gt;wider&lt;/b&gt;" in (done.folder / "report.html").read_text()
    copy = shutil.copytree(done.folder, tmp_path / "sweep")
    for words, shown in (([], NOTE), (["--note", "narrow"], "narrow"), (["--note", ""], None)):
        assert cli.run(sweep.main, ["-r", str(copy), *words]) == 0
        printed = capsys.readouterr().out
        assert ("  note: " in printed) == (shown is not None)
        assert shown is None or f"  note: {shown}\n" in printed


def test_the_best_config_trains(done: Done, tmp_path: Path) -> None:
    """That of the first seed: neither is better than the other."""
    result = train.main(["-c", str(done.folder / "best.json"), f"trainer.save_dir={tmp_path}"])
    assert result.best == next(outcome["value"] for outcome in outcomes(done.folder) if outcome["state"] == "complete")


def test_trials_are_compared_and_shown_as_runs(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare([done.folder], tmp_path)
    assert "trial-000" in capsys.readouterr().out
    assert all(list(path.glob("events.out.tfevents.*")) for path in done.folder.glob("trial-*"))


def test_a_finished_sweep_does_nothing(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    before = outcomes(done.folder)
    assert cli.run(sweep.main, ["-r", str(done.folder)]) == 0
    assert outcomes(done.folder) == before
    assert "4 done" in capsys.readouterr().out


def test_a_ctrl_c_while_the_server_of_the_trials_starts(tmp_path: Path) -> None:
    process = start("-c", str(small_config(tmp_path, trainer=TRAINER)), *SPACES)
    wait_for(lambda: bool(list(tmp_path.glob("saved/small/sweep-*/trial-*"))), process)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(PATIENCE)
    assert process.returncode == 130, errors
    assert "To continue the sweep:" in errors
    assert "Traceback" not in output + errors


def test_trials_have_worker_processes(tmp_path: Path) -> None:
    config = str(small_config(tmp_path, trainer=TRAINER))
    process = start("-c", config, "seed=0,1", "trainer.epochs=1", "data_loader.args.num_workers=1")
    output, errors = process.communicate(PATIENCE)
    assert process.returncode == 0, errors
    assert "done: 2 trials, in" in output


def test_killed_in_the_middle(done: Done, tmp_path: Path) -> None:
    config = small_config(tmp_path, trainer=TRAINER)
    process = start("-c", str(config), *SPACES, f"--note={NOTE}")

    def checkpoints() -> set[Path]:
        return set(tmp_path.glob("saved/small/sweep-*/trial-*/checkpoints/step-*.pth"))

    def wait_for_a_new_one(before: set[Path]) -> Path:
        wait_for(lambda: bool(checkpoints() - before), process)
        assert process.poll() is None, process.printed
        return (checkpoints() - before).pop()

    path = wait_for_a_new_one(set()).parent.parent.parent
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)
    before = checkpoints()  # those of the second process show that it has begun
    process = start("-r", str(path))
    wait_for_a_new_one(before)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(PATIENCE)
    assert process.returncode == 143
    assert f"python sweep.py -r {path}" in errors
    assert "Traceback" not in output + errors

    assert cli.run(sweep.main, ["-r", str(path)]) == 0
    assert outcomes(path) == outcomes(done.folder)
    for name in ("trial-000", "trial-001"):
        assert differences(path / name, done.folder / name) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a sweep needs a space: KEY=SPACE"),
        (["--trials", "3"], "--trials 3 needs a space"),
        (["seed=[0,1]"], "a single value, as in seed=[0,1], applies to all trials"),
        (["optimizer.args.lr=1,2,3", "--trials", "4"], "there are only 3 combinations; a grid runs each of them once"),
        (["seed=0..4", "optimizer.args.lr=log:1e-4..1", "--trials", "3"], "--trials would pick the luckiest one"),
        (["seed=0..2", "--jobs", "0"], "--jobs 0: must be at least 1"),
        (["seed=0..2", "--trials", "0"], "--trials 0: must be at least 1"),
        (["optimizer.args.lr=log:1e-4..1"], "set how many to try with --trials N"),
        (["seed=0..2", "--sampler", "random"], "--sampler random needs the number of trials"),
        (["seed=0..2", "trainer.monitor=null"], "trainer.monitor is null"),
        (["loss.args.label_smoothing=0,0.1", "loss.type=cross_entropy"], "cannot be compared by val_loss; monitor a"),
        (["seeds=0..2"], 'did you mean "seed"?'),
        (["-r", "nowhere"], "nowhere is not the folder of a sweep"),
        (["-r", "RUN"], "trial-000 is not the folder of a sweep: it has no sweep.json"),
        (["-r", "SWEEP", "--trials", "9"], "is a grid; --trials cannot change that"),
        (["-r", "SWEEP", "--sampler", "tpe"], "-r continues a sweep as it is"),
        (["-r", "SWEEP", "seed=0..5"], "-r continues a sweep as it is"),
        (["-r", "SWEEP", "-c", "CONFIG"], "-r continues a sweep as it is"),
    ],
)
def test_mistakes(done: Done, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    places = {"RUN": done.folder / "trial-000", "SWEEP": done.folder, "CONFIG": done.config}
    named = [str(places.get(word, word)) for word in words]
    before = outcomes(done.folder)
    given = named if "-r" in named else ["-c", str(done.config), *named]
    assert cli.run(sweep.main, given) == 2
    assert message in capsys.readouterr().err
    assert outcomes(done.folder) == before
    assert len(list(done.folder.parent.iterdir())) == 1


def test_a_damaged_folder_is_named(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = json.loads((done.folder / "sweep.json").read_text())
    for number, (name, content, message) in enumerate(
        (
            ("sweep.json", "{", "sweep.json is damaged"),
            ("sweep.json", json.dumps({**whole, "monitor": 3}), "sweep.json is damaged"),
            ("trial-002/trial.json", "{", "remove the folder of this trial to run it again"),
            ("trial-002/trial.json", "{}", "trial.json is damaged"),
            ("trial-002/outcome.json", '{"state": "done"}', "outcome.json is damaged"),
        )
    ):
        copy = shutil.copytree(done.folder, tmp_path / str(number) / "sweep")
        (copy / name).write_text(content)
        assert cli.run(sweep.main, ["-r", str(copy)]) == 2
        assert message in capsys.readouterr().err
