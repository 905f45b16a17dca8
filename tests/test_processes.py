"""Several processes give what one gives: losses, metrics and weights, and a resume under any other number of them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import ROOT, Json, lines, same, state
from utils.checkpoint import step_files

# 97 samples to train on in batches of 8: no number of processes divides them, and the last batch is a single one
IMAGES: Json = {
    "name": "images",
    "data_loader": {"type": "SmallTensors", "args": {"batch_size": 8, "eval_batch_size": 5, "validation_split": 23}},
    "model": {"type": "LeNet", "args": {"in_channels": 3, "kernel_size": 5}},
    "loss": "cross_entropy",
    "metrics": [
        "accuracy",
        {"type": "F1Score", "args": {"task": "multiclass", "num_classes": 10, "average": "macro"}},
        {"type": "AUROC", "args": {"task": "multiclass", "num_classes": 10}},
    ],
    "optimizer": {"type": "SGD", "args": {"lr": 0.02, "momentum": 0.9}},
    "lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.05}, "interval": "step"},
    "trainer": {
        "epochs": 2,
        "accumulate_steps": 3,
        "clip_grad_norm": 1.0,
        "keep_last": None,
        "save_every_steps": 3,
        "log_every_steps": 4,
        "monitor": "min val_loss",
        "verbosity": 0,
    },
    "runtime": {"device": "cpu", "timeout": 60},
}
SUMS: Json = {
    "name": "sums",
    "data_loader": {
        "type": "RandomTensorLoader",
        "args": {"num_samples": 45, "input_shape": [12], "target_shape": [3], "batch_size": 7, "validation_split": 10},
    },
    "model": {"type": "TwoLayerNet", "args": {"in_features": 12, "hidden_features": 6, "out_features": 3}},
    "loss": {"type": "MSELoss", "args": {"reduction": "sum"}},
    "optimizer": {"type": "Adam", "args": {"lr": 0.01}},
    "trainer": {"epochs": 3, "accumulate_steps": 2, "tensorboard": False, "verbosity": 0},
    "runtime": {"device": "cpu", "timeout": 60},
}
RESTLESS: Json = {
    **IMAGES,
    "name": "restless",
    "data_loader": {"type": "SmallSamples", "args": {"batch_size": 9, "validation_split": 24}},
    "model": {"type": "Restless"},
}
IDLE: Json = {**SUMS, "name": "idle", "model": {"type": "Idle"}}
LBFGS: Json = {
    **SUMS,
    "name": "lbfgs",
    "loss": "MSELoss",
    "optimizer": {"type": "LBFGS", "args": {"max_iter": 3, "line_search_fn": "strong_wolfe"}},
    "trainer": {**SUMS["trainer"], "epochs": 1},
}
STEP = 6  # in the middle of the second epoch, and between two points of the curves

Launch = Callable[..., list[Any]]


def environment() -> dict[str, str]:
    """Without what pytest or a launcher around it may have set."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def torchrun(count: int, *command: str, options: tuple[str, ...] = ()) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *options]
    return [sys.executable, *launcher, *command]


class Team:
    """Starts the jobs of one number of processes together, and keeps what they gave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, count: int, jobs: list[Json]) -> list[Any]:
        for index, job in enumerate(jobs):
            if "config" in job:
                path = self.folder / f"config-{count}-{index}.json"
                config = {**job.pop("config")}
                config["trainer"] = {**config["trainer"], "save_dir": str(self.folder / "saved")}
                path.write_text(json.dumps(config))
                job["run"] = ["-c", str(path), *job.get("run", [])]
        tasks, results = self.folder / f"jobs-{count}.json", self.folder / f"results-{count}.json"
        tasks.write_text(json.dumps(jobs))
        arguments = ["-m", "tests.team", str(tasks), str(results)]
        command = [sys.executable, *arguments] if count == 1 else torchrun(count, *arguments)
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-6000:] + done.stdout
        return [Path(item) if item.startswith("/") else item for item in json.loads(results.read_text())]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run folders by what was run with how many processes."""
    team = Team(tmp_path_factory.mktemp("team"))
    fsdp = ["runtime.strategy=fsdp"]
    names = ["images", "sums", "restless", "idle", "lbfgs"]
    alone: list[Json] = [{"config": config} for config in (IMAGES, SUMS, RESTLESS, IDLE, LBFGS)]
    one = team(1, [*alone, {"config": IMAGES, "run": ["trainer.checkpoint=sharded"]}])
    found = dict(zip((f"{name} 1" for name in names), one, strict=False))

    def on(run: Any, *more: str) -> Json:
        return {"run": list(more), "of": run if isinstance(run, int) else str(run), "step": STEP}

    jobs: list[Json] = [{"config": IMAGES}, {"config": SUMS}, {"config": RESTLESS}]
    jobs += [{"config": IMAGES, "run": fsdp}, {"config": SUMS, "run": fsdp}, {"config": RESTLESS, "run": fsdp}]
    jobs += [{"config": IDLE, "run": ["runtime.unused_parameters=true"]}, {"config": IDLE}, {"config": LBFGS}]
    jobs += [on(2), on(5), on(one[0]), on(3, "runtime.strategy=ddp"), on(0, *fsdp)]
    sharded = ["trainer.checkpoint=sharded"]
    first = len(jobs)
    jobs += [{"config": RESTLESS, "run": sharded}, {"config": RESTLESS, "run": [*fsdp, *sharded]}]
    jobs += [on(first), on(first + 1), on(first + 1, "trainer.checkpoint=full"), on(5, *sharded)]
    jobs += [{"config": IMAGES, "run": [*fsdp, *sharded]}, on(one[5], *fsdp)]
    two = team(2, jobs)
    kinds = [*(f"{name} 2" for name in names[:3]), *(f"{name} 2 fsdp" for name in names[:3])]
    kinds += ["idle 2", "idle 2 untold", "lbfgs 2", "restless 2 to 2"]
    kinds += ["restless 2 to 2 fsdp", "images 1 to 2", "images 2 fsdp to ddp", "images 2 ddp to fsdp"]
    kinds += ["restless 2 sharded", "restless 2 fsdp sharded", "restless 2 to 2 sharded"]
    kinds += ["restless 2 to 2 fsdp sharded", "restless 2 to 2 fsdp sharded to full"]
    kinds += ["restless 2 to 2 fsdp full to sharded", "images 2 fsdp sharded", "images 1 sharded to 2 fsdp"]
    found |= zip(kinds, two, strict=True)
    three = team(3, [{"config": IMAGES}, {"config": SUMS}, on(two[0]), on(two[3]), on(two[-2])])
    kinds = ["images 3", "sums 3", "images 2 to 3", "images 2 fsdp to 3 fsdp", "images 2 fsdp sharded to 3 fsdp"]
    found |= zip(kinds, three, strict=True)
    four = team(
        4, [{"config": IMAGES, "run": fsdp}, {"config": SUMS}, on(three[0]), {"config": SUMS, "run": ["--bs=3"]}]
    )
    found |= zip(["images 4 fsdp", "sums 4", "images 3 to 4", "too many"], four, strict=True)
    last = team(1, [on(two[0]), on(four[0], "runtime.strategy=ddp"), on(three[-1], "runtime.strategy=ddp")])
    found |= zip(["images 2 to 1", "images 4 fsdp to 1", "images 3 fsdp sharded to 1"], last, strict=True)
    return found


