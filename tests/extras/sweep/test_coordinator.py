"""How trials are claimed, restarted and recorded, with trials that only write what a training would."""

import csv
import io
import itertools
import json
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from extras.sweep import coordinator as module
from extras.sweep.display import Display
from extras.sweep.results import Result, conclude, repeated, t_quantile
from extras.sweep.sweep_folder import Outcome, Spec, SweepFolder, Trial, rank
from extras.sweep.trial_process import Progress, Running
from tests import forked
from tests.extras.sweep.made_up import (
    SIGKILL,
    Killed,
    MadeUpProcesses,
    coordinator,
    losses,
    results,
    spec,
    sweep_folder,
    write_epochs,
)
from tests.helpers import PATIENCE, ROOT
from utils.errors import Stopped, TrainingError, UserError

SPACES = ("optimizer.args.lr=0.1,0.2,0.5", "seed=0..1")
SEARCHED = ("optimizer.args.lr=log:1e-4..1", "model.args.hidden_features=log:2..64")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL", 0.0)


@pytest.fixture
def make(tmp_path: Path, write_config: Callable[..., Path]) -> Callable[[str, Spec], SweepFolder]:
    """A new sweep in a folder of its own."""
    return lambda name, searched: sweep_folder(tmp_path / name, write_config(), searched)


