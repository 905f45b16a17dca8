"""Sharded checkpoints keep every promise of full ones. Several processes: tests/utils/distributed."""

import hashlib
import json
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import train
from tests.campaign import differences
from tests.conftest import load_script
from tests.helpers import ROOT, same, state
from tests.utils.checkpoint.test_untrusted import Payload
from utils import checkpoint
from utils.errors import CheckpointError, ConfigError, TrainingError

Fit = Callable[..., train.Result]
SHARDED = "trainer.checkpoint=sharded"
OFTEN = ("trainer.monitor=min val_loss", "trainer.save_every_steps=3", "trainer.keep_last=null")
ADAM = {"type": "AdamW", "args": {"lr": 0.01}}


def newest(run: Path) -> Path:
    return checkpoint.step_files(run / "checkpoints")[0]


def content(path: Path) -> dict[str, Any]:
    """What stands in the file itself, large tensors without their values."""
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def data_of(path: Path) -> Path:
    """The folder with the tensors of a checkpoint."""
    return path.parent / content(path)["sharded"]["data"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("kinds", ["sharded sharded", "full sharded", "sharded full", "full sharded full sharded"])
def test_a_resume_is_exact_whichever_kind_it_goes_on_from(fit: Fit, kinds: str) -> None:
    whole = fit(*OFTEN, "trainer.epochs=4", optimizer=ADAM).run_dir
    first, *others = kinds.split()
    run = fit(*OFTEN, "trainer.epochs=1", f"trainer.checkpoint={first}", name="other", optimizer=ADAM).run_dir
    for epochs, kind in enumerate(others, start=2):
        last = kind == others[-1]
        train.main(["-r", str(run), f"trainer.epochs={4 if last else epochs}", f"trainer.checkpoint={kind}"])
    assert differences(whole, run) == []
    assert ("sharded" in content(newest(run))) == (others[-1] == "sharded")


def test_a_resume_in_the_middle_of_an_epoch_is_exact(fit: Fit) -> None:
    run = fit(*OFTEN, SHARDED, optimizer=ADAM).run_dir
    before = state(run)
    middle = run / "checkpoints" / "step-00000003.pth"
    train.main(["-r", str(data_of(middle))])  # the folder stands for the checkpoint too
    after = state(run)
    assert all(same(before[part], after[part]) for part in before if part != "writers")


def test_the_file_holds_no_large_tensor_and_the_folder_no_small_one(fit: Fit) -> None:
    run = fit(SHARDED, optimizer=ADAM).run_dir
    found = content(newest(run))
    assert all(value.device.type == "meta" for value in found["model"].values())
    moments = found["optimizer"]["state"][0]
    assert (moments["step"].device.type, moments["exp_avg"].device.type) == ("cpu", "meta")
    optimizer = {f"optimizer.state.{index}.{name}" for index in range(4) for name in ("exp_avg", "exp_avg_sq")}
    assert found["sharded"]["pieces"].keys() == {f"model.{name}" for name in found["model"]} | optimizer


def test_torch_reads_the_folder_with_its_own_tools(fit: Fit, tmp_path: Path) -> None:
    run = fit(SHARDED).run_dir
    dcp_to_torch_save(data_of(newest(run)), tmp_path / "whole.pth")
    whole = torch.load(tmp_path / "whole.pth", weights_only=True)
    assert same(whole, {f"model.{name}": value for name, value in state(run)["model"].items()})


@pytest.mark.slow
def test_what_writes_it_is_not_imported_where_it_is_not_asked_for(write_config: Callable[..., Path]) -> None:
    code = (
        f"import sys, train; train.main(['-c', {str(write_config())!r}, 'trainer.verbosity=0']);"
        "assert not any(name.startswith('torch.distributed.checkpoint') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_testing_and_fine_tuning_take_it(fit: Fit) -> None:
    values = [load_script("test").main(["-r", str(fit(kind, name="x").run_dir)]) for kind in (SHARDED, OFTEN[2])]
    assert values[0] == values[1]
    run = fit(SHARDED).run_dir
    tuned = fit("--init-from", str(run), SHARDED, "trainer.epochs=1", name="tuned", optimizer=ADAM).run_dir
    assert same(checkpoint.read(tuned / "initial.pth")["model"], state(run)["model"])


def test_what_is_pruned_goes_with_its_folder_and_the_best_stays(fit: Fit) -> None:
    run = fit(SHARDED, "trainer.monitor=max val_loss", "trainer.keep_last=1", "trainer.epochs=8", "--lr=0.3").run_dir
    folder = run / "checkpoints"
    files = checkpoint.step_files(folder)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {data_of(path).name for path in files}
    assert len(files) == len({state(run, name)["progress"]["steps"] for name in ("last.pth", "best.pth")}) <= 2


def test_the_folder_of_an_interrupted_save_goes_with_the_next(fit: Fit) -> None:
    run = fit(*OFTEN, SHARDED).run_dir
    (run / "checkpoints" / "step-00000012").mkdir()  # written, and its file is not
    (run / "checkpoints" / "step-00000007-2").mkdir()
    (run / "checkpoints" / "step-by-step").mkdir()  # somebody else's
    train.main(["-r", str(run), "trainer.epochs=3"])
    folders = {path.name for path in (run / "checkpoints").iterdir() if path.is_dir()}
    assert folders == {data_of(path).name for path in checkpoint.step_files(run / "checkpoints")} | {"step-by-step"}


def test_a_course_that_is_left_can_be_taken_up_again(fit: Fit) -> None:
    run = fit(*OFTEN, SHARDED, "trainer.epochs=3").run_dir
    before = state(run)
    train.main(["-r", str(run / "checkpoints" / "step-00000003.pth"), "trainer.clip_grad_norm=0.01"])
    assert not same(before["model"], state(run)["model"])
    aside = run / "checkpoints" / "set-aside" / "step-00000015.pth"
    assert same(checkpoint.read(aside)["model"], before["model"])


def test_what_stands_until_the_new_one_does_is_not_touched(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(*OFTEN, SHARDED).run_dir
    before = state(run)

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.checkpoint.sharded.write", fails)  # at the last moment
    with pytest.raises(TrainingError, match=r"step-00000015.pth could not be written: .*No space left"):
        train.main(["-r", str(run), "trainer.epochs=3"])
    assert "the older checkpoints are whole" in capsys.readouterr().err
    assert same(before, state(run))
    assert not list((run / "checkpoints").glob("step-00000015*"))


# ------------------------------------------------------------------ damage


def test_every_single_byte_that_is_flipped_is_found(fit: Fit) -> None:
    file = newest(fit(SHARDED, "trainer.epochs=1").run_dir)
    pieces = data_of(file) / "__0_0.distcp"
    whole, choose = pieces.read_bytes(), random.Random(0)
    for place in (0, len(whole) - 1, *(choose.randrange(len(whole)) for _ in range(60))):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << choose.randrange(8)
        pieces.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"__0_0.distcp is damaged"):
            checkpoint.read(file)
    for length in (0, 1, len(whole) - 1):
        pieces.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"__0_0.distcp is damaged"):
            checkpoint.read(file)
    pieces.write_bytes(whole)
    checkpoint.read(file)


def flip(data: Path) -> None:
    path = data / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [flip, shutil.rmtree, lambda data: (data / "__0_0.distcp").unlink()])
