"""What TensorBoard shows beside the curves; tests/extras/tensorboard/test_browser.py looks at it in a browser."""

import gzip
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor, nn
from torch.utils.data import Dataset

import train
from base.base_data_loader import BaseDataLoader
from base.base_trainer import BaseTrainer
from base.metric import StepResult
from data_loader.random_tensor import RandomTensorLoader
from extras.report import EvaluationStats
from extras.tensorboard.board import Board
from extras.tensorboard.histograms import FEWEST, histograms
from extras.tensorboard.model_summary import MOST, Recorder, recording
from model.lenet import LeNet
from model.two_layer_net import TwoLayerNet
from tests.helpers import Fit, Json, curves, lines, registering, same, state, temporarily
from tests.small_data import SmallTensors
from tests.utils.checkpoint.test_exactness import killed_in
from trainer.trainer import Trainer
from utils.errors import ConfigError
from utils.registry import DATA_LOADERS, MODELS, TRAINERS

pytestmark = pytest.mark.usefixtures("tensorboard")

IMAGES: Json = {
    "data_loader": {"type": "SmallTensors", "args": {"batch_size": 16, "validation_split": 40}},
    "model": {"type": "LeNet", "args": {"dropout": 0.3}},
}
SIZES: Json = {"num_samples": 50, "batch_size": 8, "validation_split": 10}
LINE: Json = {
    "data_loader": {
        "type": "RandomTensorLoader",
        "args": {**SIZES, "input_shape": [3], "linear": [3, 1, -2]},
    },
    "model": {"type": "LinearRegression", "args": {"in_features": 3}},
    "loss": "mse_loss",
    "metrics": [],
}


_small_tensors = registering((DATA_LOADERS, SmallTensors))


def read(run: Path) -> EventAccumulator:
    everything = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)
    return EventAccumulator(str(run), size_guidance=everything).Reload()


def tags(run: Path) -> set[str]:
    found = read(run).Tags()
    return {tag for kind in ("scalars", "images", "histograms", "tensors") for tag in found[kind]}


def written(run: Path, tag: str) -> str:
    return str(make_ndarray(read(run).Tensors(tag)[0].tensor_proto)[0].decode())


def session(run: Path) -> Any:
    """The run's hyperparameters, as the page of hyperparameters reads them."""
    content = read(run).SummaryMetadata(hparams.SESSION_START_INFO_TAG).plugin_data.content
    return hparams.parse_session_start_info_plugin_data(content).hparams