def test_a_terminal_shows_the_running_trials(
    make: Callable[[str, Spec], SweepFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    folder = make("shown", spec(*SPACES))
    trial = folder.create_trial(0, {"optimizer.args.lr": "0.1", "seed": "0"})
    display = Display(folder.read_spec())
    running = Running(trial=trial, slot=0, at_claim=Progress.of(trial), epochs=2, value=0.25)
    display.update([trial], [running], 6)
    assert "| 0/6 [" in terminal.getvalue()
    assert f"trial-000 2/{folder.read_spec().epochs} 0.2500]" in terminal.getvalue()
    display.close()


def by_lr(**found: tuple[int, str]) -> Callable[[Mapping[str, str]], tuple[int, str]]:
    return lambda values: found.get(f"lr_{values['optimizer.args.lr']}".replace(".", "_"), (0, ""))


def test_a_grid(make: Callable[[str, Spec], SweepFolder]) -> None:
    folder = make("grid", spec(*SPACES))
    trials = coordinator(folder, MadeUpProcesses(), jobs=2).run()
    assert [tuple(trial.values.values()) for trial in trials] == [(a, b) for a in ("0.1", "0.2", "0.5") for b in "01"]
    assert all(trial.outcome == Outcome("complete", min(losses(trial.values)), 9, 9, 4.5) for trial in trials)
    config = json.loads(trials[5].run.config.read_text())
    assert (config["optimizer"]["args"]["lr"], config["seed"]) == (0.5, 1)


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_and_not_run_again(make: Callable[[str, Spec], SweepFolder]) -> None:
    folder = make("failing", spec(*SPACES))
    traceback = "Traceback (most recent call last):\n  File ...\nMemoryError: 3 GB"
    status = by_lr(lr_0_2=(1, "a warning\nerror: the loss is nan in step 3"), lr_0_5=(1, traceback))
    processes = MadeUpProcesses(status=status)
    trials = coordinator(folder, processes).run()
    assert [trial.outcome.reason for trial in trials if trial.outcome] == [
        "", "", "the loss is nan in step 3", "the loss is nan in step 3", "MemoryError: 3 GB", "MemoryError: 3 GB",
    ]  # fmt: skip
    coordinator(SweepFolder(folder.path), processes).run()
    assert len(processes.started) == 6
    result = finish(folder)
    assert result.best is not None
    assert result.best.name == "trial-000"
    assert "MemoryError: 3 GB" in (folder.path / "report.md").read_text()


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [("no number any more", "diverged: no number any more"), ("CUDA out of memory. Tried to allocate 2.00 GiB.", "")],
)
def test_trials_that_diverge_or_run_out_of_memory_do_not_end_the_sweep(
    make: Callable[[str, Spec], SweepFolder], reason: str, outcome: str
) -> None:
    """Other values of what is searched may not."""
    processes = MadeUpProcesses(train=lambda values: [], status=lambda values: (1, f"error: {reason}"), outcome=outcome)
    coordinator(make("diverging", spec(*SPACES)), processes).run()
    assert len(processes.started) == 6


@pytest.mark.parametrize("status", [1, 2])
def test_trials_that_fail_alike_end_the_sweep(make: Callable[[str, Spec], SweepFolder], status: int) -> None:
    """As where a folder of data is not there, or where the model's code raises an error."""
    folder = make("refused", spec(*SPACES))
    numbers = itertools.count()
    reason = "error: trial-00{}/config.json:3:5: no data"
    processes = MadeUpProcesses(train=lambda values: [], status=lambda values: (status, reason.format(next(numbers))))
    with pytest.raises(UserError, match=r"all 3 trials so far failed for the same reason: trial-002/config.json:3:5"):
        coordinator(folder, processes).run()
    assert len(results(folder)) == 3
    for trial in folder.trials():
        (trial.run.path / "outcome.json").unlink()
    trials = coordinator(SweepFolder(folder.path), MadeUpProcesses()).run()
    assert [trial.outcome.state for trial in trials if trial.outcome] == ["complete"] * 6


@pytest.mark.parametrize("searched", [spec(*SPACES), spec(*SEARCHED, trials=6, pruner="median")])
def test_a_trial_whose_folder_is_removed_is_run_again(make: Callable[[str, Spec], SweepFolder], searched: Spec) -> None:
    folder = make("removed", searched)
    coordinator(folder, MadeUpProcesses()).run()
    before = results(folder)
    shutil.rmtree(folder.path / "trial-002")
    processes = MadeUpProcesses()
    coordinator(SweepFolder(folder.path), processes).run()
    assert processes.started == ["trial-002"]
    assert results(folder) == before


def test_a_trial_that_only_dies_has_failed_in_the_end(make: Callable[[str, Spec], SweepFolder]) -> None:
    folder = make("dying", spec("optimizer.args.lr=0.1,0.2"))
    processes = MadeUpProcesses(status=by_lr(lr_0_1=(SIGKILL, "")))
    first, second = coordinator(folder, processes).run()
    assert first.outcome is not None
    assert (first.outcome.state, second.outcome and second.outcome.state) == ("failed", "complete")
    # the first start made progress: there was nothing before it
    assert "killed 10 times without progress (status -9; out of memory?)" in first.outcome.reason
    assert processes.started == ["trial-000"] * 11 + ["trial-001"]


def test_a_killed_trial_continues(make: Callable[[str, Spec], SweepFolder]) -> None:
    folder = make("killed", spec("optimizer.args.lr=0.1,0.2"))
    deaths = iter([(SIGKILL, ""), (255, ""), (143, "")])
    processes = MadeUpProcesses(status=lambda values: next(deaths, (0, "")))
    trials = coordinator(folder, processes).run()
    assert [trial.outcome and trial.outcome.state for trial in trials] == ["complete", "complete"]
    assert processes.started == ["trial-000"] * 4 + ["trial-001"]


def interrupted(folder: SweepFolder) -> SweepFolder:
    """The sweep after a Ctrl-C in the second epoch of its first trial."""
    trial = folder.create_trial(0, {"optimizer.args.lr": "0.1"})
    write_epochs(trial.run, [2.0])
    (trial.run.checkpoints / "step-00000005.pth").touch()
    return SweepFolder(folder.path)


@pytest.mark.parametrize(("status", "reason"), [(2, "no data in photos"), (1, "CUDA out of memory")])
def test_a_trial_that_cannot_be_resumed_has_not_failed(
    make: Callable[[str, Spec], SweepFolder], status: int, reason: str
) -> None:
    """As where the folder of data is not mounted: the trial ran before, so its values are not the cause."""
    folder = interrupted(make("interrupted", spec("optimizer.args.lr=0.1,0.2")))
    processes = MadeUpProcesses(train=lambda values: [2.0], status=lambda values: (status, f"error: {reason}"))
    with pytest.raises(UserError, match=f"trial-000 cannot be resumed: {reason}\nNothing is lost: fix the cause"):
        coordinator(folder, processes).run()
    assert [outcome for _, outcome in results(folder)] == [None]
    trials = coordinator(SweepFolder(folder.path), MadeUpProcesses()).run()
    assert [trial.state for trial in trials] == ["complete"] * 2


@pytest.mark.parametrize(
    ("epochs", "outcome"), [([2.0], "diverged: the loss is nan at step 7"), ([2.0, 1.0], "failed: no data in photos")]
)
def test_a_resumed_trial_that_diverges_or_gets_further_has_failed(
    make: Callable[[str, Spec], SweepFolder], epochs: list[float], outcome: str
) -> None:
    folder = interrupted(make("interrupted", spec("optimizer.args.lr=0.1,0.2")))
    reason = "what it printed"
    status = by_lr(lr_0_1=(1, f"error: {reason}"))
    processes = MadeUpProcesses(train=lambda values: epochs, status=status, outcome=outcome)
    first, second = coordinator(folder, processes).run()
    assert (first.state, first.outcome and first.outcome.reason, second.state) == ("failed", reason, "complete")


def test_nan_in_every_epoch_is_a_failure(make: Callable[[str, Spec], SweepFolder]) -> None:
    folder = make("nan", spec("optimizer.args.lr=0.1,0.2"))
    trials = coordinator(folder, MadeUpProcesses(train=lambda values: [float("nan")] * 3)).run()
    assert trials[0].outcome == Outcome("failed", None, 0, 3, 1.5, "loss was not measured, or not finite, in any epoch")
    with pytest.raises(
        TrainingError, match=r"no trial of .* has a result; trial-000: loss was not measured, or not finite"
    ):
        finish(folder)


@pytest.mark.slow
@pytest.mark.parametrize("pruner", [None, "median", "hyperband"])
def test_a_sweep_that_is_killed_at_any_write_ends_as_one_that_is_not(
    make: Callable[[str, Spec], SweepFolder], monkeypatch: pytest.MonkeyPatch, pruner: str | None
) -> None:
    pytest.importorskip("optuna")
    searched = spec(*SEARCHED, trials=14, pruner=pruner)
    whole = make("whole", searched)
    coordinator(whole, MadeUpProcesses()).run()

    killed = make("killed", searched)
    write, writes = SweepFolder.__dict__, 0
    names = ("create_trial", "claim", "finish", "release")

    def dying(name: str, *, before: bool) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal writes
            writes += 1
            if writes % 3 == 0 and before:
                raise Killed
            result = write[name](*arguments, **options)
            if writes % 3 == 0:
                raise Killed
            return result

        return call

    deaths = 0
    while deaths < 100:
        folder = SweepFolder(killed.path)  # as another process would see it
        for place, name in enumerate(names):
            monkeypatch.setattr(folder, name, dying(name, before=(deaths + place) % 2 == 0).__get__(folder))
        try:
            coordinator(folder, MadeUpProcesses()).run()
            break
        except Killed:
            deaths += 1
    assert deaths > 10
    assert results(killed) == results(whole)
    assert not list(killed.path.glob(".trial-*"))


def test_more_trials(make: Callable[[str, Spec], SweepFolder]) -> None:
    pytest.importorskip("optuna")
    folder = make("short", spec(*SEARCHED, trials=5))
    coordinator(folder, MadeUpProcesses()).run()
    folder.write_spec(spec(*SEARCHED, trials=14))
    longer = coordinator(SweepFolder(folder.path), MadeUpProcesses()).run()
    whole = coordinator(make("whole", spec(*SEARCHED, trials=14)), MadeUpProcesses()).run()
    assert [trial.values for trial in longer] == [trial.values for trial in whole]


def test_a_full_disk_loses_nothing(make: Callable[[str, Spec], SweepFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make("full", spec(*SPACES))
    full = "the run ended, but checkpoint x could not be written: No space left on device"
    statuses = iter([(0, ""), (0, ""), (1, f"error: {full}")])
    with pytest.raises(UserError, match=r"trial-002: the run ended, but .* No space left on device"):
        coordinator(folder, MadeUpProcesses(status=lambda values: next(statuses))).run()
    assert [outcome is None for _, outcome in results(folder)] == [False, False, True]

    def refuse(path: Path, text: str) -> None:
        raise TrainingError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("extras.sweep.sweep_folder.replace_file", refuse)
        with pytest.raises(UserError, match=r"cannot write .*trial-002/outcome.json: No space left on device"):
            coordinator(SweepFolder(folder.path), MadeUpProcesses()).run()
    trials = coordinator(SweepFolder(folder.path), MadeUpProcesses()).run()
    assert [trial.outcome and trial.outcome.state for trial in trials] == ["complete"] * 6


def test_values_that_the_config_refuses_together_are_a_failed_trial(make: Callable[[str, Spec], SweepFolder]) -> None:
    folder = make("refused", spec("data_loader.args.batch_size=8,16", "data_loader.args.num_samples=50,-1"))
    trials = coordinator(folder, MadeUpProcesses(train=lambda values: [1.0])).run()
    assert [trial.outcome and trial.outcome.state for trial in trials] == ["complete", "failed"] * 2
    assert trials[1].outcome is not None
    assert "num_samples" in trials[1].outcome.reason


@pytest.mark.parametrize("system", ["posix", "nt"])
def test_a_signal_stops_the_trials_first(
    make: Callable[[str, Spec], SweepFolder], monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    """On Windows, terminate() would not let them save."""
    folder = make("stopped", spec(*SPACES))
    one = coordinator(folder, MadeUpProcesses(status=lambda values: (0, "")))
    made = []

    class Endless(MadeUpProcesses):
        def start(self, run: Any, slot: int) -> Any:
            process = super().start(run, slot)
            process.returncode = None
            made.append(process)
            signal.raise_signal(signal.SIGTERM)
            return process

    one.processes = processes = Endless()  # type: ignore[assignment]
    closed: list[bool] = []
    monkeypatch.setattr(one.display, "close", lambda: closed.append(True))
    monkeypatch.setattr("extras.sweep.coordinator.os", SimpleNamespace(name=system))
    with pytest.raises(Stopped):
        one.run()
    assert [process.requests for process in made] == [["terminate"] if system == "posix" else []]
    assert processes.ended
    assert closed == [True]
    assert results(folder)[0][1] is None


@pytest.mark.slow
def test_two_processes_never_claim_one_trial(make: Callable[[str, Spec], SweepFolder], tmp_path: Path) -> None:
    folder = make("shared", spec(*SPACES))
    trial = folder.create_trial(0, {"optimizer.args.lr": "0.1", "seed": "0"})
    other = (
        "import sys; from pathlib import Path; from extras.sweep.sweep_folder import SweepFolder\n"
        "folder = SweepFolder(Path(sys.argv[1])); print(folder.claim(folder.trials()[0]))\n"
    )
    script = tmp_path / "other.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{other}")

    def asked() -> str:
        done = forked.run(script, folder.path, cwd=tmp_path, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert folder.claim(trial)
    assert asked() == "False"
    folder.release(trial)
    assert asked() == "True"


def trained_on(folder: SweepFolder, values: Mapping[str, Sequence[float]], failing: float = -1.0) -> list[Trial]:
    """The trials of a grid of rates and seeds. values: the loss of each seed by rate, of which one fails."""

    def loss(given: Mapping[str, str]) -> float:
        return values[given["optimizer.args.lr"]][int(given["seed"])]

    processes = MadeUpProcesses(
        train=lambda given: [loss(given)],
        status=lambda given: (1, "error: nan") if loss(given) == failing else (0, ""),
    )
    return coordinator(folder, processes).run()


def test_seeds_and_folds(make: Callable[[str, Spec], SweepFolder]) -> None:
    searched = spec(*SPACES)
    trials = trained_on(make("seeds", searched), {"0.1": (1.0, 3.0), "0.2": (5.0, 5.5), "0.5": (9.0, 8.0)})
    groups = repeated(trials, searched)
    assert [(group.values, group.mean) for group in groups] == [
        ({"optimizer.args.lr": "0.1"}, 2.0), ({"optimizer.args.lr": "0.2"}, 5.25), ({"optimizer.args.lr": "0.5"}, 8.5),
    ]  # fmt: skip
    assert groups[0].deviation == pytest.approx(2**0.5)
    assert groups[0].interval == pytest.approx((2 - 12.706, 2 + 12.706), rel=1e-4)
    assert t_quantile(30) == pytest.approx(2.0423, abs=1e-3)
    assert t_quantile(11) == pytest.approx(2.2010, abs=1e-3)


def test_a_setting_of_which_trials_failed_is_not_the_best(make: Callable[[str, Spec], SweepFolder]) -> None:
    searched = spec("optimizer.args.lr=0.1,0.2", "seed=0..1")
    folder = make("some failed", searched)
    trials = trained_on(folder, {"0.1": (1.0, 7.0), "0.2": (2.0, 2.0)}, failing=7.0)
    assert [len(group.trials) for group in repeated(trials, searched)] == [2, 1]
    best = finish(folder).best
    assert best is not None
    assert best.values["optimizer.args.lr"] == "0.2"
    assert "Settings without some of their trials, which might" in (folder.path / "report.md").read_text()


def test_of_equal_means_the_best_is_the_first_of_the_table(make: Callable[[str, Spec], SweepFolder]) -> None:
    searched = spec("optimizer.args.lr=0.1,0.2", "seed=0..1")
    folder = make("equal", searched)
    trials = trained_on(folder, {"0.1": (2.0, 2.0), "0.2": (1.0, 3.0)})
    best = finish(folder).best
    assert best is not None
    assert best.name == "trial-000"
    assert repeated(rank(trials, searched), searched)[0].trials[0].name == best.name


def test_a_lucky_seed_is_not_the_best_setting(
    make: Callable[[str, Spec], SweepFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    """The smallest loss is one of a rate whose mean is worse."""
    folder = make("lucky", spec("optimizer.args.lr=0.1,0.2", "seed=0..2"))
    trained_on(folder, {"0.1": (0.1, 9.0, 9.0), "0.2": (2.0, 1.0, 3.0)})
    best = finish(folder, quiet=False).best
    assert best is not None
    assert best.values == {"optimizer.args.lr": "0.2", "seed": "0"}
    assert json.loads((folder.path / "best.json").read_text()) == json.loads(best.run.config.read_text())
    assert f"best      mean 2.000 over 3, as {best.name}; to train it again" in capsys.readouterr().out
    assert f"The best mean over 3 seeds or folds, 2, is that of {best.name}" in (folder.path / "report.md").read_text()


@pytest.mark.slow
def test_what_is_written_at_the_end(
    make: Callable[[str, Spec], SweepFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    folder = make("ended", spec(*SEARCHED, "seed=0..3", trials=12, pruner="median"))
    coordinator(folder, MadeUpProcesses()).run()
    result = finish(folder, quiet=False)
    printed = capsys.readouterr().out
    assert result.best is not None
    assert f"python train.py -c {folder.path}/best.json" in printed
    rows = list(csv.DictReader((folder.path / "sweep.csv").read_text().splitlines()))
    assert len(rows) == 12
    assert rows[0]["trial"] == result.best.name
    complete = [float(row["best loss"]) for row in rows if row["state"] == "complete"]
    assert complete == sorted(complete)
    assert {row["state"] for row in rows} == {"complete", "pruned"}
    text = (folder.path / "report.md").read_text()
    for name in ("history", "importances", "parallel_coordinates", "slices"):
        assert f"({name}.png)" in text
        assert (folder.path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    page = (folder.path / "report.html").read_text()
    assert page.count("<img ") == page.count("data:image/png;base64,") == 4
    assert result.best.name in page
    assert json.loads((folder.path / "best.json").read_text()) == json.loads(result.best.run.config.read_text())


def finish(folder: SweepFolder, *, quiet: bool = True) -> Result:
    return conclude(folder, folder.read_spec(), folder.trials(), quiet=quiet, seconds=1.0)
