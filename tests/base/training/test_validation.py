"""Data sets of their own to validate on, one or several by name, and validation within the epoch."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import train
from base.base_model import BaseModel
from base.data.batches import Batches, StepBatches
from base.data.sources import TensorSource
from base.load_run import load_trainer
from base.metric import StepResult
from base.training.evaluation import check_returned
from data_loader.random_tensor import RandomTensorLoader
from logger.console import Console
from tests.conftest import load_script
from tests.helpers import Fit, Json, curves, identical, lines, resumed, same, state, temporarily
from trainer.trainer import Trainer
from utils.errors import ConfigError, UserError
from utils.registry import DATA_LOADERS, MODELS, TRAINERS


def loader(samples: int, split: int = 0, **args: Any) -> Json:
    sizes = {"num_samples": samples, "num_test_samples": 20, "input_shape": [6], "num_classes": 3}
    return {"type": "RandomTensorLoader", "args": {**sizes, "batch_size": 8, "validation_split": split, **args}}


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"near": 0.5, "far": 2.0000001}, ""),
        ({}, ""),  # only the main process computes them
        ({"near": math.nan, "far": 2.0}, 'returned another "near" in each process: 0.5, nan'),
        ({"near": 0.5, "far": 2.1}, 'returned another "far" in each process: 2, 2.1; the first is used'),
    ],
)
def test_all_processes_decide_by_the_same_values(
    others: dict[str, float], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise one would save or stop, and wait for the others. A warning is shown once, not after each epoch."""
    group = SimpleNamespace(all_gather=lambda own: [{"near": 0.5, "far": 2.0}, own])
    experiment = SimpleNamespace(console=Console(0))
    trainer: Any = SimpleNamespace(runtime=SimpleNamespace(process_group=group), experiment=experiment)
    for _ in range(2):
        assert check_returned(trainer, "evaluate", others) == {"near": 0.5, "far": 2.0}
    warned = capsys.readouterr().err
    assert warned.count("warning: ") == bool(says)
    assert says in warned


def train_on(fit: Fit, *overrides: str, **config: Any) -> train.Result:
    """Without a part that is held out of the training data."""
    return fit("data_loader.args.validation_split=0", *overrides, **config)


