"""Damage to a checkpoint is found before a weight of it is used, named, and passed over where that is possible."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train
from tests.campaign import differences
from tests.conftest import load_script, small_config
from tests.helpers import Fit, copy_run, lines
from utils import checkpoint
from utils.checkpoint.checkpointer import Checkpointer
from utils.checkpoint.file import SMALL, staged, write
from utils.errors import CheckpointError

OFTEN = ("trainer.monitor=min val_loss", "trainer.save_every_steps=3", "trainer.keep_last=null")


@pytest.fixture
def file(fit: Fit) -> Path:
    return fit("trainer.epochs=1").run_dir / "checkpoints" / "last.pth"


def test_every_single_byte_that_is_flipped_is_found(file: Path) -> None:
    whole, choose = file.read_bytes(), random.Random(0)
    # the first and last bytes too: the zip's head, its comment and the length of that
    places = [*range(20), *range(len(whole) - 100, len(whole)), *(choose.randrange(len(whole)) for _ in range(880))]
    assert len(places) == 1000
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << choose.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.read(file)
    file.write_bytes(whole)
    checkpoint.read(file)


def test_every_truncation_is_found(file: Path) -> None:
    whole, choose = file.read_bytes(), random.Random(0)
    for length in [0, 1, 72, 73, 74, len(whole) - 1, *(choose.randrange(len(whole)) for _ in range(94))]:
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.read(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(file)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


@pytest.fixture(scope="module")
def whole_and_begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of three epochs, and one that stopped after two."""
    config = small_config(tmp_path_factory.mktemp("runs"))
    return (
        train.main(["-c", str(config), *OFTEN, "trainer.tensorboard=true", "trainer.epochs=3"]).run_dir,
        train.main(["-c", str(config), *OFTEN, "trainer.tensorboard=true", "name=begun"]).run_dir,
    )


@pytest.mark.parametrize("spoil", [empty, flip, remove])
@pytest.mark.parametrize(
    "names",
    [
        ("step-00000010.pth",),
        ("last.pth",),
        ("best.pth",),
        ("step-00000010.pth", "last.pth"),
        ("step-00000010.pth", "last.pth", "step-00000009.pth"),
        ("step-00000010.pth", "last.pth", "best.pth"),
    ],
)
def test_a_run_resumes_from_the_newest_undamaged_checkpoint(
    whole_and_begun: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    names: tuple[str, ...],
    spoil: Callable[[Path], None],
) -> None:
    whole, begun = whole_and_begun
    run = copy_run(begun, tmp_path)
    for name in names:
        path = run / "checkpoints" / name
        if path.exists():
            alone = path.read_bytes()
            path.unlink()  # the other names of the same file stay whole
            path.write_bytes(alone)
            spoil(path)
    capsys.readouterr()
    train.main(["-r", str(run), "trainer.epochs=3"])
    said = capsys.readouterr().err
    if spoil is not remove and "best.pth" not in names:
        assert f"{names[-1]} is damaged" in said
    assert differences(whole, run) == []


def test_a_run_does_not_restart_silently_where_checkpoints_are_gone(fit: Fit) -> None:
    run = fit("trainer.epochs=4").run_dir
    before = lines(run)
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="those of this run are gone, or could not be written"):
        train.main(["-r", str(run)])
    assert lines(run) == before


def test_where_all_are_damaged_each_is_named_with_a_way_out(fit: Fit) -> None:
    run = fit().run_dir
    files = sorted((run / "checkpoints").glob("step-*"))
    for path in files:
        flip(path)
    with pytest.raises(CheckpointError, match=r"To start a new run: python train.py -c") as caught:
        train.main(["-r", str(run)])
    assert all(path.name in str(caught.value) for path in files)


def test_a_damaged_file_that_is_asked_for_is_refused_with_a_way_out(fit: Fit) -> None:
    run = fit(*OFTEN).run_dir
    best = run / "checkpoints" / "best.pth"
    flip(best)
    with pytest.raises(CheckpointError, match=rf"best.pth is damaged(.|\n)*-r {run}"):
        train.main(["-r", str(best)])
    with pytest.raises(CheckpointError, match=r"best.pth is damaged"):
        fit("--init-from", str(run))
    with pytest.raises(CheckpointError, match=r"best.pth is damaged"):
        load_script("test").main(["-r", str(run)])


