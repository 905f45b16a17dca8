"""The first batch of each phase: what broadcasts, what one sample breaks, what gives no number, is found there."""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import Dataset, TensorDataset

import train
from base.base_data_loader import BaseDataLoader
from base.data import Batches, TensorSource
from base.metric import StepResult
from base.training.broadcast import NoBroadcast
from base.training.first_batch import check_metrics
from base.training.library_metric import LibraryMetric
from base.training.metrics import Metrics
from base.training.progress import Progress
from tests.conftest import load_script
from tests.helpers import Fit, lines, needs_extra, registering, same, state, temporarily
from trainer.trainer import Trainer
from utils.errors import ConfigError, TrainingError, UserError
from utils.registry import DATA_LOADERS, LOSSES, METRICS, MODELS, TRAINERS

REGRESSION = {"num_samples": 48, "input_shape": [6], "target_shape": [1], "batch_size": 10, "validation_split": 8}


class Squeezed(nn.Module):
    """(B, 6) -> (B,), or () for a single sample."""

    def __init__(self, everything: bool = False) -> None:
        super().__init__()
        self.linear, self.everything = nn.Linear(6, 1), everything

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(x)
        return (outputs.squeeze() if self.everything else outputs.squeeze(1)).sigmoid()


class Normalised(nn.Module):
    """(B, 6) -> (B, 3) with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layers(x)
        return outputs


class Lines(BaseDataLoader):
    """Numbers with targets of shape (), and of shape (1,) in validation or test."""

    def __init__(self, *, wrong: str = "", **batches: Any) -> None:
        super().__init__(**batches)
        self.wrong = wrong

    def training_data(self, *, augment: bool) -> Dataset[Any]:
        inputs = torch.randn(49, 6, generator=torch.Generator().manual_seed(0))
        wrong = self.wrong == "validation" and not augment
        return TensorDataset(inputs, inputs.sum(1, keepdim=wrong).sigmoid())

    def test_data(self) -> TensorSource:
        inputs = torch.randn(11, 6)
        return TensorSource(inputs, inputs.sum(1, keepdim=self.wrong == "test").sigmoid())


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that broadcasts by itself."""
    return ((2 * outputs - targets.float()) ** 2).mean()


