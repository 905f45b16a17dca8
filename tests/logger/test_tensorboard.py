"""A TensorBoard that is open on the run folder shows one clean curve across kills and resumes."""

import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from base.base_trainer import BaseTrainer
from logger.writers import EventWriter
from tests.campaign import records
from tests.conftest import load_script
from tests.helpers import TIMES, Fit, curves, needs_extra
from tests.utils.checkpoint.test_exactness import killed_in
from utils.errors import Stopped
from utils.run_folder import RunFolder

Curves = dict[str, list[tuple[int, float]]]
pytestmark = pytest.mark.usefixtures("tensorboard")

OFTEN = ("trainer.epochs=4", "trainer.save_every_steps=3", "trainer.log_every_steps=1")


def display_path(reader: EventAccumulator) -> Curves:
    """What a reader that stays open has now."""
    reader.Reload()
    tags = [tag for tag in reader.Tags()["scalars"] if tag not in TIMES]
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags}


@pytest.mark.slow
def test_an_open_reader_sees_one_curve(fit: Fit) -> None:
    """Killed twice after the same checkpoint, so that the second resume drops a file that the reader is in."""
    whole = fit(*OFTEN)
    with killed_in("optimizer_step", calls=9):
        fit(*OFTEN, name="watched")
    run = RunFolder.newest(str(whole.run_dir.parent.parent), "watched").path
    reader = EventAccumulator(str(run), size_guidance={"scalars": 0})
    assert display_path(reader)["loss/step"][-1][0] == 8
    with killed_in("optimizer_step", calls=3, saves=False):
        train.main(["-r", str(run)])
    assert display_path(reader)["loss/step"][-1][0] == 8
    train.main(["-r", str(run)])
    assert display_path(reader) == curves(run) == curves(whole.run_dir)


@pytest.mark.slow
def test_each_step_is_in_the_files_once_and_in_order(fit: Fit) -> None:
    run = fit(*OFTEN, "trainer.keep_last=null").run_dir
    before = records(run)
    assert len({(tag, step) for tag, step, _ in before}) == len(before)
    for step in (15, 3, 15):
        train.main(["-r", str(run / "checkpoints" / f"step-{step:08d}.pth")])
        assert records(run) == before


@needs_extra("tensorboard")
@pytest.mark.slow
def test_what_precedes_the_first_step_is_in_the_files_once(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a signal that came before it."""
    wide = ("trainer.epochs=1", "model.args.hidden_features=64")
    whole = fit(*wide).run_dir

    def stop(self: BaseTrainer) -> None:
        raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(BaseTrainer, "train_epoch", stop)
        with pytest.raises(Stopped):
            fit(*wide, name="stopped")
    run = RunFolder.newest(str(whole.parent.parent), "stopped").path
    assert {step for tag, step, _ in records(run) if tag.startswith("weights/")} == {0}
    train.main(["-r", str(run)])
    assert [(tag, step) for tag, step, _ in records(run)] == [(tag, step) for tag, step, _ in records(whole)]


@pytest.mark.parametrize("cut", [1, 20, 30, 50])
def test_half_an_event_ends_a_file_but_not_the_curve(tmp_path: Path, cut: int) -> None:
    writer = EventWriter(tmp_path)
    for step in range(1, 7):
        writer.scalars(step, {"loss": 1.0})
    state = writer.state_dict()
    [file] = tmp_path.iterdir()
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    file.write_bytes(file.read_bytes()[:-cut])
    writer = EventWriter(tmp_path)
    assert f"{file.name} has " in writer.resume(state, step=6)
    for step in (7, 8):
        writer.scalars(step, {"loss": 1.0})
    writer.flush()
    whole = 5 if cut < 40 else 4  # an event has 40 bytes
    assert [step for step, _ in curves(tmp_path)["loss"]] == [*range(1, whole + 1), 7, 8]
    assert [step for step, _ in display_path(reader)["loss"]] == [*range(1, 9)], "a reader that stayed open"


def test_a_run_without_tensorboard_for_a_while_keeps_its_older_curves(fit: Fit) -> None:
    run = fit("trainer.epochs=1").run_dir
    train.main(["-r", str(run), "trainer.epochs=2", "trainer.tensorboard=false"])
    train.main(["-r", str(run), "trainer.epochs=3", "trainer.tensorboard=true"])
    assert [step for step, _ in curves(run)["loss/train"]] == [5, 15]


def test_a_test_after_a_resume_is_not_dropped_by_what_the_resume_replaces(fit: Fit) -> None:
    """Readers drop later steps of earlier files at the point where a resume began."""
    run = fit("trainer.epochs=1").run_dir
    for epochs in (1, 2, 3):
        train.main(["-r", str(run), f"trainer.epochs={epochs}"])
        for _ in range(2):
            load_script("test").main(["-r", str(run / "checkpoints" / "last.pth")])
        found = curves(run)
        assert [step for step, _ in found["loss/test"]] == [5 * epochs]
        assert [step for step, _ in found["loss/train"]] == [5 * epoch for epoch in range(1, epochs + 1)]
        assert len(list(run.glob("events.out.tfevents.*test"))) == 1


def test_other_files_in_the_folder_are_left_alone(fit: Fit) -> None:
    run = fit("trainer.epochs=1").run_dir
    other: Path = run / "events.out.tfevents.of-mine"
    other.write_text("mine")
    train.main(["-r", str(run), "trainer.epochs=2"])
    assert other.read_text() == "mine"