def test_going_back_to_a_file_takes_the_best_back_too(fit: Fit) -> None:
    run = fit("trainer.monitor=min loss", "trainer.save_every_steps=3", "trainer.epochs=6", "--lr=0.5").run_dir
    kept = sorted((run / "checkpoints").glob("step-*"))
    best = checkpoint.read(kept[0])["progress"]["best_step"]
    train.main(["-r", str(kept[0]), "trainer.epochs=6", "--lr=1e-30"])
    found = checkpoint.read(run / "checkpoints" / "last.pth")["progress"]
    if found["best_step"] != best:
        assert checkpoint.read(run / "checkpoints" / "best.pth")["progress"]["steps"] == found["best_step"]
    else:
        assert not (run / "checkpoints" / "best.pth").exists(), "it was of the course that was left"


def copied(run: Path) -> Path:
    """A copy of a run in which no two names are one file, as a download or a file system without links makes it."""
    target = run.with_name("20000101-000000")
    shutil.copytree(run, target)
    return target


@pytest.mark.parametrize("spoil", [empty, flip, remove])
def test_a_sound_best_one_is_never_replaced_by_a_damaged_one(fit: Fit, spoil: Callable[[Path], None]) -> None:
    run = copied(fit(*OFTEN, "trainer.epochs=3", "trainer.monitor=max val_loss").run_dir)
    folder = run / "checkpoints"
    best = (folder / "best.pth").read_bytes()
    step = checkpoint.read(folder / "best.pth")["progress"]["steps"]
    assert step == 5
    spoil(folder / f"step-{step:08d}.pth")
    train.main(["-r", str(run)])
    assert (folder / "best.pth").read_bytes() == best
    assert (folder / f"step-{step:08d}.pth").read_bytes() == best


def test_a_best_one_that_is_gone_under_both_names_is_missed(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise test.py would take the last one, and the end of the run would still name the best epoch."""
    run = fit(*OFTEN, "trainer.epochs=3", "trainer.monitor=max val_loss").run_dir
    (run / "checkpoints" / "best.pth").unlink()
    (run / "checkpoints" / "step-00000005.pth").unlink()
    capsys.readouterr()
    train.main(["-r", str(run)])
    why = "the best checkpoint so far, of step 5, was not kept (trainer.keep_last) or is missing"
    assert f"{why}; best.pth is written again after the next better epoch" in capsys.readouterr().err


def test_a_sound_last_one_is_kept_where_its_step_file_is_damaged(fit: Fit) -> None:
    run = copied(fit(*OFTEN, "trainer.epochs=3").run_dir)
    folder = run / "checkpoints"
    last = (folder / "last.pth").read_bytes()
    flip(folder / "step-00000015.pth")
    train.main(["-r", str(folder / "step-00000003.pth"), "trainer.epochs=1"])
    assert (folder / "set-aside" / "step-00000015.pth").read_bytes() == last
    flip(folder / "step-00000005.pth")
    shutil.copy(folder / "step-00000005.pth", folder / "step-00000015.pth")
    (folder / "last.pth").unlink()
    (folder / "best.pth").unlink()
    train.main(["-r", str(folder / "step-00000003.pth"), "trainer.epochs=1"])
    assert (folder / "set-aside" / "step-00000015.pth").read_bytes() == last


def test_a_sound_best_one_stays_while_training_goes_on_without_links(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    original, bests = Checkpointer._store, list[bytes]()

    def store(self: Checkpointer, step: int, state: object) -> None:
        if step == 6:  # after the first epoch, which was the best one
            bests.extend((self.folder / name).read_bytes() for name in ("best.pth", "step-00000005.pth"))
            flip(self.folder / "step-00000005.pth")
        original(self, step, state)

    monkeypatch.setattr(Checkpointer, "_store", store)
    run = fit("trainer.monitor=min val_loss", "trainer.save_every_steps=3", "trainer.epochs=2", "--lr=1e-30").run_dir
    assert bests == [(run / "checkpoints" / "best.pth").read_bytes()] * 2


@pytest.mark.parametrize("numbers", [10, SMALL // 4 + 1])
def test_a_file_is_the_same_whether_its_state_was_small(tmp_path: Path, numbers: int) -> None:
    """A small state is serialized before the training continues; a large one in the thread that writes it."""
    weights = torch.arange(float(numbers))
    state = {"model": {"weight": weights}, "step": 3}
    copied = staged(state)
    assert isinstance(copied, bytes) == (numbers == 10)
    write(tmp_path / "one.pth", state)
    weights += 1  # the next step
    write(tmp_path / "two.pth", copied)
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "two.pth").read_bytes()
    assert checkpoint.read(tmp_path / "two.pth")["model"]["weight"][-1] == numbers - 1