def own_metric(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric whose result has the shape (B,) although it compares each with all."""
    return (outputs - targets).abs().mean(1)


def own_lines(wrong: str = "") -> dict[str, Any]:
    args = {"wrong": wrong, "batch_size": 10, "validation_split": 8}
    return {"type": "Lines", "args": args}


def regression(model: Any = "Squeezed", **keys: Any) -> dict[str, Any]:
    loader = {"type": "RandomTensorLoader", "args": REGRESSION}
    return {"data_loader": loader, "model": model, "loss": "mse_loss", "metrics": [], **keys}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "loss",
    [
        "mse_loss", "own_loss", "distance", "smooth_l1_loss", "MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss",
        "BCELoss", "BCEWithLogitsLoss", "KLDivLoss", "PoissonNLLLoss", "SoftMarginLoss", "HingeEmbeddingLoss",
        "MultiLabelSoftMarginLoss",
    ],
)  # fmt: skip
def test_a_loss_that_broadcasts_is_refused(fit: Fit, tmp_path: Path, loss: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fit(**regression(loss=loss, optimizer="LBFGS" if loss == "own_loss" else "SGD"))
    message = str(caught.value)
    assert (
        f"first training batch: the loss {loss} compares outputs of shape (10,) with targets of shape (10, 1)"
        in message
    )
    assert "squeeze(-1)" in message
    assert not list(tmp_path.glob("saved/small/*"))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("metric", ["mean_squared_error", "mean_absolute_error", "own_metric", "MeanSquaredError"])
def test_a_metric_that_broadcasts_is_refused(fit: Fit, metric: str) -> None:
    # a loss that takes both shapes by itself
    with temporarily(LOSSES, flat_loss), pytest.raises(ConfigError) as caught:
        fit(**regression(loss="flat_loss", metrics=[metric]))
    assert f'the metric "{metric}" compares outputs of shape (10,) with targets of shape (10, 1)' in str(caught.value)


def test_a_metric_of_another_shape_is_told_with_all_shapes(fit: Fit) -> None:
    loader = {"type": "RandomTensorLoader", "args": {**REGRESSION, "target_shape": [1]}}
    model = {"type": "LinearRegression", "args": {"in_features": 6, "out_features": 3}}
    with temporarily(LOSSES, no_loss), pytest.raises(ConfigError) as caught:
        fit(data_loader=loader, model=model, loss="no_loss", metrics=["accuracy"])
    message = str(caught.value)
    assert '"accuracy" returned shape (10, 10) for 10 samples' in message
    assert "Outputs: (10, 3) float32; targets: (10, 1) float32" in message


def no_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Does not look at the targets."""
    return outputs.square().mean()


def distance(outputs: Tensor, targets: Tensor) -> Tensor:
    """A number in one step."""
    return torch.dist(outputs, targets)


class Direct(Trainer):
    """Calls a loss of torch by itself."""

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.model(inputs)
        loss = F.mse_loss(outputs, targets)
        self.backward(loss)
        return StepResult(loss, outputs, targets)


_registered = registering(
    (MODELS, Squeezed, Normalised),
    (DATA_LOADERS, Lines),
    (LOSSES, own_loss, distance, F.smooth_l1_loss, F.gaussian_nll_loss),
    (METRICS, own_metric),
    (TRAINERS, Direct),
)


@pytest.mark.filterwarnings("default")
def test_a_loss_that_the_trainer_calls_by_itself_is_refused_too(fit: Fit) -> None:
    with pytest.raises(
        UserError, match=r"(?s)target size \(torch.Size\(\[10, 1\]\)\).*test_first_batch.py:\d+: loss = "
    ):
        fit("trainer.type=Direct", **regression())


class Warns(Trainer):
    """Warns in every step, and calls a loss of torch for a single number."""

    def train_step(self, batch: Any) -> StepResult:
        warnings.warn("written by the user", stacklevel=1)
        F.mse_loss(batch[0].mean(), batch[0].mean().reshape(1, 1))
        return super().train_step(batch)


@pytest.mark.parametrize(("action", "times"), [("default", 3), ("ignore", 0)])
def test_other_warnings_of_a_first_batch_are_shown(fit: Fit, action: Any, times: int) -> None:
    """Python forgets what it has shown after each check, of a training batch and of an evaluation batch."""
    with temporarily(TRAINERS, Warns), warnings.catch_warnings(record=True, action=action) as caught:
        filters = list(warnings.filters)
        fit("trainer.type=Warns")
        assert list(warnings.filters) == filters
    assert sum(str(each.message) == "written by the user" for each in caught) == times


def flat_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Right for any two shapes of as many numbers."""
    return F.mse_loss(outputs.flatten(), targets.flatten())


@pytest.mark.filterwarnings("ignore:Metric `SpearmanCorrcoef`")
def test_metrics_of_torchmetrics_for_regression_all_want_one_shape() -> None:
    from torchmetrics import regression as library

    outputs, targets = torch.rand(6), torch.rand(6, 1)
    for name in library.__all__:
        component = METRICS.get(name)
        if component is None:
            continue
        needed = {"MinkowskiDistance": {"p": 2.0}, "CriticalSuccessIndex": {"threshold": 0.5}}
        args = needed.get(name, {})
        made = Metrics({}, {name: LibraryMetric(name, component(**args))})

        with pytest.raises(ConfigError, match=r"outputs of shape \(6,\) with targets of shape \(6, 1\)"):
            check_metrics(made, StepResult(torch.tensor(1.0), outputs, targets), "training")


@pytest.mark.parametrize("phase", ["validation", "test"])
def test_other_shapes_in_validation_or_test_are_refused(fit: Fit, phase: str) -> None:
    from tests.conftest import load_script

    keys = regression(data_loader=own_lines(phase), metrics=["mean_squared_error"])
    shapes = r"first evaluation batch: .* outputs of shape \(\d+,\) with targets of shape \(\d+, 1\)"
    if phase == "validation":
        with pytest.raises(ConfigError, match=shapes):
            fit(**keys)
    else:
        result = fit(**keys)
        with pytest.raises(ConfigError, match=shapes):
            load_script("test").main(["-r", str(result.run_dir)])


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_last_batch_of_one_sample_is_not_misjudged(fit: Fit) -> None:
    """49 - 8 samples in batches of 10: the last has one, whose outputs the model squeezes to shape ()."""
    keys = regression({"type": "Squeezed", "args": {"everything": True}}, data_loader=own_lines())
    assert fit(**keys).steps == 10
    assert fit("data_loader.args.validation_split=1", **keys).steps == 10
    assert fit("data_loader.args.batch_size=1", "trainer.epochs=1", **keys).steps == 41


def test_checks_change_no_number_and_are_made_once(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = NoBroadcast.__init__

    def counted(self: NoBroadcast, what: str, phase: str, *nests: Any) -> None:
        calls.append(phase)
        original(self, what, phase, *nests)

    monkeypatch.setattr(NoBroadcast, "__init__", counted)
    auroc = {"type": "AUROC", "name": "auroc", "args": {"task": "multiclass", "num_classes": 3}}
    checked = fit("trainer.epochs=3", metrics=["accuracy", auroc])
    assert calls == ["training", "training", "evaluation", "evaluation"]  # the loss and accuracy, once in each
    monkeypatch.setattr(Batches, "checked", True)
    plain = fit("trainer.epochs=3", metrics=["accuracy", auroc])
    assert lines(checked.run_dir) == lines(plain.run_dir)
    for part in ("model", "random", "metrics"):
        assert same(state(checked.run_dir)[part], state(plain.run_dir)[part])


def pairwise(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compares each with all on purpose, and says so by its indices."""
    return (outputs[:, None] - targets[None, :]).square().mean()


def quantile(outputs: Tensor, targets: Tensor) -> Tensor:
    """Three outputs to one target."""
    error = targets - outputs
    return torch.maximum(0.1 * error, -0.9 * error).mean()


def test_what_broadcasts_on_purpose_is_not_refused() -> None:
    for loss, outputs, targets in (
        (pairwise, torch.rand(5), torch.rand(5)),
        (quantile, torch.rand(5, 3), torch.rand(5, 1)),
        (F.mse_loss, torch.rand(5, 1), torch.ones(())),
        (lambda o, t: (o - o.mean()).square().mean() + t.mean(), torch.rand(5), torch.rand(5, 1)),
        (lambda o, t: torch.cat([o, t[:, 0]]).mean(), torch.rand(5), torch.rand(5, 1)),
    ):
        with NoBroadcast("loss", "training", outputs, targets), warnings.catch_warnings(action="ignore"):
            loss(outputs, targets)


# ------------------------------------------------------------------ BatchNorm, and drop_last


@needs_extra("advice")
def test_one_sample_for_batch_norm_is_told_before_the_first_step(fit: Fit, tmp_path: Path) -> None:
    args = {"data_loader.args.num_samples": 41, "data_loader.args.validation_split": 0}
    overrides = [f"{key}={value}" for key, value in args.items()]
    with pytest.raises(UserError, match=r"41 samples in batches of 8\) has a single sample.*\n.*drop_last") as caught:
        fit(*overrides, model="Normalised")
    assert "No step completed" in str(caught.value)
    assert not list(tmp_path.glob("saved/small/*"))
    assert fit(*overrides, "data_loader.args.drop_last=true", model="Normalised").steps == 10


@needs_extra("advice")
def test_one_sample_for_batch_norm_is_told_where_it_fails(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was not tried before, as with several processes."""
    monkeypatch.setattr("extras.advice.advice.check_smallest_batch", lambda trainer: None)
    overrides = ["data_loader.args.num_samples=41", "data_loader.args.validation_split=0"]
    with pytest.raises(UserError, match=r"this batch has a single sample.*\n.*drop_last=true.*batch_size"):
        fit(*overrides, model="Normalised")
    with pytest.raises(UserError, match=r"this batch has a single sample"):
        fit("--bs=1", model="Normalised")


@needs_extra("advice")
def test_the_trial_of_one_sample_leaves_no_trace(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A BatchNorm after a convolution takes one sample, so that training continues."""
    loader = {"type": "RandomTensorLoader", "args": {"num_samples": 9, "input_shape": [1, 4, 4], "num_classes": 3}}
    loader["args"] |= {"batch_size": 8}  # type: ignore[operator]
    with temporarily(MODELS, Convolved):
        tried = fit(model="Convolved", data_loader=loader)
        monkeypatch.setattr("extras.advice.advice.check_smallest_batch", lambda trainer: None)
        plain = fit(model="Convolved", data_loader=loader)
    assert same(state(tried.run_dir)["model"], state(plain.run_dir)["model"])
    assert same(state(tried.run_dir)["random"], state(plain.run_dir)["random"])


class Convolved(nn.Module):
    """(B, 1, 4, 4) -> (B, 3), with BatchNorm over pixels and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layers(x)
        return outputs


@pytest.mark.slow
def test_a_run_with_drop_last_resumes_exactly(fit: Fit) -> None:
    options = ["data_loader.args.num_samples=53", "data_loader.args.drop_last=true", "trainer.keep_last=null"]
    whole = fit(*options, "trainer.epochs=3", "trainer.save_every_steps=2")
    assert [record["step"] for record in lines(whole.run_dir)] == [5, 10, 15]
    for step in (2, 5, 8):
        before = lines(whole.run_dir)
        weights = state(whole.run_dir)["model"]
        train.main(["-r", str(whole.run_dir / "checkpoints" / f"step-{step:08d}.pth")])
        assert lines(whole.run_dir) == before
        assert same(state(whole.run_dir)["model"], weights)


def test_each_pass_with_drop_last_leaves_out_other_samples() -> None:
    class Counted(BaseDataLoader):
        def training_data(self, *, augment: bool) -> TensorSource:
            return TensorSource(torch.arange(10), torch.arange(10))

        test_data = training_data  # type: ignore[assignment]

    made = Counted(batch_size=4, drop_last=True)
    batches = made.training(seed=0)
    assert (len(batches), batches.optimizer_steps(1)) == (2, 2)
    ranges = batches.ranges()
    passes = [[batches.sample_indices(next(ranges)) for _ in range(2)] for _ in range(3)]
    seen = [set(torch.cat(each).tolist()) for each in passes]
    assert [len(each) for each in seen] == [8, 8, 8]
    assert len(set.union(*seen)) > 8
    with pytest.raises(UserError, match="do not fill one batch of 20"):
        Counted(batch_size=20, drop_last=True).training(seed=0)


# ------------------------------------------------------------------ metrics that give no number


def failing_metric() -> type:
    from torchmetrics import Metric

    class Failing(Metric):
        """Cannot be computed."""

        def __init__(self) -> None:
            super().__init__()
            self.add_state("n", torch.zeros(()), dist_reduce_fx="sum")

        def update(self, outputs: Tensor, targets: Tensor) -> None:
            self.n += len(targets)  # type: ignore[operator]

        def compute(self) -> Tensor:
            raise KeyError("nothing")

    return Failing


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        (
            {"type": "ConfusionMatrix", "args": {"task": "multiclass", "num_classes": 3}},
            r"gives \(3, 3\), not a single number",
        ),
        ({"type": "ROC", "args": {"task": "multiclass", "num_classes": 3}}, "gives tuple, not a single number; "),
        ({"type": "Recall", "args": {"task": "multiclass", "num_classes": 3, "average": None}}, '"average": "macro"'),
        ("Failing", '"Failing" cannot be computed: KeyError'),
    ],
)
def test_a_metric_without_a_number_is_found_in_the_first_batch(
    fit: Fit, tmp_path: Path, metric: Any, says: str
) -> None:
    with temporarily(METRICS, failing_metric()), pytest.raises(ConfigError, match=says) as caught:
        fit(metrics=["accuracy", metric])
    assert "No step completed" in str(caught.value)
    assert not list(tmp_path.glob("saved/small/*"))


def test_a_metric_for_two_samples_is_not_refused_for_a_batch_of_one(fit: Fit) -> None:
    keys = regression({"type": "LinearRegression", "args": {"in_features": 6}}, metrics=["R2Score"])
    assert "R2Score" in fit("data_loader.args.batch_size=1", "trainer.epochs=1", **keys).last


# ------------------------------------------------------------------ a monitored value that is NaN


def never(outputs: Tensor, targets: Tensor) -> Tensor:
    """No number."""
    return torch.full((len(targets),), torch.nan)


def test_a_monitored_value_that_is_nan_is_never_the_best(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    with temporarily(METRICS, never):
        result = fit("trainer.epochs=3", "trainer.monitor=max val_never", metrics=["never"])
    assert "none: val_never was not finite in any epoch" in capsys.readouterr().out
    assert not (result.run_dir / "checkpoints" / "best.pth").exists()
    assert json.loads((result.run_dir / "config.json").read_text())["trainer"]["monitor"] == "max val_never"


@pytest.mark.parametrize(("lower_is_better", "infinity"), [(True, -math.inf), (False, math.inf)])
def test_an_infinite_value_is_never_the_best(lower_is_better: bool, infinity: float) -> None:
    progress = Progress(epochs=1)
    judged = [
        progress.update_best(value, lower_is_better=lower_is_better) for value in (infinity, 1.0, infinity, -infinity)
    ]
    assert judged == [False, True, False, False]
    assert (progress.best, progress.stale_epochs) == (1.0, 2)


class Careless(Trainer):
    """Has a loss of its own, though the config names one."""

    def train_step(self, batch: Any) -> StepResult:
        outputs = self.model(batch[0])
        loss = self.loss_of(outputs, batch[1])
        self.backward(loss)
        return StepResult(loss, outputs, batch[1])

    def loss_of(self, outputs: Any, targets: Any) -> Any:
        return torch.nn.functional.cross_entropy(outputs, targets)

    eval_step = train_step


class CarelessGAN(Careless):
    supervised = False


class Renaming(Careless):
    """Keeps the loss of the config under a second name."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.distance = self.criterion

    def loss_of(self, outputs: Any, targets: Any) -> Any:
        return self.distance(outputs, targets)


@pytest.mark.parametrize("trainer", [Careless, CarelessGAN])
@pytest.mark.usefixtures("tensorboard")
def test_a_loss_that_is_never_called_is_an_error(
    fit: Callable[..., train.Result], tmp_path: Path, trainer: type[Careless]
) -> None:
    chosen = f"trainer.type={trainer.__name__}", "data_loader.args.validation_split=0"
    with temporarily(TRAINERS, trainer):
        with pytest.raises(ConfigError, match=f"loss: {trainer.__name__}.train_step does not call"):
            fit(*chosen)
        assert not list(tmp_path.rglob("events.out*")), "no run is left"
        assert fit(*chosen, "loss=null", "trainer.epochs=1").last["loss"] > 0


def test_a_trainer_that_calls_the_loss_of_a_config_without_one(fit: Callable[..., train.Result]) -> None:
    with pytest.raises(ConfigError, match='the config has no loss; set the key "loss"'):
        fit("loss=null")


def test_a_loss_may_be_called_by_a_second_name(fit: Callable[..., train.Result]) -> None:
    with temporarily(TRAINERS, Renaming):
        fit("trainer.type=Renaming", "data_loader.args.validation_split=0", "trainer.epochs=1")


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("this cannot be compiled")


@needs_extra("advice")
@pytest.mark.parametrize("compiled", [True, False])
def test_a_model_that_fails_when_compiled_is_to_be_tried_without(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: None)
    with (
        temporarily(MODELS, Fails),
        pytest.raises(UserError, match="this cannot be compiled") as raised,
    ):
        fit(f"runtime.compile={str(compiled).lower()}", model="Fails")
    assert ("Does it run with runtime.compile=false?" in str(raised.value)) == compiled


def test_a_smaller_last_batch_that_fails_is_named(fit: Fit) -> None:
    """41 samples in batches of 8: the last has one."""

    class FullBatches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.linear(x.view(8, 6))
            return outputs

    options = ("model.type=FullBatches", "model.args={}", "metrics=[]", "trainer.epochs=1")
    says = r"failed after step 5, with samples \d+, the last 1 of the data where other batches have 8: "
    with temporarily(MODELS, FullBatches):
        with pytest.raises(TrainingError, match=f"(?s)training {says}.*drop_last=true leaves them out"):
            fit(*options, "data_loader.args.validation_split=9")
        with pytest.raises(TrainingError, match=f"evaluation {says}") as caught:
            fit(*options, "data_loader.args.num_samples=57", "data_loader.args.validation_split=17")
        assert "drop_last" not in str(caught.value)
        sizes = ("num_samples=48", "validation_split=8", "num_test_samples=9")
        run = fit(*options, *(f"data_loader.args.{size}" for size in sizes)).run_dir
        with pytest.raises(TrainingError, match=r"^evaluation failed, with samples \d+, the last 1 of"):
            load_script("test").main(["-r", str(run)])


def test_a_first_batch_of_a_validation_that_fails_is_named(fit: Fit) -> None:
    class FailsInEvaluation(Trainer):
        def eval_step(self, batch: Any) -> StepResult:
            raise ValueError("no evaluation")

    says = r"^the first batch of the evaluation \(\(\d+, 6\) float32, .*\) failed in .*: no evaluation\n"
    with temporarily(TRAINERS, FailsInEvaluation), pytest.raises(UserError, match=says):
        fit("trainer.type=FailsInEvaluation", "trainer.epochs=1")


def test_targets_that_are_one_hot_have_no_accuracy(fit: Fit) -> None:
    class OneHot(Trainer):
        def train_step(self, batch: Any) -> StepResult:
            inputs, targets = batch
            return super().train_step((inputs, F.one_hot(targets, 3).float()))

    with temporarily(TRAINERS, OneHot), pytest.raises(ConfigError, match=r"accuracy needs class indices as targets"):
        fit("trainer.type=OneHot")
