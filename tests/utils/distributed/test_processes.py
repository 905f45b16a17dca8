"""Several processes give what one gives: losses, metrics and weights, and a resume under any other number of them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from tests import forked
from tests.helpers import ROOT, Json, curves, lines, needs_extra, same, state
from utils.checkpoint.file import step_files

pytestmark = pytest.mark.slow

# 97 samples to train on in batches of 16: no number of processes divides them, and the last batch is a single one
IMAGES: Json = {
    "name": "images",
    "data_loader": {"type": "SmallTensors", "args": {"batch_size": 16, "eval_batch_size": 11, "validation_split": 23}},
    "model": {"type": "LeNet", "args": {"in_channels": 3, "kernel_size": 5}},
    "loss": "cross_entropy",
    "metrics": [
        "accuracy",
        {"type": "F1Score", "args": {"task": "multiclass", "num_classes": 10, "average": "macro"}},
        {"type": "Precision", "args": {"task": "multiclass", "num_classes": 10, "average": "macro"}},
        {"type": "AUROC", "args": {"task": "multiclass", "num_classes": 10}},
    ],
    "optimizer": {"type": "SGD", "args": {"lr": 0.02, "momentum": 0.9}},
    "lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.05}, "interval": "step"},
    "trainer": {
        "epochs": 2,
        "accumulate_steps": 3,
        "clip_grad_norm": 1.0,
        "ema": {"decay": 0.9},
        "keep_last": None,
        "save_every_steps": 4,
        "log_every_steps": 3,
        "monitor": "min val_loss",
        "verbosity": 0,
        "tensorboard": False,
    },
    "runtime": {"device": "cpu", "timeout": 600},
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
    "trainer": {"epochs": 3, "accumulate_steps": 2, "log_every_steps": 2, "tensorboard": False, "verbosity": 0},
    "runtime": {"device": "cpu", "timeout": 600},
}
RESTLESS: Json = {
    **IMAGES,
    "name": "restless",
    "data_loader": {"type": "SmallSamples", "args": {"batch_size": 14, "validation_split": 24}},
    "model": {"type": "Restless"},
}
TIED: Json = {**RESTLESS, "name": "tied", "model": {"type": "TiedLayers"}}
TIED["trainer"] = {**RESTLESS["trainer"], "type": "MethodsTrainer"}
SOMETIMES: Json = {**SUMS, "name": "sometimes", "model": "Sometimes"}
SCALED: Json = {**SUMS, "name": "scaled", "model": {"type": "Scaled"}}
IDLING: Json = {**SUMS, "name": "idling", "trainer": {**SUMS["trainer"], "type": "IdlingTrainer"}}
IDLE: Json = {**SUMS, "name": "idle", "model": {"type": "Idle"}}
DIFFERENT: Json = {**IMAGES, "data_loader": {**IMAGES["data_loader"], "type": "DifferentTensors"}}
SPARSE: Json = {**SUMS, "name": "sparse", "model": "SparseRows", "optimizer": {"type": "SGD", "args": {"lr": 0.001}}}
GATHERING: Json = {
    **SUMS,
    "name": "gathering",
    "loss": None,
    "data_loader": {
        **SUMS["data_loader"],
        "args": {**SUMS["data_loader"]["args"], "batch_size": 8, "drop_last": True, "validation_split": 0},
    },
    "trainer": {"type": "GatheringTrainer", "args": {"how": "with gradients"}, "verbosity": 0, "tensorboard": False},
}
REPLAY: Json = {
    **SUMS,
    "name": "replay",
    "trainer": {**SUMS["trainer"], "type": "ReplayTrainer", "save_every_steps": 4, "keep_last": None},
}
LBFGS: Json = {
    **SUMS,
    "name": "lbfgs",
    "loss": "MSELoss",
    "optimizer": {"type": "LBFGS", "args": {"max_iter": 3, "line_search_fn": "strong_wolfe"}},
    "trainer": {**SUMS["trainer"], "epochs": 1},
}
WEIGHTS: Json = {
    **IMAGES,
    "name": "weights",
    "loss": {"type": "cross_entropy", "args": {"weight": [0.1, 5, 1, 1, 3, 0.2, 1, 4, 2, 1], "ignore_index": 3}},
    "metrics": [],
    "trainer": {**IMAGES["trainer"], "epochs": 1},
}
UNEQUAL: Json = {
    **WEIGHTS,
    "name": "unequal",
    "loss": {"weighted": WEIGHTS["loss"], "plain": "cross_entropy"},
    "trainer": {**WEIGHTS["trainer"], "accumulate_steps": 1},
}
STEP = 4  # in the middle of the second epoch, and between two points of the curves


def environment() -> dict[str, str]:
    """Without what pytest or a launcher around it may have set."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


