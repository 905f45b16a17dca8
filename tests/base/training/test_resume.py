"""A resumed run continues in its folder, from where it was, as if it had never stopped."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train
from base.base_trainer import BaseTrainer
from base.data import TensorSource
from base.load_run import load_run
from data_loader.random_tensor import RandomTensorLoader
from model.two_layer_net import TwoLayerNet
from tests.conftest import load_script, small_config
from tests.helpers import ROOT, Fit, copy_run, equal, fork, identical, lines, same, state, temporarily
from utils import checkpoint
from utils.distributed import ProcessGroup
from utils.errors import CheckpointError, ConfigError, DataError, Stopped, UserError
from utils.registry import DATA_LOADERS, MODELS
from utils.run_folder import RunFolder

BUSY = (
    "trainer.epochs=4",
    "trainer.save_every_steps=3",
    "trainer.accumulate_steps=2",
    "trainer.keep_last=null",
    "trainer.tensorboard=true",
)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with dropout, accumulated batches and checkpoints within its epochs."""
    config = small_config(tmp_path_factory.mktemp("busy"), model=DROPOUT, data_loader=IMAGES)
    return train.main(["-c", str(config), *BUSY]).run_dir


@pytest.mark.parametrize("step", [pytest.param(3, marks=pytest.mark.slow), 6, pytest.param(9, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_with_the_same_bits(busy: Path, tmp_path: Path, step: int) -> None:
    half = fork(copy_run(busy, tmp_path), step)
    resumed = train.main(["-r", str(half)])
    assert resumed.run_dir == half
    identical(busy, half)


DROPOUT: dict[str, Any] = {
    "type": "LeNet",
    "args": {"in_channels": 1, "kernel_size": 3, "num_classes": 3, "dropout": 0.5},
}
IMAGES: dict[str, Any] = {
    "type": "RandomTensorLoader",
    "args": {
        "num_samples": 50,
        "input_shape": [1, 32, 32],
        "num_classes": 3,
        "batch_size": 8,
        "validation_split": 10,
        "num_workers": 1,
    },
}


def test_a_run_without_a_checkpoint_restarts(fit: Fit) -> None:
    whole = fit(*BUSY, "trainer.epochs=2")
    half = fork(whole.run_dir, 0)
    RunFolder(half).write_outcome("finished")
    with pytest.raises(CheckpointError, match="those of this run are gone, or could not be written"):
        train.main(["-r", str(half)])
    assert len(lines(half)) == 2
    RunFolder(half).write_outcome("")
    train.main(["-r", str(half)])
    identical(whole.run_dir, half)


def test_a_run_interrupted_at_once_before_its_first_checkpoint_restarts(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a second Ctrl-C in a notebook."""
    whole = fit("trainer.epochs=2").run_dir

    def end_epoch(self: BaseTrainer, validation: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BaseTrainer, "end_epoch", end_epoch)
        with pytest.raises(KeyboardInterrupt):
            fit("trainer.epochs=2")
    interrupted = RunFolder.newest(str(whole.parent.parent), "small").path
    assert interrupted != whole
    train.main(["-r", str(interrupted)])
    equal(whole, interrupted)


@pytest.mark.usefixtures("tensorboard")
def test_a_longer_run_resumes_in_the_same_folder(fit: Fit) -> None:
    short = fit("trainer.epochs=2", "trainer.monitor=min val_loss")
    longer = train.main(["-r", str(short.run_dir), "trainer.epochs=5"])
    asked = fit("trainer.epochs=5", "trainer.monitor=min val_loss")
    assert longer.run_dir == short.run_dir
    assert longer.epochs == 5
    identical(asked.run_dir, longer.run_dir)


def test_patience_is_kept_across_a_resume(fit: Fit) -> None:
    watch = ("trainer.monitor=max loss", "trainer.early_stop=4")
    whole = fit("trainer.epochs=30", *watch)
    assert whole.epochs < 30
    short = fit("trainer.epochs=3", *watch)
    assert train.main(["-r", str(short.run_dir), "trainer.epochs=30"]).epochs == whole.epochs


def test_what_makes_a_finished_run_longer_is_said(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(fit("trainer.epochs=9", "trainer.monitor=max loss", "trainer.early_stop=2").run_dir)
    capsys.readouterr()
    stopped = train.main(["-r", run, "trainer.epochs=20"]).epochs
    advice = "finished  stopped early: loss did not improve; set trainer.early_stop=N with N > 2, or null"
    assert f"{advice} to train longer" in capsys.readouterr().out
    train.main(["-r", run, f"trainer.epochs={stopped}"])
    assert f"{advice}, and trainer.epochs to train longer" in capsys.readouterr().out
    assert train.main(["-r", run, "trainer.early_stop=3", "trainer.epochs=20"]).epochs == stopped + 1
    train.main(["-r", run, "trainer.early_stop=null", f"trainer.epochs={stopped + 1}"])
    assert "all epochs are done; set trainer.epochs=N to train longer" in capsys.readouterr().out


def test_a_finished_run_stays_as_it_is(fit: Fit) -> None:
    done = fit()
    before = lines(done.run_dir)
    again = train.main(["-r", str(done.run_dir)])
    assert lines(done.run_dir) == before
    assert again.last == done.last


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("method", ["optimizer_step", "evaluate"])
def test_a_signal_saves_and_the_run_resumes(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, method: str
) -> None:
    whole = fit(*BUSY)
    original, calls = getattr(BaseTrainer, method), []

    def interrupted(self: BaseTrainer, *arguments: Any) -> Any:
        calls.append(method)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BaseTrainer, method, interrupted)
        with pytest.raises(Stopped) as caught:
            fit(*BUSY, name="stopped")
    assert caught.value.signal == number
    stopped = RunFolder.newest(str(whole.run_dir.parent.parent), "stopped")
    assert train.main(["-r", str(stopped.path)]).epochs == 4
    identical(whole.run_dir, stopped.path)


def test_a_validation_within_the_epoch_that_a_signal_ended_is_done_again(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = (*BUSY, "trainer.validate_every_steps=1", "trainer.ema={}")
    whole = fit(*options)
    within, evaluate = BaseTrainer.validate_within_epoch, BaseTrainer.evaluate

    def signalled(self: BaseTrainer, *arguments: Any) -> Any:
        if self.progress.steps == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BaseTrainer, "evaluate", signalled)
        with pytest.raises(Stopped):
            fit(*options, name="stopped")
        stopped = RunFolder.newest(str(whole.run_dir.parent.parent), "stopped").path
        with pytest.raises(Stopped):  # again
            train.main(["-r", str(stopped)])
    assert state(stopped)["progress"]["steps"] == 5
    validated = []

    def counted(self: BaseTrainer) -> None:
        validated.append(self.progress.steps)
        within(self)

    with monkeypatch.context() as patch:
        patch.setattr(BaseTrainer, "validate_within_epoch", counted)
        train.main(["-r", str(stopped)])
    assert validated[:2] == [5, 6]
    identical(whole.run_dir, stopped)


def test_resume_without_a_value_takes_the_newest_run(fit: Fit, write_config: Callable[..., Path]) -> None:
    fit()
    newest = fit("trainer.epochs=1")
    config = ["-c", str(write_config())]
    assert train.main([*config, "-r", "trainer.epochs=3"]).run_dir == newest.run_dir
    assert len(lines(newest.run_dir)) == 3
    with pytest.raises(CheckpointError, match=r"no run in .*; start one without -r"):
        train.main([*config, "-r", "name=other"])


def test_the_run_that_was_started_last_counts_whatever_the_clock_said(
    fit: Fit, write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def in_zone(zone: str, **keys: Any) -> Path:
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        return fit("trainer.epochs=1", **keys).run_dir

    try:
        seoul = in_zone("Asia/Seoul")
        new_york = in_zone("America/New_York")
        assert new_york.name < seoul.name
        other = in_zone("Asia/Seoul", name="other")
    finally:
        monkeypatch.undo()
        time.tzset()
    config = ["-c", str(write_config())]
    capsys.readouterr()
    assert train.main([*config, "-r"]).run_dir == new_york
    assert f"the most recent run of small: {new_york}\n" in capsys.readouterr().out

    here = f"trainer.save_dir={tmp_path / 'saved'}"
    assert train.main(["-r", here, "model.args.hidden_features=5"]).run_dir == other, (
        "a key of the run, not of config.json"
    )
    assert f"the most recent run: {other}\n" in capsys.readouterr().out
    assert train.main(["-r", here, "name=small"]).run_dir == new_york


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["-r"]])
def test_test_py_takes_the_run_that_was_started_last(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    fit("trainer.epochs=1")
    last = fit("trainer.epochs=1", name="last").run_dir
    test = load_script("test")
    capsys.readouterr()
    values = test.main([*words, f"trainer.save_dir={tmp_path / 'saved'}"])
    assert f"testing the most recent run: {last}\n" in capsys.readouterr().out
    assert values == test.main(["-r", str(last)])
    with pytest.raises(UserError, match="no run"):
        test.main([*words, f"trainer.save_dir={tmp_path / 'empty'}"])


def test_an_override_after_a_bare_r_is_never_a_run(
    fit: Fit, write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fit("trainer.epochs=1").run_dir
    config = str(write_config())
    monkeypatch.chdir(tmp_path)
    Path("trainer.epochs=2").mkdir()
    assert train.main(["-c", config, "-r", "trainer.epochs=2"]).epochs == 2
    assert len(lines(run)) == 2


def test_a_checkpoint_file_sets_later_ones_aside(fit: Fit) -> None:
    whole = fit(*BUSY)
    before = state(whole.run_dir)
    folder = whole.run_dir / "checkpoints"
    train.main(["-r", str(folder / "step-00000003.pth")])
    assert same(before["model"], state(whole.run_dir)["model"])
    assert sorted(path.name for path in (folder / "set-aside").iterdir()) == [
        "step-00000006.pth",
        "step-00000009.pth",
        "step-00000012.pth",
    ]


def test_a_damaged_checkpoint_is_passed_over(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    whole = fit(*BUSY)
    half = fork(whole.run_dir, 9)
    newest = half / "checkpoints" / "step-00000009.pth"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"step-00000009.pth is damaged"):
        train.main(["-r", str(newest)])
    train.main(["-r", str(half)])
    assert "step-00000009.pth is damaged" in capsys.readouterr().err
    identical(whole.run_dir, half)


def test_a_checkpoint_of_an_earlier_version_is_refused_with_the_way_on(fit: Fit) -> None:
    run = fit(trainer={"epochs": 1}).run_dir
    path = checkpoint.step_files(run / "checkpoints")[0]
    state = checkpoint.read(path)
    del state["config"]["trainer"]
    checkpoint.write(path, state)
    with pytest.raises(CheckpointError, match=f"one of an earlier version.*\n.*--init-from {run} "):
        train.main(["-r", str(path)])


def test_new_weights_from_an_old_run(fit: Fit) -> None:
    first = fit()
    tuned = fit("--init-from", str(first.run_dir), "--lr=1e-30", "trainer.epochs=1")
    assert tuned.run_dir != first.run_dir
    assert tuned.epochs == 1
    assert same(state(tuned.run_dir)["model"], state(first.run_dir)["model"])
    assert (tuned.run_dir / "initial.pth").exists(), "killed early, it must find these weights"
    with pytest.raises(UserError, match="do not match this model"):
        fit("--init-from", str(first.run_dir), "model.args.hidden_features=9")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-r", "{run}", "-c", "{run}/config.json"], "--init-from"),
        (["-r", "{run}", "--init-from", "{run}"], "-r cannot be combined"),
        (["-r", "{run}", "name=other"], "cannot change"),
        (["-r", "{run}", "trainer.save_dir=elsewhere"], "cannot change"),
        (["-r", "{run}/nothing"], "no such run"),
        (["-r", "{run}/checkpoints"], "is not a run folder"),
        (["-r", "config.json"], "config.json is not a run folder"),
        (["-r", "README.md"], "README.md is not a run folder"),
        (["-r", "{run}/.."], "is not a run folder, nor a checkpoint in one; its newest run is .*{run.name}"),
        (["-r", str(ROOT)], "is not a run folder"),
        (["-r", "{run}/train.log"], "train.log is not a run folder"),
        (["-r", "{run}/../../elsewhere/last.pth"], "nor a checkpoint in one.*train.py -c CONFIG --init-from .*last"),
        (["-r", "{run}", "--check"], "-r cannot be combined with --check or --init-from"),
    ],
)
def test_what_cannot_be_resumed_is_reported(fit: Fit, arguments: list[str], says: str) -> None:
    run = fit().run_dir
    shutil.copytree(run / "checkpoints", run.parent.parent / "elsewhere")
    with pytest.raises(UserError, match=says.format(run=run)):
        train.main([argument.format(run=run) for argument in arguments])


class Changing(RandomTensorLoader):
    """A data set that is another one when its attributes change."""

    size = 200
    classes: tuple[str, ...] = ("a", "b", "c")
    targets: int | None = None
    held_out = 20

    def training_data(self, *, augment: bool) -> TensorSource:
        self.class_names, self.validation_split = self.classes, self.held_out
        source = self._draw(self.size, 0)
        if self.targets is not None:
            source.targets[self.targets] = 0  # type: ignore[index]
        return source


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says", "at"),  # in the middle of an epoch, or at its end
    [
        ({"size": 100}, "Changing has changed: the number of samples for training was 180, and is now 80", 14),
        ({"size": 400}, "samples for training was 180, and is now 380", 18),
        ({"size": 201, "held_out": 21}, "samples for validation was 20, and is now 21", 14),
        ({"classes": ("a", "c", "b")}, "the list of classes was .*, and is now .*a', 'c', 'b'", 18),
        ({"targets": slice(0, 100)}, "the hash of the targets was", 14),
    ],
)
def test_another_data_set_is_refused(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str, at: int
) -> None:
    data = {"num_samples": 1, "input_shape": [6], "num_classes": 3, "batch_size": 10}
    often = ("trainer.save_every_steps=2", "trainer.keep_last=null", "trainer.epochs=2")
    with temporarily(DATA_LOADERS, Changing):
        run = fork(fit(*often, data_loader={"type": "Changing", "args": data}).run_dir, at)
        before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file() and path.name != "train.log"}
        for name, value in change.items():
            monkeypatch.setattr(Changing, name, value)
        with pytest.raises(DataError, match=rf"{says}(.|\n)*--init-from"):
            train.main(["-r", str(run)])
        after = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file() and path.name != "train.log"}
        assert after == before
        monkeypatch.undo()
        train.main(["-r", str(run)])


def halver(factor: float) -> type[Any]:
    """A model that has this default."""

    class Halver(TwoLayerNet):
        def __init__(self, *, factor: float = factor, **sizes: Any) -> None:
            super().__init__(**sizes)
            self.factor = factor

    return Halver


def renamed() -> type[Any]:
    """The same model without it."""

    class Halver(TwoLayerNet):
        pass

    return Halver


def test_a_default_that_has_changed_is_named_with_the_way_on(fit: Fit) -> None:
    sizes = {"in_features": 6, "hidden_features": 5, "out_features": 3}
    with temporarily(MODELS, halver(0.1)):
        run = fit("trainer.epochs=1", model={"type": "Halver", "args": sizes}).run_dir
    without = type("Halver", (TwoLayerNet,), {"__module__": __name__})
    says = r"model.args.factor: cannot change when a run is resumed: this run has 0.1, got "
    with temporarily(MODELS, without), pytest.raises(ConfigError, match=f"{says}nothing"):
        train.main(["-r", str(run), "trainer.epochs=2"])
    with temporarily(MODELS, halver(0.5)):
        with pytest.raises(ConfigError, match=f"{says}0.5"):
            train.main(["-r", str(run), "trainer.epochs=2"])
        with temporarily(MODELS, renamed()), pytest.raises(ConfigError, match=f"{says}nothing"):
            train.main(["-r", str(run), "trainer.epochs=2"])


def test_a_default_that_has_changed_is_named_wherever_the_run_is_loaded(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    test, sizes = load_script("test"), {"in_features": 6, "hidden_features": 5, "out_features": 3}
    says = "warning: defaults in the code have changed since this run, so results may differ: model.args.factor 0.1 -> "
    with temporarily(MODELS, halver(0.1)):
        run = fit("trainer.epochs=1", model={"type": "Halver", "args": sizes}).run_dir
        given = fit("trainer.epochs=1", model={"type": "Halver", "args": {**sizes, "factor": 0.1}}).run_dir
        test.main(["-r", str(run)])
        assert "warning" not in capsys.readouterr().err
    with temporarily(MODELS, halver(0.5)):
        test.main(["-r", str(run)])
        assert f"{says}0.5\n" in capsys.readouterr().err
        load_run(run)
        assert capsys.readouterr().err == f"{says}0.5\n"
        test.main(["-r", str(run), "model.args.factor=0.1"])
        test.main(["-r", str(given)])
        load_run(given)
        assert "warning" not in capsys.readouterr().err
        config = json.loads((run / "config.json").read_text())
        config["model"]["args"]["factor"] = 0.1
        (run / "config.json").write_text(json.dumps(config))
        assert train.main(["-r", str(run), "trainer.epochs=2"]).epochs == 2


def test_a_run_that_is_in_use_is_refused(fit: Fit) -> None:
    run = fit().run_dir
    with RunFolder(run).locked(), pytest.raises(UserError, match="in use"):
        train.main(["-r", str(run)])


def test_two_runs_prepared_in_the_same_second_by_processes_of_the_same_number_get_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in two containers, which share a disk, but each of which has a process 1."""
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
    others = []
    own = RunFolder.create(str(tmp_path), "a", prepare=lambda _: others.append(RunFolder.create(str(tmp_path), "a")))
    assert [run.path.name for run in (*others, own)] == ["20260101-000000", "20260101-000000-2"]
    assert all(run.started.exists() for run in (*others, own))


def test_two_runs_of_one_second_get_two_folders(tmp_path: Path) -> None:
    folders = [RunFolder.create(str(tmp_path), "name").path for _ in range(12)]
    assert len(set(folders)) == 12
    for folder in folders:
        (folder / "config.json").touch()
    assert RunFolder.newest(str(tmp_path), "name").path == folders[-1]


def test_a_metric_whose_state_gets_its_shape_from_the_first_batch_resumes(fit: Fit) -> None:
    """R2Score adds tensors of shape (1,) to states of shape () for outputs of shape (B, 1)."""
    data = {"type": "RandomTensorLoader", "args": {"num_samples": 40, "input_shape": [6], "target_shape": [1]}}
    data["args"] |= {"batch_size": 8, "validation_split": 8}  # type: ignore[operator]
    net = {"type": "TwoLayerNet", "args": {"in_features": 6, "hidden_features": 5, "out_features": 1}}
    often = ("trainer.save_every_steps=1", "trainer.keep_last=null", "trainer.monitor=null")
    whole = fit(*often, data_loader=data, model=net, loss="mse_loss", metrics=["R2Score"]).run_dir
    half = fork(whole, 6)
    train.main(["-r", half])
    equal(whole, half)


F1: dict[str, Any] = {"type": "F1Score", "name": "f", "args": {"task": "multiclass", "num_classes": 3}}


@pytest.mark.parametrize(
    ("step", "changed"), [(7, {"args": {**F1["args"], "average": "macro"}}), (5, {"type": "Accuracy"})]
)
def test_a_metric_may_be_changed_under_its_name(
    fit: Fit, capsys: pytest.CaptureFixture[str], step: int, changed: Any
) -> None:
    often = ("trainer.save_every_steps=1", "trainer.keep_last=null")
    run = fork(fit(*often, metrics=[F1]).run_dir, step)
    result = train.main(["-r", run, f"metrics={json.dumps([F1 | changed])}"])
    assert result.epochs == 2
    partial = "f in training will be over the rest of epoch 2 only, after its first 2 steps"
    assert (partial in capsys.readouterr().err) == (step == 7)
    whole = fit(*often, metrics=[F1 | changed])
    assert result.last["val_f"] == pytest.approx(whole.last["val_f"])


def test_a_monitored_metric_that_is_another_one_now_has_no_best_value_yet(fit: Fit) -> None:
    """The first epochs have a value of 1, which no later one of the new metric reaches."""
    metric = {"type": "top_k_accuracy", "name": "right", "args": {"k": 3}}
    run = fit("trainer.monitor=max val_right", metrics=[metric]).run_dir
    harder = json.dumps([metric | {"args": {"k": 1}}])
    result = train.main(["-r", run, f"metrics={harder}", "trainer.epochs=4"])
    assert result.best == max(line["val_right"] for line in lines(run)[2:])
    assert result.best < 1


def test_another_metric_whose_name_ends_alike_changes_no_best_value(fit: Fit) -> None:
    monitored = {"type": "top_k_accuracy", "name": "top_right", "args": {"k": 3}}
    other = {"type": "top_k_accuracy", "name": "right", "args": {"k": 2}}
    run = fit("trainer.monitor=max val_top_right", metrics=[monitored, other]).run_dir
    changed = json.dumps([monitored, other | {"args": {"k": 1}}])
    train.main(["-r", run, f"metrics={changed}", "trainer.epochs=3"])
    assert state(run)["progress"]["best_epoch"] == 1  # every epoch has the value 1


class Converted(TwoLayerNet):
    """Creates its parameters in the dtype that the class says."""

    dtype: torch.dtype

    def __init__(self, **args: Any) -> None:
        super().__init__(**args)
        self.to(self.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.to(self.dtype)).float()


def test_parameters_in_another_dtype_are_not_converted(fit: Fit) -> None:
    model = {"type": "Converted", "args": {"in_features": 6, "hidden_features": 5, "out_features": 3}}
    with temporarily(MODELS, Converted):
        Converted.dtype = torch.float32
        run = fit(model=model).run_dir
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        Converted.dtype = torch.bfloat16
        message = r"weight is saved in torch.float32, not in torch.bfloat16; --init-from"
        with pytest.raises(CheckpointError, match=message):
            train.main(["-r", str(run), "trainer.epochs=3"])
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        converted = fit("--init-from", str(run), model=model).run_dir
    assert {value.dtype for value in state(converted)["model"].values()} == {torch.bfloat16}


@pytest.mark.parametrize(("name", "restarts", "again"), [("lenet-1", "0", 1), ("none", "1", 1), ("none", "0", 2)])
def test_a_job_started_again_resumes_its_run_if_the_user_has_named_it(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, name: str, restarts: str, again: int
) -> None:
    """In a container, the launcher may have the same address and pid each time."""
    monkeypatch.setattr(ProcessGroup, "launched", True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
    with monkeypatch.context() as patch:
        patch.setattr(BaseTrainer, "validate", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    run = fit().run_dir
    assert len([*run.parent.iterdir()]) == again
