"""Sharded checkpoints keep every promise of full ones. Several processes: tests/utils/distributed."""

import contextlib
import hashlib
import io
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

import train
from tests.campaign import differences
from tests.conftest import load_script
from tests.helpers import Fit, same, state
from tests.utils.checkpoint.test_untrusted import Payload
from utils import checkpoint
from utils.errors import CheckpointError, TrainingError

SHARDED = "trainer.checkpoint=sharded"
OFTEN = ("trainer.monitor=min val_loss", "trainer.save_every_steps=3", "trainer.keep_last=null")
ADAM = {"type": "AdamW", "args": {"lr": 0.01}}


def newest(run: Path) -> Path:
    return checkpoint.step_files(run / "checkpoints")[0]


def content(path: Path) -> dict[str, Any]:
    """The content of the file itself, large tensors without their values."""
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def data_of(path: Path) -> Path:
    """The folder with the tensors of a checkpoint."""
    return path.parent / content(path)["sharded"]["data"]  # type: ignore[no-any-return]


def description_of(file: Path) -> Any:
    """DCP's description of the tensors of a checkpoint."""
    return torch.load(io.BytesIO(content(file)["sharded"]["description"].numpy().tobytes()), weights_only=False)


def describe(file: Path, description: Any) -> None:
    """Put another description into the file, and the right checksums of its folder, as anybody can."""
    torch.save(description, buffer := io.BytesIO())
    described = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
    shards = data_of(file).glob("*.distcp")
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards}
    forge(file, lambda found: found["sharded"].update(description=described, files=files))


@pytest.mark.slow
@pytest.mark.parametrize("kinds", ["sharded sharded", "full sharded", "sharded full", "full sharded full sharded"])
@pytest.mark.usefixtures("tensorboard")
def test_a_resume_is_exact_from_either_kind(fit: Fit, kinds: str) -> None:
    whole = fit(*OFTEN, "trainer.epochs=4", optimizer=ADAM).run_dir
    first, *others = kinds.split()
    run = fit(*OFTEN, "trainer.epochs=1", f"trainer.checkpoint={first}", name="other", optimizer=ADAM).run_dir
    for epochs, kind in enumerate(others, start=2):
        last = kind == others[-1]
        train.main(["-r", str(run), f"trainer.epochs={4 if last else epochs}", f"trainer.checkpoint={kind}"])
    assert differences(whole, run) == []
    assert ("sharded" in content(newest(run))) == (others[-1] == "sharded")