def test_a_run_goes_on_from_the_newest_sound_checkpoint(
    fit: Fit, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None]
) -> None:
    whole = fit(*OFTEN, "trainer.epochs=3").run_dir
    run = fit(*OFTEN, SHARDED, name="spoiled").run_dir
    for path in checkpoint.step_files(run / "checkpoints")[:2]:
        spoil(data_of(path))
    train.main(["-r", str(run), "trainer.epochs=3"])
    assert "falling back to an older one" in capsys.readouterr().err
    assert differences(whole, run) == []


# ------------------------------------------------------------------ somebody else's folder


def forge(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a file, checksum and all."""
    found = content(path)
    change(found)
    for name in ("last.pth", "best.pth"):
        path.with_name(name).unlink(missing_ok=True)
    checkpoint.write(path, found)


def test_no_pickle_of_the_folder_is_ever_read(fit: Fit, tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    run = fit(SHARDED).run_dir
    before, data = state(run), data_of(newest(run))
    for name in (".metadata", "__0.metadata"):
        (data / name).write_bytes(pickle.dumps(Payload(trace)))
    assert same(before, state(run))
    load_script("test").main(["-r", str(run)])
    fit("--init-from", str(run), name="tuned")
    train.main(["-r", str(run), "trainer.epochs=3"])
    assert not trace.exists()
    with pytest.raises(AttributeError):  # the payload is live: what torch reads is what it has made
        FileSystemReader(data).read_metadata()
    assert trace.exists()


@pytest.mark.parametrize("how", ["bare pickle", "torch.save"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_piece_with_code_is_refused_before_any_of_it_runs(fit: Fit, tmp_path: Path, how: str, signed: bool) -> None:
    trace = tmp_path / "it ran"
    run = fit(SHARDED).run_dir
    file = newest(run)
    for other in checkpoint.step_files(run / "checkpoints")[1:]:
        other.unlink()
    path = data_of(file) / "__0_0.distcp"
    if how == "torch.save":
        torch.save(Payload(trace), path)
    else:
        path.write_bytes(pickle.dumps(Payload(trace), protocol=2))

    def sign(found: dict[str, Any]) -> None:
        index, length = found["sharded"], path.stat().st_size
        index["files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
        index["pieces"] = {
            name: [(at, size, file, 0, length) for at, size, file, *_ in pieces]
            for name, pieces in index["pieces"].items()
        }

    if signed:
        forge(file, sign)
    for command in (
        lambda: train.main(["-r", str(run)]),
        lambda: train.main(["-r", str(file)]),
        lambda: fit("--init-from", str(file)),
        lambda: load_script("test").main(["-r", str(file)]),
    ):
        with pytest.raises(CheckpointError, match="nothing of it was run" if signed else "is damaged"):
            command()
    assert not trace.exists()


def each_piece(index: dict[str, Any], change: Callable[[Any], list[Any]]) -> None:
    index["pieces"] = {name: change(piece) for name, (piece, *_) in index["pieces"].items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda index: index.update(data="../../precious"), "none of a checkpoint"),
        (lambda index: index.update(data=".."), "none of a checkpoint"),
        (lambda index: index.update(files={"../precious": ""}), "none of a checkpoint"),
        (lambda index: index.update(data=3), "cannot be read"),
        (lambda index: index.pop("pieces"), "cannot be read"),
        (lambda index: index["pieces"].popitem(), "cannot be read"),
        (lambda index: each_piece(index, lambda piece: []), "not the whole"),
        (lambda index: each_piece(index, lambda piece: [(*piece[:2], "../x", *piece[3:])]), "no file of this"),
        (lambda index: each_piece(index, lambda piece: [(*piece[:3], 5, 7)]), "nothing of it was run"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(fit: Fit, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    run = fit(SHARDED).run_dir
    forge(newest(run), lambda found: change(found["sharded"]))
    with pytest.raises(CheckpointError, match=says):
        train.main(["-r", str(newest(run))])


def test_a_link_in_the_folder_leads_nothing_out_of_it(fit: Fit, tmp_path: Path) -> None:
    run = fit(SHARDED).run_dir
    path = data_of(newest(run)) / "__0_0.distcp"
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a symbolic link"):
        train.main(["-r", str(run)])


def test_the_kind_is_checked(fit: Fit) -> None:
    with pytest.raises(ConfigError, match="checkpoint"):
        fit("trainer.checkpoint=shard")


def test_the_config_of_the_run_says_it(fit: Fit) -> None:
    config = json.loads((fit(SHARDED).run_dir / "config.json").read_text())
    assert config["trainer"]["checkpoint"] == "sharded"