class Peculiar(nn.Module):
    """Has everything that a look might disturb: dropout, statistics of batches, and a count of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.out = nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.table is None:
            self.table = torch.ones(6)  # kept from the first call, and used in training's
        outputs: Tensor = self.out(self.drop(self.norm(x)) * self.table * self.norm.weight + torch.rand(()))
        return outputs


@pytest.mark.slow
def test_an_observed_run_ends_with_the_same_bits_as_one_that_is_not(fit: Fit) -> None:
    for keys in ({"model": {"type": "Peculiar", "args": {}}}, IMAGES):
        with temporarily(MODELS, Peculiar):
            looked = fit("trainer.pictures_every=1", "trainer.profile_steps=[2,3]", **keys).run_dir
            alone = fit("trainer.tensorboard=false", **keys).run_dir
        one, other = state(looked), state(alone)
        assert [part for part in one if part not in ("writers", "config") and not same(one[part], other[part])] == []


@pytest.mark.slow
def test_a_classification_shows_all_there_is(fit: Fit) -> None:
    run = fit("trainer.pictures_every=1", "trainer.monitor=max val_accuracy", **IMAGES).run_dir
    weights = {name for name, values in LeNet().named_parameters() if values.numel() >= FEWEST}
    assert "conv1.bias" not in weights, "a histogram of six numbers says nothing"
    expected = {f"{kind}/{name}" for kind in ("weights", "gradients") for name in weights}
    expected |= {f"{name}/{phase}" for name in ("loss", "accuracy") for phase in ("train", "valid", "step")}
    expected |= {"best/loss", "best/accuracy", "learning_rate", "gradient_norm", "samples_per_second"}
    expected |= {"images/training", "evaluation/confusion_matrix", "evaluation/mistakes", "config", "model"}
    expected |= {f"precision_recall/{label}" for label in range(10)} | {"custom_scalars__config__"}
    expected |= {hparams.SESSION_START_INFO_TAG, hparams.SESSION_END_INFO_TAG, "memory/process_MB"}
    expected.add(hparams.EXPERIMENT_TAG)
    assert tags(run) == expected
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["checkpoints"]


@pytest.mark.slow
def test_training_images_are_those_of_the_first_batch_as_the_model_gets_them(fit: Fit, tmp_path: Path) -> None:
    given: list[Tensor] = []

    class Watching(Trainer):
        def train_step(self, batch: Any) -> StepResult:
            given.append(batch[0])
            return super().train_step(batch)

    with temporarily(TRAINERS, Watching):
        run = fit("trainer.type=Watching", "trainer.pictures_every=1", **IMAGES).run_dir
    (shown,) = read(run).Images("images/training")
    assert shown.step == 0
    path = tmp_path / "grid.png"
    path.write_bytes(shown.encoded_image_string)
    first = np.asarray(Image.open(path))[:32, :32]
    assert np.array_equal(first, (given[0][0].permute(1, 2, 0) * 255).round().numpy())


@pytest.mark.slow
def test_a_regression_shows_predicted_over_true_values_and_no_classes(fit: Fit) -> None:
    found = tags(fit("trainer.pictures_every=1", **LINE).run_dir)
    assert "evaluation/predicted_over_true" in found
    assert not [tag for tag in found if tag.startswith(("images", "evaluation/c", "evaluation/m", "precision"))]


@pytest.mark.slow
def test_without_validation_the_pictures_are_of_training_samples(fit: Fit) -> None:
    none = ("data_loader.args.validation_split=0", "trainer.pictures_every=1", "data_loader.args.num_workers=1")
    assert "training/predicted_over_true" in tags(fit(*none, **LINE).run_dir)
    looked = fit(*none, **IMAGES).run_dir
    assert {"training/confusion_matrix", "training/mistakes"} <= tags(looked)
    alone = fit(*none[::2], "trainer.tensorboard=false", **IMAGES).run_dir
    assert same(state(looked)["model"], state(alone)["model"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="worker processes are forked, and so inherit, on Linux only")
def test_worker_processes_inherit_nothing_of_the_graph(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed, ignored = tmp_path / "followed", tmp_path / "ignored"

    class Follows(Recorder):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            with followed.open("a") as file:
                file.write(f"{os.getpid()}\n")
            return super().__torch_function__(func, types, args, kwargs)

    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Any:
            if warnings.filters[0][:3] == ("ignore", None, Warning):
                ignored.touch()
            return torch.ones(3).add(index), torch.ones(1)

    class RowsLoader(BaseDataLoader):
        def training_data(self, *, augment: bool) -> Any:
            return Rows()

        def test_data(self) -> Any:
            return Rows()

    monkeypatch.setattr("extras.tensorboard.model_summary.Recorder", Follows)
    with temporarily(DATA_LOADERS, RowsLoader):
        loader = {"type": "RowsLoader", "args": {"batch_size": 8, "num_workers": 1, "validation_split": 8}}
        fit("trainer.epochs=1", **{**LINE, "data_loader": loader})
    assert set(followed.read_text().split()) == {str(os.getpid())}
    assert not ignored.exists(), "a data set's warnings would not be shown"


@pytest.mark.slow
def test_a_resumed_run_shows_what_it_is_now(fit: Fit) -> None:
    run = fit("trainer.epochs=1", "trainer.pictures_every=null").run_dir
    before = tags(run)
    train.main(["-r", str(run)])  # at its end already
    assert tags(run) == before
    assert hparams.SESSION_END_INFO_TAG in before
    train.main(["-r", str(run), "trainer.epochs=2", "optimizer.args.lr=0.2", "--note", "*faster*"])
    assert written(run, "note") == "    *faster*"
    assert (session(run)["trainer.epochs"].number_value, session(run)["optimizer.lr"].number_value) == (2, 0.2)
    assert '"epochs": 2' in written(run, "config")
    assert [event.step for event in read(run).Images("evaluation/confusion_matrix")] == [5, 10]


def test_an_unfinished_run_is_not_shown_as_finished(fit: Fit) -> None:
    run = fit().run_dir
    with killed_in("optimizer_step", calls=2):
        train.main(["-r", str(run), "trainer.epochs=3"])
    assert hparams.SESSION_END_INFO_TAG not in tags(run)
    train.main(["-r", str(run)])
    assert hparams.SESSION_END_INFO_TAG in tags(run)


@pytest.mark.slow
def test_best_values_are_those_of_the_best_epoch(fit: Fit) -> None:
    run = fit("trainer.epochs=6", "trainer.monitor=max val_loss").run_dir  # the first epoch is the best
    found = curves(run)
    assert found["best/loss"] == found["loss/valid"][:1]
    assert found["best/accuracy"] == found["accuracy/valid"][:1]
    alone = curves(fit("trainer.monitor=min loss", "data_loader.args.validation_split=0").run_dir)
    assert alone["best/loss"] == alone["loss/train"]
    assert "best/loss" not in curves(fit().run_dir)  # nothing is monitored


def test_every_chart_of_the_overview_finds_its_curves(fit: Fit) -> None:
    run = fit("trainer.monitor=min loss").run_dir
    proto = make_ndarray(read(run).Tensors("custom_scalars__config__")[0].tensor_proto)[()]
    layout = layout_pb2.Layout.FromString(proto)
    assert [category.title for category in layout.category] == ["loss", "accuracy", "optimizer", "machine"]
    phases = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert phases == {
        "loss: training": ["^loss/train$"],
        "loss: validation": ["^loss/valid$"],
        "loss: training, every few steps": ["^loss/step$"],
    }
    there = read(run).Tags()["scalars"]
    for category in layout.category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                assert any(re.search(pattern, tag) for tag in there), pattern


def columns(run: Path) -> Any:
    """The columns of the page of hyperparameters, as a run says it; None if it says nothing."""
    described = read(run).summary_metadata.get(hparams.EXPERIMENT_TAG)
    return described and hparams.parse_experiment_plugin_data(described.plugin_data.content)


def test_hyperparameters_have_the_columns_of_all_runs_of_the_name(fit: Fit) -> None:
    often = ("trainer.monitor=max val_accuracy", "trainer.epochs=1")
    first = fit(*often).run_dir
    second = fit(*often, "optimizer.args.momentum=0.5", "data_loader.args.batch_size=10").run_dir
    assert columns(first) is None, "TensorBoard heeds one run, which knows the others"
    found = columns(second)
    differing = [info.name for info in found.hparam_infos if info.differs]
    assert differing == ["data_loader.batch_size", "optimizer.lr", "optimizer.momentum"]
    tags = [info.name.tag for info in found.metric_infos]
    assert tags[:4] == ["best/accuracy", "best/loss", "accuracy/valid", "loss/valid"]
    assert not [tag for tag in tags if "memory" in tag or "step" in tag or "second" in tag]
    train.main(["-r", str(first)])  # ends once more
    assert columns(second) is None
    assert columns(first) == found


def test_a_monitored_value_of_one_validation_set_has_the_columns_that_it_can_fill(fit: Fit) -> None:
    sizes = {**SIZES, "validation_split": 0, "input_shape": [6], "num_classes": 3}
    data: Any = {"type": "RandomTensorLoader", "args": sizes}
    model: Any = {"type": "TwoLayerNet", "args": {"in_features": 6, "hidden_features": 5, "out_features": 3}}
    monitor = "trainer.monitor=max val_night_accuracy"
    run = fit("trainer.epochs=1", monitor, data_loader=data, model=model, validation={"night": data})
    found = [info.name.tag for info in columns(run.run_dir).metric_infos]
    assert [tag for tag in found if "night" in tag] == ["best/night_accuracy", "night_accuracy/valid"]


@pytest.mark.parametrize("clip", [{"norm": 0.001}, {"value": 0.0001}, {"norm": 0.001, "value": 0.0001}])
def test_the_gradient_norm_is_that_before_clipping(fit: Fit, clip: dict[str, float]) -> None:
    often = ("trainer.log_every_steps=1", "trainer.epochs=1")
    clips = [f"trainer.clip_grad_{kind}={limit}" for kind, limit in clip.items()]
    free, clipped = (curves(fit(*often, *options).run_dir) for options in ([], clips))
    assert free["gradient_norm"][0][1] == pytest.approx(clipped["gradient_norm"][0][1], rel=1e-5)
    assert clipped["gradient_norm"][-1][1] > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [{"type": "LBFGS", "args": {"max_iter": 2}}, "Rprop"])
def test_runs_with_other_optimizers_are_shown_too(fit: Fit, optimizer: Any) -> None:
    run = fit(optimizer=optimizer, trainer={"profile_steps": [1, 2]}).run_dir
    assert "gradient_norm" in tags(run)


def test_the_model_is_shown_as_a_table_and_as_a_graph(fit: Fit) -> None:
    run = fit(**IMAGES).run_dir
    table = written(run, "model")
    assert "62,006 trainable parameters" in table
    assert "| conv1 | Conv2d | (2, 6, 28, 28) | 456 |" in re.sub(" +", " ", table)
    nodes = {node.name: node for node in GraphDef.FromString(read(run).Graph().SerializeToString()).node}
    assert list(nodes["conv1/conv2d"].input) == ["inputs"]
    assert nodes["outputs"].input == ["fc3/linear"]
    assert all(source in nodes for node in nodes.values() for source in node.input)


def test_the_number_of_parameters_does_not_depend_on_what_is_frozen_where_the_run_resumes(fit: Fit) -> None:
    run = fit('trainer.freeze=[{"params": ["fc1.*"], "epochs": 1}]', "trainer.epochs=2").run_dir
    started = written(run, "model")
    train.main(["-r", str(run), "trainer.epochs=3"])
    assert written(run, "model") == started


def test_a_graph_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Long(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(MOST):
                x = x + 1
            return x

    model, recorder = Long(), Recorder()
    with recording(model, recorder):
        model(torch.zeros(1))
    assert len(recorder.nodes) == MOST


class Unwatchable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 5:
            raise ValueError("too few samples for me")
        outputs: Tensor = self.out(x)
        return outputs


class InDict(Trainer):
    """Batches that are not pairs."""

    def train_step(self, batch: Any) -> StepResult:
        return super().train_step((batch["x"], batch["y"]))

    def eval_step(self, batch: Any) -> StepResult:
        return super().eval_step((batch["x"], batch["y"]))


def test_what_cannot_be_watched_still_trains(fit: Fit) -> None:
    with temporarily(MODELS, Unwatchable):
        run = fit("data_loader.args.eval_batch_size=10", model={"type": "Unwatchable", "args": {}}).run_dir
    assert "No table of layers or graph: ValueError: too few samples for me" in written(run, "model")


class WarningNet(nn.Module):
    """Warns of a batch of two samples, as torch does of sizes that happen to broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 2:
            warnings.warn("different sizes", stacklevel=2)
        outputs: Tensor = self.out(x)
        return outputs


