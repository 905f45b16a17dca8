"""Nothing that somebody else gave you runs as code or leads writes out of the run's folder."""

import hashlib
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from tests.conftest import load_script, small_config
from tests.helpers import Fit, copy_run
from utils import checkpoint
from utils.checkpoint.file import MARK
from utils.errors import CheckpointError, ConfigError, DataError, UserError

pytestmark = pytest.mark.slow


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def sign(path: Path) -> None:
    """What anybody can do: put the right checksum on a file that torch.save has written."""
    data = path.read_bytes()[:-2]
    mark = MARK + hashlib.sha256(data).hexdigest().encode()
    path.write_bytes(data + struct.pack("<H", len(mark)) + mark)


def armed(run: Path, how: str, trace: Path) -> Path:
    """Replace a run's checkpoints by one that carries a payload."""
    path = run / "checkpoints" / "last.pth"
    state = checkpoint.read(path)
    for other in path.parent.iterdir():
        other.unlink()
    path = path.with_name("step-00000010.pth")
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(Payload(trace)))
        return path
    torch.save({**state, "extra": Payload(trace)}, path)
    if how == "signed":
        sign(path)
    return path


@pytest.mark.parametrize("how", ["bare pickle", "unsigned", "signed"])
def test_a_checkpoint_with_code_is_refused_before_any_of_it_runs(fit: Fit, tmp_path: Path, how: str) -> None:
    trace = tmp_path / "it ran"
    run = fit().run_dir
    path = armed(run, how, trace)
    says = "no code in it was run" if how == "signed" else "not written by this project"
    commands: list[Callable[[], Any]] = [
        lambda: train.main(["-r", str(run)]),
        lambda: train.main(["-r", str(path)]),
        lambda: fit("--init-from", str(path)),
        lambda: load_script("test").main(["-r", str(path)]),
    ]
    for command in commands:
        with pytest.raises(CheckpointError, match=says):
            command()
    assert not trace.exists()
    if how == "signed":  # the payload is live, and what refuses it is not the checksum
        checkpoint.verify(path)
        torch.load(path, weights_only=False)
        assert trace.exists()


def test_a_zip_that_is_signed_but_no_checkpoint_is_refused(fit: Fit) -> None:
    path = fit().run_dir / "checkpoints" / "last.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"not a pickle")
    sign(path)
    with pytest.raises(CheckpointError, match=r"last.pth cannot be read"):
        checkpoint.read(path)
    torch.save({"weights": 1}, path)
    sign(path)
    with pytest.raises(CheckpointError, match="not a checkpoint written by this project"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    "state",
    [
        {"file": "../../precious", "bytes": 0},
        {"file": "/precious", "bytes": 0},
        {"file": "config.json", "bytes": 0},
        {"file": "events.out.tfevents.9999999999.x", "bytes": 0},
    ],
)
def test_a_checkpoint_cannot_cut_a_file_that_is_not_a_log(trained: Path, tmp_path: Path, state: dict[str, Any]) -> None:
    (tmp_path / "runs").mkdir()
    run = copy_run(trained, tmp_path / "runs")
    for path in (tmp_path / "precious", run.parent / "precious"):
        path.write_text("precious")
    forge(run, lambda found: found["writers"].update(events=state))
    train.main(["-r", str(run)])
    assert (tmp_path / "precious").read_text() == "precious"
    assert (run.parent / "precious").read_text() == "precious"
    assert json.loads((run / "config.json").read_text())["name"] == "small"