class Jobs:
    """Runs jobs one after the other in the same number of processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launches = 0
        asked, ask = os.pipe()
        answers, answer = os.pipe()
        words = ("-m", "tests.utils.distributed.run_jobs")
        self.launcher = forked.Process(*words, cwd=ROOT, env=environment(), stdin=asked, stdout=answer)
        for end in (asked, answer):
            os.close(end)
        self.orders, self.answers = os.fdopen(ask, "w"), os.fdopen(answers)

    def __call__(self, count: int, named: dict[str, Json]) -> dict[str, Any]:
        """By name: a folder, or what was said instead. A job may be "of" a folder, or of an earlier one of these."""
        self.launches += 1
        jobs, names = list(named.values()), list(named)
        for index, job in enumerate(jobs):
            if "config" in job:
                path = self.folder / f"config-{self.launches}-{index}.json"
                config = {**job.pop("config")}
                config["trainer"] = {**config["trainer"], "save_dir": str(self.folder / "saved")}
                path.write_text(json.dumps(config))
                job["run"] = ["-c", str(path), *job.get("run", [])]
            if "of" in job:
                job["of"] = names.index(job["of"]) if job["of"] in names else str(job["of"])
        tasks, results, log = (self.folder / f"{name}-{self.launches}" for name in ("jobs", "results", "log"))
        tasks.write_text(json.dumps(jobs))
        self.orders.write(json.dumps([count, str(tasks), str(results), str(log)]) + "\n")
        self.orders.flush()
        assert self.answers.readline() == "0\n", log.read_text()[-9000:]
        found = [Path(item) if item.startswith("/") else item for item in json.loads(results.read_text())]
        return dict(zip(named, found, strict=True))

    def close(self) -> None:
        self.orders.close()
        self.launcher.wait()
        self.answers.close()


@pytest.fixture(scope="module")
def run_jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path_factory.mktemp("jobs"))
    yield jobs
    jobs.close()


@pytest.fixture(scope="module")
def runs(run_jobs: Jobs) -> dict[str, Any]:
    """Run folders by what was run with how many processes."""
    dense = {**SPARSE["optimizer"], "params": ["first.*", "out.*"]}
    fsdp, sharded, fp16 = ["runtime.strategy=fsdp"], ["trainer.checkpoint=sharded"], ["runtime.precision=fp16"]
    pictures = ["trainer.tensorboard=true"]

    def new(config: Json, *more: str) -> Json:
        return {"config": config, "run": list(more)}

    def on(run: str | Path, *more: str) -> Json:
        return {"run": ["trainer.pictures_every=0", *more], "of": run, "step": STEP}

    def tested(run: str | Path, name: str) -> Json:
        # a last batch of one sample: not all processes have a part of it
        batches = ["data_loader.args.eval_batch_size=" + ("19" if "images" in name else "333")]
        return {"test": batches, "of": run, "out": str(run_jobs.folder / name)}

    one = run_jobs(
        1,
        {
            "images 1": new(IMAGES, *pictures),
            "sums 1": new(SUMS, *pictures),
            "idle 1": new(IDLE),
            "tied 1": new(TIED),
            "sometimes 1": new(SOMETIMES),
            "lbfgs 1": new(LBFGS),
            "gathering 1": new(GATHERING),
            "weights 1": new(WEIGHTS),
            "unequal 1": new(UNEQUAL),
            "images 1 sharded": new(IMAGES, *sharded),
            "images 1 fp16": new(IMAGES, *fp16),
            "images 1 tested": tested("images 1", "images 1 tested"),
            "sums 1 tested": tested("sums 1", "sums 1 tested"),
        },
    )
    two = run_jobs(
        2,
        {
            "images 2": new(IMAGES, *pictures),
            "sums 2": new(SUMS, *pictures),
            "restless 2": new(RESTLESS),
            "images 2 fsdp": new(IMAGES, *fsdp, *pictures),
            "sums 2 fsdp": new(SUMS, *fsdp, *pictures),
            "restless 2 fsdp": new(RESTLESS, *fsdp),
            "idle 2": new(IDLE, "runtime.unused_parameters=true"),
            "sometimes 2": new(SOMETIMES, "runtime.unused_parameters=true"),
            "idle 2 refused": new(IDLE),
            "idling 2": new(IDLING),
            "idling 2 fsdp": new(IDLING, *fsdp),
            "late 2": new({**IDLING, "trainer": {**SUMS["trainer"], "type": "LateTrainer"}}),
            "scaled 2 fsdp": new(SCALED, *fsdp),
            "hooked 2 fsdp": new(SCALED, *fsdp, "model.args.hooked=true"),
            "sparse 2": new(SPARSE),
            "sparse 2 fsdp": new(SPARSE, *fsdp),
            "sparse 2 several": new({**SPARSE, "optimizer": {"dense": dense, "rows": SPARSE["optimizer"]}}),
            "gathering 2": new(GATHERING),
            "replay 2": new(REPLAY),
            "replay 2 to 2": on("replay 2"),
            "gathering 2 refused": new(GATHERING, "trainer.args.how=objects"),
            "different 2": new(DIFFERENT),
            "lbfgs 2": new(LBFGS),
            "restless 2 to 2": on("restless 2"),
            "restless 2 to 2 fsdp": on("restless 2 fsdp"),
            "images 1 to 2": on(one["images 1"]),
            "images 2 fsdp to ddp": on("images 2 fsdp", "runtime.strategy=ddp"),
            "images 2 ddp to fsdp": on("images 2", *fsdp),
            "restless 2 sharded": new(RESTLESS, *sharded),
            "restless 2 fsdp sharded": new(RESTLESS, *fsdp, *sharded),
            "restless 2 to 2 sharded": on("restless 2 sharded"),
            "restless 2 to 2 fsdp sharded": on("restless 2 fsdp sharded"),
            "restless 2 to 2 fsdp sharded to full": on("restless 2 fsdp sharded", "trainer.checkpoint=full"),
            "restless 2 to 2 fsdp full to sharded": on("restless 2 fsdp", *sharded),
            "images 2 fsdp sharded": new(IMAGES, *fsdp, *sharded),
            "images 1 sharded to 2 fsdp": on(one["images 1 sharded"], *fsdp),
            "images 2 fp16": new(IMAGES, *fp16),
            "images 2 fp16 fsdp": new(IMAGES, *fp16, *fsdp),
            "images 1 to 2 fp16 fsdp": on(one["images 1 fp16"], *fsdp),
            "images 2 tested": tested(one["images 1"], "images 2 tested"),
            "weights 2": new(WEIGHTS),
            "unequal 2": new(UNEQUAL),
            "weights 2 fsdp": new(WEIGHTS, *fsdp),
            "tied 2 fsdp": new(TIED, *fsdp),
            "tied 2 to 2 fsdp": on("tied 2 fsdp"),
        },
    )
    three = run_jobs(
        3,
        {
            "images 3": new(IMAGES),
            "sums 3": new(SUMS),
            "images 2 to 3": on(two["images 2"]),
            "images 2 fsdp to 3 fsdp": on(two["images 2 fsdp"]),
            "images 2 fsdp sharded to 3 fsdp": on(two["images 2 fsdp sharded"]),
            "images 3 tested": tested(one["images 1"], "images 3 tested"),
            "sums 3 tested": tested(one["sums 1"], "sums 3 tested"),
            "restless 3 fsdp sharded": new(RESTLESS, *fsdp, *sharded),
            "restless 3 to 3 fsdp sharded": on("restless 3 fsdp sharded"),
            "images 3 sharded": new(IMAGES, *sharded),
            "images 3 fsdp sharded": new(IMAGES, *fsdp, *sharded),
            "too many": new(SUMS, "--bs=2"),
        },
    )
    fewer = run_jobs(2, {"images 3 fsdp sharded to 2 fsdp": on(three["images 3 fsdp sharded"])})
    ddp = "runtime.strategy=ddp"
    last = run_jobs(
        1,
        {
            "images 2 to 1": on(two["images 2"]),
            "replay 2 to 1": on(two["replay 2"]),
            "replay 2 tested": tested(two["replay 2"], "replay 2 tested"),
            "images 2 fsdp to 1": on(two["images 2 fsdp"], ddp),
            "images 3 sharded to 1": on(three["images 3 sharded"]),
            "images 3 fsdp sharded to 1": on(three["images 3 fsdp sharded"], ddp),
        },
    )
    return one | two | three | fewer | last


def differences(left: Any, right: Any, *, rtol: float, atol: float = 1e-6, at: str = "") -> list[str]:
    """Where two states differ by more than rounding."""
    if isinstance(left, dict):
        left, right = ({key: item for key, item in state.items() if key != "fused"} for state in (left, right))
        if left.keys() != right.keys():
            return [f"{at}: {sorted(left)} and {sorted(right)}"]
        return [
            item for key in left for item in differences(left[key], right[key], rtol=rtol, atol=atol, at=f"{at}.{key}")
        ]
    if isinstance(left, (list, tuple)):
        pairs = enumerate(zip(left, right, strict=True))
        return [item for key, (a, b) in pairs for item in differences(a, b, rtol=rtol, atol=atol, at=f"{at}.{key}")]
    if isinstance(left, (torch.Tensor, float)):
        one, other = torch.as_tensor(left), torch.as_tensor(right)
        if one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=rtol, atol=atol):
            return []
        return [f"{at}: {left} and {right}"]
    return [] if left == right else [f"{at}: {left} and {right}"]


@pytest.mark.parametrize(
    "other",
    [
        "images 2",
        "images 3",
        "images 2 fsdp",
        "sums 2",
        "sums 3",
        "sums 2 fsdp",
        "images 1 to 2",
        "images 2 to 1",
        "images 2 to 3",
        "images 2 fsdp to 1",
        "images 2 fsdp to ddp",
        "images 2 ddp to fsdp",
        "images 2 fsdp to 3 fsdp",
        "images 2 fsdp sharded",
        "images 1 sharded to 2 fsdp",
        "images 2 fsdp sharded to 3 fsdp",
        "images 3 fsdp sharded to 1",
        "images 3 sharded",
        "images 3 fsdp sharded",
        "images 3 fsdp sharded to 2 fsdp",
        "images 3 sharded to 1",
        "idle 2",
        "sometimes 2",
        "weights 2",
        "weights 2 fsdp",
        "tied 2 fsdp",
        "lbfgs 2",
    ],
)
def test_any_number_of_processes_gives_what_one_gives(runs: dict[str, Any], other: str) -> None:
    one, run = runs[f"{other.split()[0]} 1"], runs[other]
    assert isinstance(run, Path), run
    assert differences(lines(one), lines(run), rtol=1e-4) == []
    for part in ("model", "optimizer", "schedule", "progress"):
        assert differences(state(one)[part], state(run)[part], rtol=1e-3, at=part) == []


@pytest.mark.parametrize("other", ["images 2", "images 2 fsdp", "sums 2", "sums 2 fsdp"])
def test_the_gradient_norm_is_over_all_processes(runs: dict[str, Any], other: str) -> None:
    expected = dict(curves(runs[f"{other.split()[0]} 1"])["gradient_norm"])
    assert len(expected) > 1
    assert dict(curves(runs[other])["gradient_norm"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("count", "kind"),
    [
        (2, ""),
        (2, " fsdp"),
        (2, " sharded"),
        (2, " fsdp sharded"),
        (2, " fsdp sharded to full"),
        (2, " fsdp full to sharded"),
        (3, " fsdp sharded"),
    ],
)
def test_a_resume_under_the_same_number_is_exact_bit_for_bit(runs: dict[str, Any], count: int, kind: str) -> None:
    strategy = " fsdp" if "fsdp" in kind else ""
    whole = runs[f"restless {count}{strategy}{' sharded' if count == 3 else ''}"]
    resumed = runs[f"restless {count} to {count}{kind}"]
    assert lines(whole) == lines(resumed)
    for part in ("model", "optimizer", "schedule", "progress", "random", "metrics"):
        assert same(state(whole)[part], state(resumed)[part]), part
    random = state(whole)["random"]
    assert len(random) == count
    assert not any(same(random[0], other) for other in random[1:])


def test_a_weight_that_two_layers_share_is_sharded_and_resumed_as_one(runs: dict[str, Any]) -> None:
    whole, resumed = runs["tied 2 fsdp"], runs["tied 2 to 2 fsdp"]
    assert isinstance(resumed, Path), resumed
    assert lines(whole) == lines(resumed)
    model = state(resumed)["model"]
    assert same(state(whole)["model"], model)
    assert same(model["second.weight"], model["third.weight"])


@pytest.mark.parametrize("other", ["images 2 fp16", "images 2 fp16 fsdp", "images 1 to 2 fp16 fsdp"])
def test_half_precision_gives_what_it_gives_alone(runs: dict[str, Any], other: str) -> None:
    one, run = runs["images 1 fp16"], runs[other]
    assert isinstance(run, Path), run
    assert state(one)["runtime"] == state(run)["runtime"]  # the scale: the same steps were taken
    assert not same(state(one)["model"], state(runs["images 1"])["model"])
    for part in ("model", "schedule", "progress"):
        assert differences(state(one)[part], state(run)[part], rtol=0, atol=1e-3, at=part) == []


@pytest.mark.parametrize("run", ["restless 2 sharded", "restless 2 fsdp sharded", "restless 2 to 2 fsdp sharded"])
def test_all_processes_write_about_as_much(runs: dict[str, Any], run: str) -> None:
    for path in step_files(runs[run] / "checkpoints"):
        data = path.parent / torch.load(path, weights_only=True)["sharded"]["data"]
        sizes = {shard.name: shard.stat().st_size for shard in data.glob("*.distcp")}
        assert sizes.keys() == {"__0_0.distcp", "__1_0.distcp"}
        assert max(sizes.values()) < 2 * min(sizes.values())  # with DDP, one writes two of three large tensors


def test_a_batch_with_fewer_samples_than_processes_is_refused(runs: dict[str, Any]) -> None:
    assert "2 samples cannot be shared by 3 processes" in runs["too many"]


def test_different_data_are_refused(runs: dict[str, Any]) -> None:
    assert "UserError: process 0 and process 1 differ in their number of samples for training; " in runs["different 2"]
    assert "No step completed" in runs["different 2"]


def test_a_parameter_that_takes_no_part_is_reported(runs: dict[str, Any]) -> None:
    assert "UserError: the loss of a batch does not depend on idle.weight, idle.bias, and" in runs["idle 2 refused"]
    assert "runtime.unused_parameters=true" in runs["idle 2 refused"]


def test_a_step_without_a_backward_pass_is_reported(runs: dict[str, Any]) -> None:
    for name in ("idling 2", "idling 2 fsdp"):
        assert "UserError: train_step did not call self.backward in process 0, and the other" in runs[name]


def test_a_parameter_that_is_thawed_within_an_epoch_is_reported(runs: dict[str, Any]) -> None:
    assert "UserError: with several processes, parameters can only be thawed between epochs" in runs["late 2"]


def test_a_model_that_fsdp_refuses_is_reported(runs: dict[str, Any]) -> None:
    assert 'UserError: runtime.strategy "fsdp" cannot train Scaled: ' in runs["scaled 2 fsdp"]
    assert "\nEither change the model, set runtime.strategy=ddp, or" in runs["scaled 2 fsdp"]
    assert (
        'UserError: runtime.strategy "fsdp" replaces the parameters, and would lose the hooks of scale; '
        in (runs["hooked 2 fsdp"])
    )


def test_sparse_gradients_are_refused(runs: dict[str, Any]) -> None:
    for name in ("sparse 2", "sparse 2 fsdp", "sparse 2 several"):
        assert (
            "several processes cannot sum sparse gradients or send sparse or nested buffers: rows; leave" in runs[name]
        )


def test_a_part_of_each_process_resumes_exactly_and_a_test_needs_none(runs: dict[str, Any]) -> None:
    whole, resumed = (state(runs[f"replay 2{to}"]) for to in ("", " to 2"))
    assert len({float(each["seen"]) for each in whole["replay"]["processes"]}) == 2
    assert all(same(whole[part], resumed[part]) for part in ("model", "replay"))
    assert "ValueError: saved by 2 processes" in runs["replay 2 to 1"]
    assert (Path(runs["replay 2 tested"]) / "metrics.json").exists()


def test_objects_are_not_gathered_where_a_gradient_should_flow(runs: dict[str, Any]) -> None:
    assert "UserError: process_group.all_gather sends copies" in runs["gathering 2 refused"]
    whole, parts = (state(runs[f"gathering {count}"])["model"] for count in (1, 2))
    assert differences(whole, parts, rtol=1e-4) == []


@needs_extra("report")
@pytest.mark.parametrize("other", ["images 2", "images 3", "sums 3"])
def test_a_test_by_several_processes_finds_what_one_finds(runs: dict[str, Any], other: str) -> None:
    one, found = runs[f"{other.split()[0]} 1 tested"], runs[f"{other} tested"]
    assert isinstance(found, Path), found
    left, right = (
        sorted(path.name for path in folder.glob("[a-z]*.*") if "events" not in path.name) for folder in (one, found)
    )
    assert left == right
    assert len(left) == (8 if "images" in other else 7)
    for name in left:
        if name == "predictions.csv":
            left_rows, right_rows = ((folder / name).read_text().splitlines() for folder in (one, found))
            assert left_rows[0] == right_rows[0]
            cells = [[list(map(float, row.split(","))) for row in rows[1:]] for rows in (left_rows, right_rows)]
            assert differences(*cells, rtol=1e-4) == []
            assert [row[0] for row in cells[0]] == list(range(len(cells[0])))
        elif name == "metrics.json":
            assert differences(*(json.loads((folder / name).read_text()) for folder in (one, found)), rtol=1e-5) == []
        elif name in ("report.md", "report.html", "curves.png"):  # of what, when and by which command differs
            continue
        else:  # the pictures too
            assert (one / name).read_bytes() == (found / name).read_bytes(), name


@needs_extra("tensorboard")
@pytest.mark.parametrize("other", ["images 2", "images 2 fsdp"])
def test_tensorboard_shows_what_all_processes_found(runs: dict[str, Any], other: str) -> None:
    one, found = shown(runs["images 1"]), shown(runs[other])
    assert len(one) == 12
    assert one.keys() == found.keys()
    for tag, values in one.items():
        assert values == found[tag], tag


def shown(run: Path) -> dict[str, Any]:
    """What the evaluations of a run leave in TensorBoard, but for its curves."""
    events = EventAccumulator(str(run), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    curves = {tag: events.Tensors(tag) for tag in tags["tensors"] if tag.startswith("precision_recall")}
    pictures = {tag: events.Images(tag) for tag in tags["images"] if tag.startswith("evaluation")}
    return {
        **{tag: [make_ndarray(event.tensor_proto).tolist() for event in found] for tag, found in curves.items()},
        **{tag: [event.encoded_image_string for event in found] for tag, found in pictures.items()},
    }


def test_gradients_of_losses_with_different_counts_are_not_called_exact(runs: dict[str, Any]) -> None:
    said = "the losses weighted, plain are averaged over different numbers of targets"
    for name, times in (("unequal 1", 0), ("unequal 2", 1), ("weights 2", 0)):
        assert (runs[name] / "train.log").read_text(encoding="utf-8").count(said) == times, name