def test_a_run_on_the_cpu_does_not_start_a_gpu_that_the_machine_has(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """DCP would copy through a stream of it, although the tensors have been copied already."""
    started: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", started.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    run = fit("trainer.epochs=1", SHARDED, "runtime.device=cpu").run_dir
    assert "sharded" in content(newest(run))
    assert not started


def test_a_resume_in_the_middle_of_an_epoch_is_exact(fit: Fit) -> None:
    run = fit(*OFTEN, SHARDED, optimizer=ADAM).run_dir
    before = state(run)
    middle = run / "checkpoints" / "step-00000003.pth"
    train.main(["-r", str(middle)])
    after = state(run)
    assert all(same(before[part], after[part]) for part in before if part != "writers")


def test_the_file_holds_no_large_tensor_and_the_folder_no_small_one(fit: Fit) -> None:
    run = fit(SHARDED, optimizer=ADAM).run_dir
    found = content(newest(run))
    assert all(value.device.type == "meta" for value in found["model"].values())
    moments = found["optimizer"]["state"][0]
    assert (moments["step"].device.type, moments["exp_avg"].device.type) == ("cpu", "meta")
    optimizer = {f"optimizer.state.{index}.{name}" for index in range(4) for name in ("exp_avg", "exp_avg_sq")}
    names = FileSystemReader(data_of(newest(run))).read_metadata().state_dict_metadata.keys()
    assert names == {f"model.{name}" for name in found["model"]} | optimizer


def test_a_run_folder_can_be_moved_and_no_path_is_kept_in_it(fit: Fit, tmp_path: Path) -> None:
    run = fit(SHARDED).run_dir
    before = state(run)
    assert str(tmp_path).encode() not in (data_of(newest(run)) / ".metadata").read_bytes()
    moved = run.rename(run.with_name("20200101-000000"))
    assert same(before, state(moved))


def test_torch_reads_the_folder_with_its_own_tools(fit: Fit, tmp_path: Path) -> None:
    run = fit(SHARDED).run_dir
    dcp_to_torch_save(data_of(newest(run)), tmp_path / "whole.pth")
    whole = torch.load(tmp_path / "whole.pth", weights_only=True)
    assert same(whole, {f"model.{name}": value for name, value in state(run)["model"].items()})


@pytest.mark.slow
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
    (run / "checkpoints" / "step-00000013-1-1").mkdir()  # written, and its file is not
    (run / "checkpoints" / "step-by-step").mkdir()  # somebody else's
    train.main(["-r", str(run), "trainer.epochs=3"])
    folders = {path.name for path in (run / "checkpoints").iterdir() if path.is_dir()}
    assert folders == {data_of(path).name for path in checkpoint.step_files(run / "checkpoints")} | {"step-by-step"}


def test_an_abandoned_branch_can_be_loaded_again(fit: Fit) -> None:
    run = fit(*OFTEN, SHARDED, "trainer.epochs=3").run_dir
    before = state(run)
    train.main(["-r", str(run / "checkpoints" / "step-00000003.pth"), "trainer.clip_grad_norm=0.01"])
    assert not same(before["model"], state(run)["model"])
    aside = run / "checkpoints" / "set-aside" / "step-00000015.pth"
    assert same(checkpoint.read(aside)["model"], before["model"])


@pytest.mark.parametrize("where", ["utils.checkpoint.sharded.write", "utils.checkpoint.shards._Writer.write_data"])
def test_a_failed_save_leaves_the_checkpoints_before_it(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """At the last moment, or as torch writes the tensors."""
    run = fit(*OFTEN, SHARDED).run_dir
    before = state(run)

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, fails)
    with pytest.raises(TrainingError, match=r"step-00000015.pth could not be written: .*No space left"):
        train.main(["-r", str(run), "trainer.epochs=3"])
    assert "the older checkpoints are intact" in capsys.readouterr().err
    assert same(before, state(run))
    assert not list((run / "checkpoints").glob("step-00000015*"))


# ------------------------------------------------------------------ damage


@pytest.mark.slow
def test_every_single_byte_that_is_flipped_is_found(fit: Fit) -> None:
    name = "__0_0.distcp"
    file = newest(fit(SHARDED, "trainer.epochs=1").run_dir)
    path = data_of(file) / name
    whole, choose = path.read_bytes(), random.Random(0)
    for place in (0, len(whole) - 1, *(choose.randrange(len(whole)) for _ in range(60))):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
            checkpoint.read(file)
    for length in (0, 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
            checkpoint.read(file)
    path.write_bytes(whole)
    checkpoint.read(file)


def flip(data: Path) -> None:
    path = data / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    [
        flip,
        shutil.rmtree,
        lambda data: (data / "__0_0.distcp").unlink(),
    ],
)
@pytest.mark.usefixtures("tensorboard")
def test_a_run_resumes_from_the_newest_undamaged_checkpoint(
    fit: Fit, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None]
) -> None:
    whole = fit(*OFTEN, "trainer.epochs=3").run_dir
    run = fit(*OFTEN, SHARDED, name="spoiled").run_dir
    for path in checkpoint.step_files(run / "checkpoints")[:2]:
        spoil(data_of(path))
    train.main(["-r", str(run), "trainer.epochs=3"])
    assert "falling back to an older one" in capsys.readouterr().err
    assert differences(whole, run) == []


# ------------------------------------------------------------------ an untrusted folder