def forge(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the state in a run's newest checkpoint, checksum and all."""
    path = checkpoint.step_files(run / "checkpoints")[0]
    state = checkpoint.read(path)
    change(state)
    (path.parent / "last.pth").unlink()
    checkpoint.write(path, state)


def replace(*keys: Any, by: Any) -> Callable[[dict[str, Any]], None]:
    """Replace the value at these keys of a state; by ...: remove it."""

    def change(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        if by is ...:
            del state[keys[-1]]
        else:
            state[keys[-1]] = by

    return change


FORGED: list[tuple[Any, ...]] = [
    *((part, by) for part in ("optimizer", "schedule", "metrics", "progress", "random", "writers") for by in (5, ...)),
    *(("progress", "steps", by) for by in (10**30, -1, "x", True, 1.5, None, ..., 3)),
    *(("progress", key, -1) for key in ("epochs", "epoch_steps", "passes", "samples", "best_step", "stale_epochs")),
    *(("progress", key, by) for key in ("trained", "best", "best_epoch") for by in ("x", ..., [1])),
    ("progress", "validating", 1),
    ("progress", "step", 1),
    ("random", []),
    ("random", 0, "torch", torch.zeros(3)),
    ("random", 0, "numpy", ...),
    ("random", 0, "python", 1, torch.zeros(1)),
    ("schedule", "moves", 10**30),
    ("schedule", "moves", -1),
    ("schedule", "used", ["x"]),
    ("metrics", "processes", 5),
    ("metrics", "processes", 0, "loss", "interval", ["x", 1]),
    ("metrics", "processes", 0, "loss", "whole", 0, torch.zeros(2)),
    ("metrics", "processes", 0, "F1Score", "values", {"compute": torch.zeros(1)}),
    ("metrics", "processes", 0, "F1Score", "updates", -1),
    ("optimizer", "param_groups", 0, "lr", "x"),
    ("optimizer", "param_groups", 0, "momentum", None),
    ("optimizer", "param_groups", 0, "dampening", ...),
    ("optimizer", "state", 99, {}),
    ("optimizer", "state", 0, "momentum_buffer", torch.zeros(1)),
    ("writers", "metrics", 5),
    ("writers", "metrics", "bytes", -5),
    ("writers", "events", "bytes", True),
    ("writers", "events", "file", 5),
    ("model", {"x": torch.zeros(1)}),
    ("data", 5),
    ("data", "training", "x"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with something in each part of its checkpoint."""
    config = small_config(
        tmp_path_factory.mktemp("trained"),
        metrics=["accuracy", {"type": "F1Score", "args": {"task": "multiclass", "num_classes": 3, "average": "macro"}}],
        optimizer={"type": "SGD", "args": {"lr": 0.1, "momentum": 0.9}},
        lr_scheduler={"type": "StepLR", "args": {"step_size": 2}},
        trainer={"tensorboard": True, "epochs": 1},
    )
    return train.main(["-c", str(config)]).run_dir


@pytest.mark.parametrize("forged", FORGED, ids=lambda forged: ".".join(map(str, forged)).replace("\n", " ")[:60])
def test_a_forged_value_is_refused_and_nothing_changes(trained: Path, tmp_path: Path, forged: tuple[Any, ...]) -> None:
    run = copy_run(trained, tmp_path)
    forge(run, replace(*forged[:-1], by=forged[-1]))
    before = content(run)
    with pytest.raises(UserError, match=r"step-00000005\.pth|data_loader|invalid checkpoint"):
        train.main(["-r", str(run), "trainer.epochs=2"])
    assert content(run) == before


@pytest.mark.parametrize(
    ("optimizer", "change", "says"),
    [
        (
            "Adam",
            lambda state: state["optimizer"]["state"][0].pop("exp_avg"),
            "optimizer: Adam.step failed: KeyError: 'exp_avg'\nIts saved state may not fit",
        ),
        (
            "RMSprop",
            lambda state: state["optimizer"]["state"][1].update(square_avg="x"),
            "optimizer: RMSprop.step failed: AttributeError",
        ),
        ("SGD", lambda state: state["schedule"]["scheduler"].update(step_size="x"), "StepLR failed"),
    ],
)
def test_a_forged_state_of_the_optimizer_or_its_schedule_is_named(
    fit: Fit, optimizer: str, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    run = fit(
        "trainer.epochs=3",
        optimizer={"type": optimizer, "args": {"lr": 0.01}},
        lr_scheduler={"type": "StepLR", "args": {"step_size": 2}, "interval": "step"},
    ).run_dir
    for path in (run / "checkpoints").iterdir():
        if path.name != "step-00000010.pth" and path.name != "last.pth":
            path.unlink()
    forge(run, change)
    with pytest.raises(UserError, match=says):
        train.main(["-r", str(run)])


def content(run: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name not in ("train.log", ".lock")
    }


@pytest.mark.parametrize("forged", [("progress", 5), ("progress", ...), ("progress", "steps", "x"), ("model", 5)])
def test_a_forged_checkpoint_is_not_tested_either(trained: Path, tmp_path: Path, forged: tuple[Any, ...]) -> None:
    run = copy_run(trained, tmp_path)
    forge(run, replace(*forged[:-1], by=forged[-1]))
    with pytest.raises(CheckpointError, match=r"step-00000005\.pth"):
        load_script("test").main(["-r", str(run / "checkpoints" / "step-00000005.pth")])


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "train.log", "config.json", ".lock", "checkpoints", "checkpoints/last.pth"]
)
def test_a_link_in_a_run_folder_leads_nothing_out_of_it(fit: Fit, tmp_path: Path, name: str) -> None:
    run = fit().run_dir
    precious = tmp_path / "precious"
    shutil.move(run / name, precious)
    (run / name).symlink_to(precious)
    files = [precious] if precious.is_file() else sorted(precious.iterdir())
    before = [path.read_bytes() for path in files]
    with pytest.raises(CheckpointError, match="but a link or something else"):
        train.main(["-r", str(run)])
    load_script("test").main(["-r", str(run)])
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize("name", ["../x", "/x", "..", ".hidden", "a/b", "a\\b", "", "x\n"])
def test_a_name_cannot_leave_the_save_folder(fit: Fit, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        fit(name=name)


def test_a_run_resumes_in_its_folder_whatever_its_config_says(fit: Fit, tmp_path: Path) -> None:
    run = fit("trainer.epochs=1").run_dir
    config = json.loads((run / "config.json").read_text())
    config["trainer"] |= {"save_dir": str(tmp_path / "elsewhere"), "epochs": 2}
    (run / "config.json").write_text(json.dumps(config))
    assert train.main(["-r", str(run)]).run_dir == run
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("download", ["false", "true"])
def test_no_config_skips_the_check_of_cifar10_whose_files_are_pickles(
    cifar10_folder: Path, tmp_path: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch, download: str
) -> None:
    trace = tmp_path / "it ran"
    folder = tmp_path / "data"
    shutil.copytree(cifar10_folder, folder)
    for path in (folder / "cifar-10-batches-py").iterdir():
        path.write_bytes(pickle.dumps(Payload(trace)))

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("no network in a test")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    data = {"data_dir": str(folder), "batch_size": 4, "download": download == "true"}
    model = {"type": "LeNet", "args": {}}
    with pytest.raises(DataError, match=r"CIFAR10 cannot be read[^\0]*with the official"):
        fit(data_loader={"type": "CIFAR10Loader", "args": data}, model=model)
    assert not trace.exists()