def differences(left: Any, right: Any, *, rtol: float, at: str = "") -> list[str]:
    """Where two states differ by more than rounding."""
    if isinstance(left, dict):
        left, right = ({key: item for key, item in state.items() if key != "fused"} for state in (left, right))
        if left.keys() != right.keys():
            return [f"{at}: {sorted(left)} and {sorted(right)}"]
        return [item for key in left for item in differences(left[key], right[key], rtol=rtol, at=f"{at}.{key}")]
    if isinstance(left, (list, tuple)):
        pairs = enumerate(zip(left, right, strict=True))
        return [item for key, (a, b) in pairs for item in differences(a, b, rtol=rtol, at=f"{at}.{key}")]
    if isinstance(left, (torch.Tensor, float)):
        one, other = torch.as_tensor(left), torch.as_tensor(right)
        if one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=rtol, atol=1e-6):
            return []
        return [f"{at}: {left} and {right}"]
    return [] if left == right else [f"{at}: {left} and {right}"]


@pytest.mark.parametrize(
    "other",
    [
        "images 2",
        "images 3",
        "images 2 fsdp",
        "images 4 fsdp",
        "sums 2",
        "sums 3",
        "sums 4",
        "sums 2 fsdp",
        "images 1 to 2",
        "images 2 to 1",
        "images 2 to 3",
        "images 3 to 4",
        "images 4 fsdp to 1",
        "images 2 fsdp to ddp",
        "images 2 ddp to fsdp",
        "images 2 fsdp to 3 fsdp",
        "images 2 fsdp sharded",
        "images 1 sharded to 2 fsdp",
        "images 2 fsdp sharded to 3 fsdp",
        "images 3 fsdp sharded to 1",
        "idle 2",
        "lbfgs 2",
    ],
)
def test_any_number_of_processes_gives_what_one_gives(runs: dict[str, Any], other: str) -> None:
    one, run = runs[f"{other.split()[0]} 1"], runs[other]
    assert isinstance(run, Path), run
    assert differences(lines(one), lines(run), rtol=1e-4) == []
    for part in ("model", "optimizer", "schedule", "progress"):
        assert differences(state(one)[part], state(run)[part], rtol=1e-3, at=part) == []


@pytest.mark.parametrize(
    "kind",
    ["", " fsdp", " sharded", " fsdp sharded", " fsdp sharded to full", " fsdp full to sharded"],
)
def test_a_resume_under_the_same_number_is_exact_to_the_bit(runs: dict[str, Any], kind: str) -> None:
    whole, resumed = runs["restless 2 fsdp" if "fsdp" in kind else "restless 2"], runs[f"restless 2 to 2{kind}"]
    assert lines(whole) == lines(resumed)
    for part in ("model", "optimizer", "schedule", "progress", "random", "metrics"):
        assert same(state(whole)[part], state(resumed)[part]), part
    assert len(state(whole)["random"]) == 2
    assert not same(state(whole)["random"][0], state(whole)["random"][1])


@pytest.mark.parametrize("run", ["restless 2 sharded", "restless 2 fsdp sharded", "restless 2 to 2 fsdp sharded"])
def test_all_processes_write_about_as_much(runs: dict[str, Any], run: str) -> None:
    for path in step_files(runs[run] / "checkpoints"):
        data = path.parent / torch.load(path, weights_only=True)["sharded"]["data"]
        sizes = {piece.name: piece.stat().st_size for piece in data.glob("*.distcp")}
        assert sizes.keys() == {"__0_0.distcp", "__1_0.distcp"}
        assert max(sizes.values()) < 1.5 * min(sizes.values())


def test_a_batch_with_fewer_samples_than_processes_is_refused(runs: dict[str, Any]) -> None:
    assert "3 samples cannot be shared by 4 processes" in runs["too many"]


def test_a_parameter_that_takes_no_part_is_told_of(runs: dict[str, Any]) -> None:
    assert "UserError: some parameters of the model took no part in the loss" in runs["idle 2 untold"]
    assert "runtime.unused_parameters=true" in runs["idle 2 untold"]