def forge(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a file, checksum and all."""
    found = content(path)
    change(found)
    for name in ("last.pth", "best.pth"):
        path.with_name(name).unlink(missing_ok=True)
    checkpoint.write(path, found)


def refused(file: Path, fit: Fit, says: str) -> None:
    commands: list[Callable[[], Any]] = [
        lambda: train.main(["-r", str(file.parent.parent)]),
        lambda: train.main(["-r", str(file)]),
        lambda: fit("--init-from", str(file)),
        lambda: load_script("test").main(["-r", str(file)]),
    ]
    for command in commands:
        with pytest.raises(CheckpointError, match=says):
            command()


@pytest.mark.slow
def test_a_description_with_code_is_refused_before_any_of_it_runs(fit: Fit, tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    run = fit(SHARDED, "trainer.keep_last=1", "trainer.epochs=1").run_dir
    file = newest(run)
    data = data_of(file)
    (data / ".metadata").write_bytes(pickle.dumps(Payload(trace)))
    checkpoint.read(file)
    description = description_of(file)
    description.planner_data = Payload(trace)
    describe(file, description)
    refused(file, fit, "no code in it was run")
    assert not trace.exists()
    # the payload is live: torch's own reader runs it
    with contextlib.suppress(AttributeError):
        FileSystemReader(data).read_metadata()
    assert trace.exists()


@pytest.mark.slow
@pytest.mark.parametrize("other", [BytesStorageMetadata(), Path("/")])  # DCP would unpickle what it finds for the first
def test_only_the_classes_of_tensors_are_known(fit: Fit, other: Any) -> None:
    file = newest(fit(SHARDED, "trainer.epochs=1").run_dir)
    description = description_of(file)
    description.state_dict_metadata["other"] = other
    describe(file, description)
    with pytest.raises(CheckpointError, match="no code in it was run"):
        checkpoint.read(file)


@pytest.mark.parametrize("how", ["bare pickle", "torch.save"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_shard_with_code_is_refused_before_any_of_it_runs(fit: Fit, tmp_path: Path, how: str, signed: bool) -> None:
    trace = tmp_path / "it ran"
    file = newest(fit(SHARDED, "trainer.keep_last=1", "trainer.epochs=1").run_dir)
    path = data_of(file) / "__0_0.distcp"
    if how == "torch.save":
        torch.save(Payload(trace), path)
    else:
        path.write_bytes(pickle.dumps(Payload(trace), protocol=2))
    if signed:
        description = description_of(file)
        for info in description.storage_data.values():
            vars(info).update(offset=0, length=path.stat().st_size)
        describe(file, description)
    refused(file, fit, "no code in it was run" if signed else "is damaged")
    assert not trace.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda index: index.update(data="../../precious"), "do not belong to a checkpoint"),
        (lambda index: index.update(data=".."), "do not belong to a checkpoint"),
        (lambda index: index.update(files={"../precious": ""}), "do not belong to a checkpoint"),
        (lambda index: index.update(data=3), "cannot be read"),
        (lambda index: index.pop("files"), "cannot be read"),
        (lambda index: index.update(description=torch.ones(3)), "cannot be read|no code in it was run"),
        (lambda index: index["files"].pop("__0_0.distcp"), "cannot be read"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(fit: Fit, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    run = fit(SHARDED).run_dir
    forge(newest(run), lambda found: change(found["sharded"]))
    with pytest.raises(CheckpointError, match=says):
        train.main(["-r", str(newest(run))])


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda description: description.state_dict_metadata.popitem(),
        lambda description: description.storage_data.clear(),
        lambda description: [vars(item).update(relative_path="../x") for item in description.storage_data.values()],
        lambda description: [vars(item).update(offset=5) for item in description.storage_data.values()],
    ],
)
def test_a_description_that_makes_no_sense_is_refused(fit: Fit, change: Callable[[Any], Any]) -> None:
    file = newest(fit(SHARDED, "trainer.epochs=1").run_dir)
    description = description_of(file)
    change(description)
    describe(file, description)
    with pytest.raises(CheckpointError, match=f"{file.name} (cannot be read|contains more)"):
        checkpoint.read(file)