def test_what_the_graphs_two_samples_warn_of_is_not_shown(fit: Fit) -> None:
    with temporarily(MODELS, WarningNet):
        only = "data_loader.args.eval_batch_size=10"  # of the validation no batch has two samples
        run = fit("trainer.epochs=1", only, model={"type": "WarningNet", "args": {}}).run_dir
    assert "Linear" in written(run, "model")  # where warnings are errors, it would have ended the drawing


def test_pictures_that_cannot_be_drawn_stop_no_run(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the font is broken")

    monkeypatch.setattr("extras.report.thumbnails.confusion_matrix", broken)
    assert fit("trainer.pictures_every=null").epochs == 2
    assert capsys.readouterr().err.count("could not be drawn: the font is broken") == 1


def test_nor_does_a_model_that_fails_in_evaluation_where_the_run_has_none(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    class TrainsOnly(TwoLayerNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training:
                raise RuntimeError("I cannot evaluate")
            return super().forward(x)

    arguments = {"in_features": 6, "hidden_features": 5, "out_features": 3}
    loader = {"num_samples": 40, "input_shape": [6], "num_classes": 3, "batch_size": 8}
    with temporarily(MODELS, TrainsOnly):
        run = fit(
            "trainer.pictures_every=null",
            model={"type": "TrainsOnly", "args": arguments},
            data_loader={"type": "RandomTensorLoader", "args": loader},
            trainer={"epochs": 1, "monitor": None},
        ).run_dir
    assert "could not be drawn: I cannot evaluate" in capsys.readouterr().err
    assert (run / "checkpoints/last.pth").exists()


def test_a_trainer_that_evaluates_nothing_gets_no_pictures_and_no_warning(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    class OnlyTrains(Trainer):
        def eval_step(self, batch: Any) -> StepResult:
            raise NotImplementedError

    loader = {"num_samples": 40, "input_shape": [6], "num_classes": 3, "batch_size": 8}
    with temporarily(TRAINERS, OnlyTrains):
        fit(
            "trainer.pictures_every=null",
            data_loader={"type": "RandomTensorLoader", "args": loader},
            trainer={"type": "OnlyTrains", "epochs": 1, "monitor": None},
        )
    assert "could not be drawn" not in capsys.readouterr().err


def test_a_profile_that_the_disk_does_not_take_stops_no_run(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Any, path: str) -> None:
        Path(path).write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.profiler.profile.export_chrome_trace", full)
    run = fit("trainer.profile_steps=[2,3]").run_dir
    assert not list(run.glob("*trace*"))
    errors = capsys.readouterr().err
    assert "cannot be written: No space left on device" in errors
    assert "was taken" not in errors


def test_one_of_several_processes_calls_no_model_by_itself(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would not take part in what the model exchanges, and it would wait for ever."""
    begin = Board.begin

    def begun_by_two(self: Board, trainer: BaseTrainer) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(trainer.runtime.process_group, "world_size", 2)
            begin(self, trainer)

    monkeypatch.setattr(Board, "begin", begun_by_two)
    run = fit().run_dir
    assert "several processes" in written(run, "model")
    assert not read(run).Tags()["graph"]


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.complex64])
def test_histograms_of_all_kinds_of_numbers(kind: torch.dtype) -> None:
    values = torch.tensor([0.0, 1.0, 2.0, float("nan"), float("inf")], dtype=kind).repeat(FEWEST)
    given = {"all": values, "one": values[::5], "none": values[3::5].real, "few": values[: FEWEST - 1]}
    made = {summary.value[0].tag: summary.value[0].histo for summary in histograms("weights", given)}
    assert made.keys() == {"weights/all", "weights/one"}
    counted = made["weights/all"]
    assert sum(counted.bucket) == counted.num == (8 if values.is_complex() else 3) * FEWEST
    assert (counted.min, counted.max, counted.sum, counted.sum_squares) == (0, 2, 3 * FEWEST, 5 * FEWEST)
    assert list(made["weights/one"].bucket) in ([FEWEST], [2 * FEWEST])


@pytest.mark.slow
def test_batches_need_not_be_pairs(fit: Fit) -> None:
    class AsDataset(torch.utils.data.Dataset[Any]):
        def __init__(self, source: Any) -> None:
            self.source = source

        def __len__(self) -> int:
            return len(self.source)

        def __getitem__(self, index: int) -> Any:
            return {"x": self.source.inputs[index], "y": self.source.targets[index]}

    class Dicts(RandomTensorLoader):
        def training_data(self, *, augment: bool) -> Any:
            return AsDataset(super().training_data(augment=augment))

    with temporarily(TRAINERS, InDict), temporarily(DATA_LOADERS, Dicts):
        settings = ("data_loader.type=Dicts", "trainer.type=InDict", "trainer.pictures_every=1")
        found = tags(fit(*settings).run_dir)
    assert {"evaluation/confusion_matrix", "gradient_norm", "model"} <= found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "classes", "grid"),
    [([1, 8, 8], 3, True), ([16, 4, 4], 3, True), ([6], 1, False), ([6], 100, False), ([2, 3], 2, False)],
)
def test_inputs_and_classes_of_all_kinds(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shape: list[int], classes: int, grid: bool
) -> None:
    monkeypatch.setattr(RandomTensorLoader, "class_names", tuple(f"옷/{label} (a b)" for label in range(classes)))
    features = int(np.prod(shape))
    run = fit(
        data_loader={"type": "RandomTensorLoader", "args": {**SIZES, "input_shape": shape, "num_classes": classes}},
        model={"type": "TwoLayerNet", "args": {"in_features": features, "hidden_features": 5, "out_features": classes}},
        metrics=[],  # accuracy takes two classes or more
        trainer={"pictures_every": 1, "save_dir": str(tmp_path)},
    ).run_dir
    found = tags(run)
    assert ("images/training" in found) == grid
    assert "evaluation/confusion_matrix" in found
    drawn = {tag for tag in found if tag.startswith("precision_recall/")}
    names = ["all classes"] if classes > 20 else RandomTensorLoader.class_names
    assert drawn == {f"precision_recall/{name}" for name in names or ()}


def test_a_precision_recall_curve_is_right(fit: Fit) -> None:
    run = fit("trainer.pictures_every=null").run_dir
    curve = make_ndarray(read(run).Tensors("precision_recall/0")[-1].tensor_proto)  # (6, T)
    true, false, true_negative, false_negative, precision, recall = curve
    assert (true + false + true_negative + false_negative == 10).all()
    assert (recall[0], precision[0]) == (1, pytest.approx(true[0] / 10))
    assert (np.diff(true) <= 0).all()


def test_a_run_on_the_cpu_profiles_no_gpu_that_the_machine_has(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Profile(torch.profiler.profile):
        def __init__(self, **arguments: Any) -> None:
            asked.append(set(arguments["activities"]))
            super().__init__(**arguments)

    monkeypatch.setattr("extras.tensorboard.profile.profile", Profile)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    fit("trainer.profile_steps=[2,3]", "runtime.device=cpu")
    assert asked == [{torch.profiler.ProfilerActivity.CPU}]


def test_a_profile_holds_the_steps_that_were_asked_for(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("trainer.profile_steps=[4,6]").run_dir
    trace = json.loads(gzip.decompress((run / "steps-4-6.pt.trace.json.gz").read_bytes()))
    names = {str(event.get("name")) for event in trace["traceEvents"]}
    assert {name for name in names if name.startswith("ProfilerStep")} == {f"ProfilerStep#{step}" for step in (4, 5, 6)}
    assert "aten::addmm" in names
    assert f"profile of steps 4 to 6, for ui.perfetto.dev: {run}/steps-4-6.pt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("steps", "written", "says"),
    [
        ("[400,600]", [], "none of these steps was taken"),
        ("[7,600]", ["steps-7-10.pt.trace.json.gz"], "profile of steps 7 to 10"),
    ],
)
def test_steps_beyond_the_end_of_the_run(
    fit: Fit, capsys: pytest.CaptureFixture[str], steps: str, written: list[str], says: str
) -> None:
    run = fit(f"trainer.profile_steps={steps}").run_dir
    assert [path.name for path in run.glob("*.gz")] == written
    printed = capsys.readouterr()
    assert says in printed.out + printed.err


@pytest.mark.slow
def test_a_resumed_run_profiles_the_remaining_steps(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("trainer.profile_steps=[9,12]").run_dir
    train.main(["-r", str(run), "trainer.epochs=3"])
    train.main(["-r", str(run), "trainer.epochs=4"])
    assert sorted(path.name[:11] for path in run.glob("*.gz")) == ["steps-11-12", "steps-9-10."]
    assert "profile_steps" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["trainer.profile_steps=[5,2]"], "comes after the last"),
        (["trainer.profile_steps=[0,2]"], "profile_steps"),
        (["trainer.profile_steps=[3]"], "profile_steps"),
        (["trainer.profile_steps=[1,2]", "trainer.tensorboard=false"], "needs TensorBoard"),
        (["trainer.pictures_every=-1"], "pictures_every"),
    ],
)
def test_mistakes_are_reported(fit: Fit, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        fit(*overrides)


@pytest.mark.parametrize(
    ("overrides", "observed", "drawn"),
    [
        ([], [False, False, True], [15]),
        (["trainer.pictures_every=0"], [False, False, False], []),
        (["trainer.pictures_every=2"], [False, True, True], [10, 15]),
        # any epoch may be the last from the second on
        (["trainer.early_stop=1", "trainer.monitor=min val_loss"], [True, True, True], [15]),
        (["trainer.early_stop=2", "trainer.monitor=max val_loss", "trainer.epochs=5"], [False, False, True], [15]),
        # within an epoch, nothing is drawn
        (
            ["trainer.validate_every_steps=3", "trainer.steps_per_epoch=4"],
            [False, False, False, False, False, True],
            [12],
        ),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value[0], str) else "",
)
def test_pictures_are_drawn_as_often_as_asked_and_at_the_end_and_only_what_is_drawn_is_observed(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, overrides: list[str], observed: list[bool], drawn: list[int]
) -> None:
    found: list[bool] = []
    end = EvaluationStats.end_evaluation

    def counted(self: EvaluationStats) -> None:
        end(self)
        found.append(self.classification is not None)

    monkeypatch.setattr(EvaluationStats, "end_evaluation", counted)
    options = ("trainer.epochs=3", "trainer.pictures_every=null", *overrides)
    shown = read(fit(*options, **({} if drawn else IMAGES)).run_dir)
    assert found == observed
    assert drawn or not shown.Tags()["images"]
    assert not drawn or [event.step for event in shown.Images("evaluation/confusion_matrix")] == drawn


class Decides(Trainer):
    """Validates before its training too, and ends when it has seen enough."""

    def train(self) -> None:
        self.validate()
        super().train()

    def finished(self) -> bool:
        return self.progress.epochs >= 2


def test_the_last_epoch_is_drawn_if_only_the_trainer_knows_that_it_is(fit: Fit) -> None:
    with temporarily(TRAINERS, Decides):
        run = fit("trainer.type=Decides", "trainer.epochs=5", "trainer.pictures_every=null").run_dir
    found = read(run)
    steps = {tag: [event.step for event in found.Images(tag)] for tag in found.Tags()["images"]}
    last = lines(run)[-1]["step"]
    assert len(lines(run)) == 2
    assert steps["evaluation/confusion_matrix"] == [last]
    assert [event.step for event in found.Tensors("precision_recall/0")] == [last]


class TwoViews(RandomTensorLoader):
    """Inputs in a nest: an image, the same once more, and a mask of another shape."""

    def training_data(self, *, augment: bool) -> Any:
        source: Any = super().training_data(augment=augment)
        return [({"a": x, "b": x, "mask": x[0]}, y) for x, y in zip(source.inputs, source.targets, strict=True)]


class OfOneView(Trainer):
    def train_step(self, batch: Any) -> StepResult:
        return super().train_step((batch[0]["a"], batch[1]))

    def eval_step(self, batch: Any) -> StepResult:
        return super().eval_step((batch[0]["a"], batch[1]))


def test_training_images_of_several_views_have_a_grid_each(fit: Fit) -> None:
    with temporarily(DATA_LOADERS, TwoViews), temporarily(TRAINERS, OfOneView):
        data: Any = {"type": "TwoViews", "args": {**SIZES, "input_shape": [1, 8, 8], "num_classes": 3}}
        model: Any = {"type": "TwoLayerNet", "args": {"in_features": 64, "hidden_features": 5, "out_features": 3}}
        names: Any = [{"type": "accuracy", "training": False}]
        run = fit("trainer.type=OfOneView", "trainer.pictures_every=1", data_loader=data, model=model, metrics=names)
    found = tags(run.run_dir)
    assert {tag for tag in found if tag.startswith("images/")} == {"images/training/a", "images/training/b"}
    columns_there = [info.name.tag for info in columns(run.run_dir).metric_infos]
    assert "accuracy/valid" in columns_there
    assert "accuracy/train" not in columns_there


class Plays(Trainer):
    """Validates without data."""

    logs = ("episode",)

    def validate(self) -> dict[str, float]:
        return {"episode": 1.0}


def test_a_value_that_only_the_trainer_validates_is_shown(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    with temporarily(TRAINERS, Plays):
        overrides = ["trainer.type=Plays", "trainer.monitor=max val_episode"]
        run = fit("data_loader.args.validation_split=0", *overrides).run_dir
    assert "episode/valid" in read(run).Tags()["scalars"]
    assert "episode%2Fvalid" in capsys.readouterr().out  # the address of the first page
    described = columns(run)
    assert "episode/valid" in [info.name.tag for info in described.metric_infos]