def test_a_data_set_of_its_own_is_validated_on(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    result = train_on(fit, "trainer.monitor=max val_accuracy", validation=loader(30, split=9))
    assert {"val_loss", "val_accuracy"} <= result.last.keys()
    assert "50 samples for training, 9 for validation" in capsys.readouterr().out
    test_data = train_on(fit, validation=loader(30))  # nothing is held out: its test data
    assert "50 samples for training, 20 for validation" in capsys.readouterr().out
    assert test_data.last["val_loss"] != result.last["val_loss"]


def test_a_data_set_may_be_a_single_sample(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    data = loader(1)
    run = fit("trainer.epochs=1", "data_loader.args.num_test_samples=1", data_loader=data).run_dir
    assert "1 sample for training\n" in capsys.readouterr().out
    load_script("test").main(["-r", str(run)])
    assert "on 1 test sample\n" in capsys.readouterr().out


@pytest.mark.parametrize("loss", ["cross_entropy", {"type": "CrossEntropyLoss", "args": {"reduction": "sum"}}])
def test_several_sets_have_values_of_their_own_and_over_all(fit: Fit, loss: Any) -> None:
    sets = {"day": loader(30, split=9), "night": loader(60, split=21)}
    f1 = {"type": "F1Score", "args": {"task": "multiclass", "num_classes": 3}}
    result = train_on(
        fit,
        "trainer.monitor=min val_night_loss",
        "optimizer.args.lr=0.01",
        "trainer.tensorboard=true",
        loss=loss,
        validation=sets,
        metrics=["accuracy", f1],
    )
    last = result.last
    day, night = (last[f"val_{name}_accuracy"] for name in sets)
    assert last["val_accuracy"] == pytest.approx((9 * day + 21 * night) / 30)
    assert result.best == min(line["val_night_loss"] for line in lines(result.run_dir))
    alone = train_on(fit, "optimizer.args.lr=0.01", loss=loss, validation=sets["night"], metrics=["accuracy", f1]).last
    for name in ("loss", "accuracy", "F1Score"):
        assert alone[f"val_{name}"] == pytest.approx(last[f"val_night_{name}"], rel=1e-6)
    weights = (1, 1) if isinstance(loss, dict) else (9 / 30, 21 / 30)
    total = weights[0] * last["val_day_loss"] + weights[1] * last["val_night_loss"]
    assert last["val_loss"] == pytest.approx(total, rel=1e-6)
    assert {"day_loss/valid", "night_accuracy/valid", "loss/valid"} <= curves(result.run_dir).keys()


@pytest.mark.usefixtures("tensorboard")
def test_it_is_validated_within_the_epoch_and_resumes_exactly(fit: Fit, tmp_path: Path) -> None:
    options = ("trainer.validate_every_steps=2", "trainer.save_every_steps=2", "trainer.keep_last=null")
    run = fit(*options, 'trainer.freeze=[{"params": ["fc1.*"], "epochs": 1}]', 'trainer.ema={"decay": 0.9}').run_dir
    assert [step for step, _ in curves(run)["loss/valid"]] == [2, 4, 5, 6, 8, 10]
    assert len(lines(run)) == 2
    identical(run, resumed(run, tmp_path, 8))
    plain = fit('trainer.freeze=[{"params": ["fc1.*"], "epochs": 1}]', 'trainer.ema={"decay": 0.9}').run_dir
    assert same(state(run)["model"], state(plain)["model"])  # it changes nothing
    assert lines(run) == lines(plain)


@pytest.mark.parametrize(
    ("validation", "says"),
    [
        (
            loader(20) | {"type": "RandomTensorLoade"},
            'validation.type: unknown data loader "RandomTensorLoade"; did you',
        ),
        ({"day": loader(20, batch_siz=3)}, 'validation.day.args.batch_siz: .* has no argument "batch_siz"'),
        ({"day": loader(20, split=20)}, "leaves none to train on"),
    ],
)
def test_a_mistake_is_located(fit: Fit, validation: Json, says: str) -> None:
    with pytest.raises(UserError, match=says):
        train_on(fit, validation=validation)


class Part(RandomTensorLoader):
    """A validation set whose size is not in the config."""

    sizes: ClassVar = {"day": 9, "night": 21}

    def __init__(self, *, part: str, **more: Any) -> None:
        super().__init__(**more)
        self.part = part

    def validation_data(self) -> TensorSource:
        size = self.sizes[self.part]
        return TensorSource(torch.zeros(size, 6), torch.zeros(size, dtype=torch.long))


def test_sets_of_other_sizes_are_refused_on_resume(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if they have as many samples together."""
    sets = {name: loader(30, part=name) | {"type": "Part"} for name in Part.sizes}
    with temporarily(DATA_LOADERS, Part):
        run = train_on(fit, "trainer.epochs=1", validation=sets).run_dir
        monkeypatch.setattr(Part, "sizes", {"day": 10, "night": 20})
        with pytest.raises(UserError, match=r"samples of each validation set was {'day': 9, 'night': 21}, and is now"):
            train.main(["-r", str(run), "trainer.epochs=2"])
        monkeypatch.undo()
        assert train.main(["-r", str(run), "trainer.epochs=2"]).epochs == 2


def test_two_sources_of_validation_data_contradict_each_other(fit: Fit) -> None:
    with pytest.raises(
        UserError, match=r"RandomTensorLoader also has validation data; leave out .* validation_data\(\)"
    ):
        fit(validation=loader(20))


@pytest.mark.parametrize(
    ("sets", "metric", "name"),
    [
        (("plain", "top"), "top_accuracy", "val_top_accuracy"),
        (("plain", "top"), "top_loss", "val_top_loss"),
        (("a", "a_b"), "b_accuracy", "val_a_b_accuracy"),
    ],
)
def test_a_value_of_a_set_has_a_name_of_its_own(fit: Fit, sets: tuple[str, str], metric: str, name: str) -> None:
    where = rf"config.json:\d+:\d+: validation.{sets[1]}"
    says = f'{where}: its value would be logged as "{name}", but that name is taken'
    with pytest.raises(UserError, match=says):
        train_on(
            fit,
            metrics=["accuracy", {"type": "accuracy", "name": metric}],
            validation={each: loader(20) for each in sets},
        )


class Empty(RandomTensorLoader):
    """Its own validation data are none, as where a filter keeps nothing."""

    def validation_data(self) -> TensorSource:
        return TensorSource(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))


class NoBatches(RandomTensorLoader):
    """Its own batches, of no samples."""

    def validation(self) -> Batches:
        nothing = torch.zeros(0, dtype=torch.int64)
        return Batches(self._source(augment=False), batch_size=4, indices=nothing)


@pytest.mark.parametrize("kind", ["Empty", "NoBatches"])
@pytest.mark.parametrize("where", ["data_loader", "validation", "validation by name"])
def test_validation_data_without_samples_are_refused(fit: Fit, where: str, kind: str) -> None:
    empty: Any = loader(20) | {"type": kind}
    keys = {"validation": {"day": loader(20), "night": empty}} if "name" in where else {where: empty}
    with (
        temporarily(DATA_LOADERS, Empty, NoBatches),
        pytest.raises(UserError, match="the validation data is empty"),
    ):
        train_on(fit, **keys)


def test_a_monitor_of_an_unknown_set_is_located(fit: Fit) -> None:
    with pytest.raises(UserError, match='no value is logged as "val_dy_loss"; did you mean "val_day_loss"'):
        train_on(fit, "trainer.monitor=min val_dy_loss", validation={"day": loader(20)})


def test_validation_within_an_epoch_is_not_training_time(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr("base.training.training_log.time", clock)

    class Clocked(Trainer):
        """A step takes a second, and a validation a hundred."""

        def optimizer_step(self, step: StepBatches) -> Any:
            clock.now += 1
            return super().optimizer_step(step)

        def validate(self) -> dict[str, float]:
            clock.now += 100
            return super().validate()

    with temporarily(TRAINERS, Clocked):
        run = fit("trainer.type=Clocked", "trainer.validate_every_steps=2", "trainer.steps_per_epoch=6").run_dir
    [first, *_] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert first["seconds"] == 6
    assert first["samples_per_second"] == 8  # in batches of 8


def test_the_start_says_that_the_two_sums_of_a_loss_are_not_comparable(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    says = "a sum over the samples of a step in training, and over all samples in validation"
    summed: Json = {"type": "CrossEntropyLoss", "args": {"reduction": "sum"}}
    fit("optimizer.args.lr=0.001", loss=summed)
    assert says in capsys.readouterr().out
    fit()
    fit("data_loader.args.validation_split=0", "optimizer.args.lr=0.001", loss=summed)
    assert says not in capsys.readouterr().out


class Anneals(Trainer):
    """Its loss depends on the epoch."""

    weight = 1.0

    def begin_epoch(self, epoch: int) -> None:
        self.weight = 1 / epoch

    def eval_step(self, batch: Any) -> StepResult:
        result = super().eval_step(batch)
        return result._replace(loss=result.loss * self.weight)


class NeedsTraining(Anneals):
    def begin_epoch(self, epoch: int) -> None:
        self.weight = 1 / (epoch + self.training.batches.num_samples)


@pytest.mark.parametrize("every", [None, 2])
def test_a_test_uses_what_begin_epoch_set(fit: Fit, capsys: pytest.CaptureFixture[str], every: int | None) -> None:
    data = loader(30)
    with temporarily(TRAINERS, Anneals), temporarily(TRAINERS, NeedsTraining):
        run = train_on(
            fit,
            "trainer.type=Anneals",
            "trainer.epochs=3",
            f"trainer.save_every_steps={json.dumps(every)}",
            "trainer.keep_last=null",
            data_loader=data,
            validation=data,
        )
        for epoch, line in enumerate(run.history, start=1):
            file = run.run_dir / "checkpoints" / f"step-{line['step']:08}.pth"
            assert load_script("test").main(["-r", str(file)])["loss"] == line["val_loss"], epoch
        if every:  # within the second epoch
            start = torch.load(run.run_dir / "checkpoints" / "step-00000006.pth", weights_only=True)["progress"]
            assert start["epochs"] == 1
            assert start["epoch_steps"] == 2
            within = load_trainer(run.run_dir / "checkpoints" / "step-00000006.pth")
            assert within.trainer.weight == 1 / 2  # type: ignore[attr-defined]
        needs = train_on(fit, "trainer.type=NeedsTraining", data_loader=data, validation=data).run_dir
        capsys.readouterr()
        load_script("test").main(["-r", str(needs)])
    assert "NeedsTraining.begin_epoch(2) failed without training (AttributeError: " in capsys.readouterr().err


class TrainsInEvaluation(Trainer):
    """Gets a loss in evaluation by training mode, as of torchvision's detectors."""

    def eval_step(self, batch: Any) -> StepResult:
        self.model.train()
        result = super().eval_step(batch)
        self.model.eval()
        return result


class Normalized(BaseModel):
    def __init__(self, *, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(6, momentum=momentum), nn.Linear(6, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)  # type: ignore[no-any-return]


def test_an_evaluation_in_training_mode_is_refused(fit: Fit) -> None:
    with temporarily(TRAINERS, TrainsInEvaluation), temporarily(MODELS, Normalized):
        assert fit(model="Normalized").steps
        says = "evaluation changed the running statistics of layers.0: in training mode, it learns from validation data"
        with pytest.raises(ConfigError, match=says):
            fit("trainer.type=TrainsInEvaluation", model="Normalized")
        assert fit("trainer.type=TrainsInEvaluation").steps  # a model in which it changes nothing


class WritesAgain(Normalized):
    """Writes the values that its buffers have, as DDP of torch 2.9 does in a validation."""

    def forward(self, inputs: Tensor) -> Tensor:
        for buffer in self.buffers():
            buffer.copy_(buffer.clone())
        return super().forward(inputs)


def test_statistics_that_are_written_again_with_the_same_values_are_unchanged(fit: Fit) -> None:
    with temporarily(MODELS, WritesAgain):
        assert fit(model="WritesAgain").steps
