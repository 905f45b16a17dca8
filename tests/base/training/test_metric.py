"""A metric over batches is the metric over all samples at once, and its sums can be saved in the middle."""

import inspect
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy, MulticlassAUROC, MulticlassF1Score

import train
from base.base_data_loader import BaseDataLoader
from base.base_model import BaseModel
from base.data.sources import TensorSource
from base.metric import StepResult
from base.training.first_batch import check_metrics
from base.training.library_metric import LibraryMetric
from base.training.metrics import Metrics
from model import metric
from tests.helpers import Fit, Json, temporarily
from trainer.trainer import Trainer
from utils.distributed import ProcessGroup
from utils.errors import ConfigError
from utils.registry import DATA_LOADERS, METRICS, MODELS, TRAINERS

GENERATOR = torch.Generator().manual_seed(0)
OUTPUTS = torch.randn(103, 5, generator=GENERATOR)
TARGETS = torch.randint(5, (103,), generator=GENERATOR)


def metrics(*, sum_loss: bool = False, library: dict[str, Any] | None = None) -> Metrics:
    functions = {"accuracy": metric.accuracy, "top": lambda o, t: metric.top_k_accuracy(o, t, k=2)}
    return Metrics(
        functions, {name: LibraryMetric(name, each) for name, each in (library or {}).items()}, sum_loss=sum_loss
    )


def feed(made: Metrics, start: int = 0, stop: int = 103, size: int = 10, reduction: str = "mean") -> None:
    for at in range(start, stop, size):
        outputs, targets = OUTPUTS[at : min(at + size, stop)], TARGETS[at : min(at + size, stop)]
        loss = F.cross_entropy(outputs, targets, reduction=reduction)
        made.update(StepResult(loss, outputs, targets), samples=len(targets), share=len(targets) / 103)


@pytest.mark.parametrize("size", [1, 10, 103])
def test_a_short_batch_counts_by_its_samples(size: int) -> None:
    made = metrics()
    feed(made, size=size)
    values = made.compute()
    assert values["loss"] == pytest.approx(float(F.cross_entropy(OUTPUTS, TARGETS)), rel=1e-6)
    assert values["accuracy"] == pytest.approx(float((OUTPUTS.argmax(1) == TARGETS).double().mean()), rel=1e-9)


def test_a_summed_loss_is_the_sum_over_the_data() -> None:
    made = metrics(sum_loss=True)
    feed(made, reduction="sum")
    assert made.compute()["loss"] == pytest.approx(float(F.cross_entropy(OUTPUTS, TARGETS, reduction="sum")), rel=1e-6)


def test_intervals_are_means_since_the_last_one() -> None:
    made = metrics()
    feed(made, 0, 40)
    made.close_interval()
    feed(made, 40, 103)
    assert made.close_interval()["loss"] == pytest.approx(float(F.cross_entropy(OUTPUTS[40:], TARGETS[40:])), rel=1e-6)
    assert made.compute()["loss"] == pytest.approx(float(F.cross_entropy(OUTPUTS, TARGETS)), rel=1e-6)


def test_sums_resume_from_a_saved_state_bit_for_bit() -> None:
    from torchmetrics import F1Score

    def make() -> Metrics:
        return metrics(library={"f1": F1Score(task="multiclass", num_classes=5, average="macro")})

    whole, first, second = make(), make(), make()
    for made in (whole, first):
        feed(made, 0, 40)
        made.close_interval()
        feed(made, 40, 70)
    second.load_state_dict(first.state_dict())
    for made in (whole, second):
        feed(made, 70, 103)
    assert whole.compute() == second.compute()
    assert whole.compute()["f1"] == pytest.approx(_macro_f1(OUTPUTS.argmax(1), TARGETS), rel=1e-6)


def made_of_others() -> Any:
    from torchmetrics import Metric
    from torchmetrics.classification import MulticlassPrecision, MulticlassRecall

    class OwnF1(Metric):
        def __init__(self) -> None:
            super().__init__()
            self.precision, self.recall = MulticlassPrecision(5), MulticlassRecall(5)

        def update(self, outputs: Tensor, targets: Tensor) -> None:
            self.precision.update(outputs, targets)
            self.recall.update(outputs, targets)

        def compute(self) -> Tensor:
            precision, recall = self.precision.compute(), self.recall.compute()
            return 2 * precision * recall / (precision + recall)

    return OwnF1()


def test_a_metric_made_of_others_resumes_with_their_states() -> None:
    whole, first, second, merged = (metrics(library={"f1": made_of_others()}) for _ in range(4))
    for made in (whole, first):
        feed(made, 0, 40)
    saved = first.state_dict()
    second.load_state_dict(saved)
    for made in (whole, second):
        feed(made, 40, 103)
    assert whole.compute() == second.compute()

    first.reset()
    feed(first, 40, 103)
    merged.load_state_dict({**saved, "processes": [*saved["processes"], *first.state_dict()["processes"]]})
    assert merged.library["f1"].compute() == whole.library["f1"].compute()

    old = {"values": {}, "updates": 0}  # from before the other metrics' states were saved
    second.library["f1"].load_state_dict(old)
    with pytest.raises(ValueError, match="f1 is made of other metrics, precision, recall"):
        second.library["f1"].load_state_dict(old | {"updates": 3})


def _macro_f1(predicted: Tensor, targets: Tensor) -> float:
    scores = []
    for label in range(5):
        hits = int(((predicted == label) & (targets == label)).sum())
        scores.append(2 * hits / (int((predicted == label).sum()) + int((targets == label).sum())))
    return sum(scores) / 5


def test_a_torchmetrics_class_without_a_state_is_refused() -> None:
    class Stateless(Metric):
        def __init__(self) -> None:
            super().__init__()
            self.hits = 0

        def update(self, outputs: Tensor, targets: Tensor) -> None:
            self.hits += 1

        def compute(self) -> Tensor:
            return torch.tensor(self.hits)

    with pytest.raises(ConfigError, match=r'"hits" has no state, .* self.add_state\("hits"'):
        LibraryMetric("hits", Stateless())


class Stacked(Metric):
    """A vector: what a state without dist_reduce_fx becomes with several processes, or the metric's own mistake."""

    hits: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", default=torch.zeros(2))

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.hits += 1

    def compute(self) -> Tensor:
        return self.hits


@pytest.mark.parametrize(("processes", "advice"), [(1, '"average": "macro"'), (2, "to one number; .* dist_reduce_fx")])
def test_a_vector_is_refused_with_what_may_be_wrong(
    processes: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProcessGroup, "world_size", processes)
    metric = LibraryMetric("hits", Stacked())
    metric.update(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ConfigError, match=rf'"hits" gives \(2,\), not a single number; .*{advice}'):
        metric.compute()


class Errors(Metric):
    """Counts the letters that are wrong, but keeps one of its numbers outside its states."""

    wrong: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.add_state("wrong", default=torch.tensor(0.0), dist_reduce_fx="sum")
        starts = {"number": 0, "tensor": torch.tensor(0), "tensors": [], "dict": {"letters": 0}}
        self.letters: Any = starts.get(kind, float("nan"))
        self.width: int | None = None
        self.kind = kind

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.wrong = self.wrong + 1.0
        self.width = outputs.shape[1]
        if self.kind == "tensors":
            self.letters.append(targets)
        elif self.kind == "dict":
            self.letters["letters"] += len(targets)
        elif self.kind == "of a state":
            self.letters = self.wrong
        elif self.kind != "constant":
            self.letters = self.letters + len(targets)

    def compute(self) -> Tensor:
        if self.kind == "constant":
            return self.wrong
        if self.kind == "tensors":
            return self.wrong / len(torch.cat(self.letters))
        return torch.as_tensor(self.wrong / (self.letters["letters"] if self.kind == "dict" else self.letters))


class Broadcasting(Stacked):
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.hits = self.hits + (outputs == targets).sum()


def test_a_metric_of_ones_own_that_broadcasts_is_refused() -> None:
    says = (
        r'^the first training batch: the metric "hits" compares outputs of shape \(3, 1\) with targets of shape \(3,\)'
    )
    with pytest.raises(ConfigError, match=says):
        LibraryMetric("hits", Broadcasting()).dry_run(torch.zeros(3, 1), torch.zeros(3), "training")


@pytest.mark.parametrize("kind", ["number", "tensor", "tensors", "dict", "constant", "of a state"])
def test_a_torchmetrics_class_that_keeps_a_number_outside_its_states_is_refused(kind: str) -> None:
    metric = LibraryMetric("cer", Errors(kind))
    refused = pytest.raises(ConfigError, match=r'update\(\) changes self.letters, .* self.add_state\("letters"')
    with nullcontext() if kind in ("constant", "of a state") else refused:
        metric.dry_run(OUTPUTS, TARGETS, "training")


@pytest.mark.parametrize(("own", "expected"), [(True, 1), (False, 0)])
def test_a_metric_of_ones_own_runs_with_the_runs_kernels(
    monkeypatch: pytest.MonkeyPatch, own: bool, expected: int
) -> None:
    made = LibraryMetric("it", Errors("constant") if own else MulticlassF1Score(num_classes=5))
    modes: list[int] = []
    monkeypatch.setattr(made.metric, "update", lambda *_: modes.append(torch.get_deterministic_debug_mode()))
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")
    try:
        made.update(OUTPUTS, TARGETS)
    finally:
        torch.set_deterministic_debug_mode(before)
    assert modes == [expected]


def test_a_later_batch_that_a_library_metric_refuses_names_the_metric() -> None:
    metric = LibraryMetric("f1", MulticlassF1Score(num_classes=3))
    with pytest.raises(ConfigError, match='metrics: "f1" does not accept these outputs and targets'):
        metric.update(torch.zeros(2, 7), torch.zeros(2, dtype=torch.int64))


def test_a_metric_function_gives_one_number_a_sample() -> None:
    made = Metrics({"wrong": lambda o, t: o.mean()}, {})
    with pytest.raises(ConfigError, match=r'"wrong" returned shape \(\) for 2 samples'):
        made.update(StepResult(torch.tensor(1.0), OUTPUTS[:2], TARGETS[:2]), samples=2, share=1.0)


def test_metric_functions() -> None:
    outputs, targets = torch.tensor([[1.0, 3, 2], [5, 4, 6]]), torch.tensor([2, 0])
    assert metric.accuracy(outputs, targets).tolist() == [0, 0]
    assert metric.top_k_accuracy(outputs, targets, k=2).tolist() == [1, 1]
    expected = torch.tensor([[1.0, 3, 4], [5, 4, 6]])
    assert metric.mean_squared_error(outputs, expected).tolist() == [pytest.approx(4 / 3), 0]
    assert metric.mean_absolute_error(outputs, expected).tolist() == [pytest.approx(2 / 3), 0]
    with pytest.raises(ConfigError, match="larger than the model's 3 classes"):
        metric.top_k_accuracy(outputs, targets, k=4)


@pytest.mark.parametrize("shape", [(4, 1), (4,)])
def test_a_single_output_has_no_largest_class(shape: tuple[int, ...]) -> None:
    outputs, targets = torch.randn(shape), torch.tensor([0, 1, 1, 0])
    for measure in (metric.accuracy, lambda *both: metric.top_k_accuracy(*both, k=1)):
        with pytest.raises(ConfigError, match=r'at least two classes.*"args": {"task": "binary"}'):
            measure(outputs, targets)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_metrics_of_half_precision_outputs_do_not_overflow(dtype: torch.dtype) -> None:
    from torchmetrics import MeanSquaredError

    outputs = torch.full((100, 4), 300.0, dtype=dtype)
    targets = torch.zeros(100, 4, dtype=dtype)
    functions = {"square": metric.mean_squared_error, "raw": lambda o, t: torch.full((100,), 1000.0, dtype=dtype)}
    made = Metrics(functions, {"mse": LibraryMetric("mse", MeanSquaredError())})
    made.update(StepResult(torch.tensor(1.0), outputs, targets), samples=100, share=1.0)
    values = made.compute()
    assert values["square"] == pytest.approx(300.0**2, rel=1e-2)  # bfloat16 has no 300, but 300.0 rounded
    assert values["mse"] == pytest.approx(300.0**2, rel=1e-2)
    assert values["raw"] == pytest.approx(1000.0)


class OfClasses(MulticlassF1Score):
    """As for outputs of which one part are the classes."""


def test_a_metric_derived_from_one_of_torchmetrics_needs_its_arguments_alone() -> None:
    with temporarily(METRICS, OfClasses):
        assert "beta" not in METRICS.parameters("OfClasses")
        assert METRICS.parameters("OfClasses")["num_classes"].default is inspect.Parameter.empty


# ------------------------------------------------------------------ outputs that are logits


class Unlikely(BaseDataLoader):
    """Two classes as floats of shape (B, 1), with inputs so small that some batches of logits lie within 0 and 1."""

    def training_data(self, *, augment: bool) -> TensorSource:
        generator = torch.Generator().manual_seed(0)
        inputs = 0.7 * torch.randn(64, 6, generator=generator)
        return TensorSource(inputs, (inputs[:, :1] > 0.3).float())

    def test_data(self) -> TensorSource:
        return self.training_data(augment=False)


BINARY: Json = {
    "data_loader": {"type": "Unlikely", "args": {"batch_size": 16, "validation_split": 32}},
    "model": {"type": "LinearRegression", "args": {"in_features": 6}},
    "loss": "BCEWithLogitsLoss",
    "metrics": [
        {"type": kind, "name": kind, "args": {"task": "binary"}}
        for kind in ("Accuracy", "AUROC", "AveragePrecision", "CalibrationError")
    ],
}


def test_metrics_of_logits_are_the_same_in_batches_of_any_size(fit: Fit) -> None:
    """torchmetrics itself takes a batch for probabilities if all values are within 0 and 1."""
    with temporarily(DATA_LOADERS, Unlikely):
        found = [
            fit("trainer.epochs=1", f"data_loader.args.eval_batch_size={size}", **BINARY).last for size in (32, 3, 1)
        ]
    for other in found[1:]:
        for name in ("Accuracy", "AUROC", "AveragePrecision", "CalibrationError"):
            assert other[f"val_{name}"] == pytest.approx(found[0][f"val_{name}"])


def as_given_to_loss(outputs: Any) -> Tensor:
    outputs.given_to_loss = True
    return outputs  # type: ignore[no-any-return]


def test_they_are_those_of_the_probabilities() -> None:
    outputs, targets = torch.tensor([0.2, 0.4, 0.9]), torch.ones(3)
    for dtype in (torch.float32, torch.bfloat16):
        logits_of_one = Metrics({}, {"accuracy": LibraryMetric("accuracy", BinaryAccuracy(), "BCEWithLogitsLoss")})
        result = StepResult(torch.zeros(()), as_given_to_loss(outputs.to(dtype)), targets)
        logits_of_one.update(result, samples=3, share=1.0)
        assert logits_of_one.compute()["accuracy"] == 1.0  # all three are positive
    given = LibraryMetric("accuracy", BinaryAccuracy(), "BCELoss")
    given.update(outputs.clone(), targets)
    assert given.compute() == pytest.approx(1 / 3)  # the last is
    classes = LibraryMetric("auroc", MulticlassAUROC(2), "cross_entropy")
    logits, labels = torch.tensor([[0.1, 0.2], [0.9, 0.4], [0.2, 0.1], [-9.0, 0.2]]), torch.tensor([1, 0, 0, 1])
    for row in range(4):
        classes.update(as_given_to_loss(logits[row : row + 1]), labels[row : row + 1])
    whole = MulticlassAUROC(2)
    whole.update(logits.softmax(1), labels)
    assert classes.compute() == pytest.approx(float(whole.compute()))


@pytest.mark.parametrize("loss", ["own", "BCEWithLogitsLoss", "BCELoss"])
def test_batches_that_torchmetrics_takes_for_different_things_are_a_warning(
    capsys: pytest.CaptureFixture[str], loss: str
) -> None:
    """It takes a batch for probabilities if all values are within 0 and 1, whatever the others are."""
    made = LibraryMetric(f"right of {loss}", BinaryAccuracy(), loss)
    for outputs in (torch.tensor([0.2, 0.4]), torch.tensor([0.2, -0.4])):
        given = as_given_to_loss(outputs) if loss == "BCEWithLogitsLoss" else outputs
        made.update(given, torch.tensor([1.0, 0.0]))
        made.compute()
    shown = capsys.readouterr().err
    says = f'metrics: "right of {loss}" depends on the batch size: torchmetrics treated some batches as logits'
    assert (says in shown) is (loss == "own")


class OwnThreshold(BinaryAccuracy):
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        super().update((outputs > 0).float(), targets)


class ReturnsProbabilities(Trainer):
    def eval_step(self, batch: Any) -> StepResult:
        result = super().eval_step(batch)
        return StepResult(result.loss, result.outputs.sigmoid(), result.targets)


@pytest.mark.parametrize("how", ["logits", "own metric", "own step"])
def test_outputs_that_are_probabilities_already_stay(fit: Fit, how: str) -> None:
    """A perfect model is perfect, whoever applies the sigmoid."""

    class Perfect(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.scale * (x[:, :1] - 0.3)
            return outputs

    metric = {"type": "OwnThreshold"} if how == "own metric" else {"type": "Accuracy", "args": {"task": "binary"}}
    with (
        temporarily(DATA_LOADERS, Unlikely),
        temporarily(MODELS, Perfect),
        temporarily(METRICS, OwnThreshold),
        temporarily(TRAINERS, ReturnsProbabilities),
    ):
        trainer = f"trainer.type={'ReturnsProbabilities' if how == 'own step' else 'Trainer'}"
        keys = {**BINARY, "model": "Perfect", "metrics": [{**metric, "name": "right"}]}
        assert fit("--lr=1e-9", "trainer.epochs=1", trainer, **keys).last["val_right"] == 1


def test_targets_between_two_classes_are_refused() -> None:
    made = LibraryMetric("accuracy", BinaryAccuracy(), "BCEWithLogitsLoss")
    with pytest.raises(ConfigError, match=r"only the following values \[0, 1\]"):
        made.update(as_given_to_loss(torch.tensor([0.2, 0.4])), torch.tensor([0.0, 0.7]))


def squashed(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.sigmoid_().argmax(1) == targets).float()


class Squashed(Metric):
    hits: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.hits += (outputs.sigmoid_().argmax(1) == targets).sum()

    def compute(self) -> Any:
        return self.hits


@pytest.mark.parametrize("kind", [squashed, Squashed])
def test_a_metric_that_changes_what_the_others_get_is_refused(fit: Fit, kind: Any) -> None:
    with (
        temporarily(METRICS, kind),
        pytest.raises(ConfigError, match=f'"{kind.__name__}" changes outputs or targets in place'),
    ):
        fit(metrics=["accuracy", kind.__name__])


def chosen(outputs: Any, targets: Tensor) -> Tensor:
    outputs["y"] = outputs["y"].argmax(1)
    return torch.eq(outputs["y"], targets).float()


def test_a_metric_that_replaces_an_item_of_what_the_others_get_is_refused() -> None:
    result = StepResult(torch.zeros(()), {"y": torch.randn(4, 3)}, torch.zeros(4, dtype=torch.int64))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='"chosen" changes outputs or targets in place'):
        check_metrics(Metrics({"chosen": chosen}, {}), result, "training")


class OnlyEvaluates(Trainer):
    """Has outputs only in evaluation, and a loss only in training, like torchvision's detectors."""

    def train_step(self, batch: Any) -> StepResult:
        return super().train_step(batch)._replace(outputs=None)  # type: ignore[arg-type]

    def eval_step(self, batch: Any) -> StepResult:
        return super().eval_step(batch)._replace(loss=torch.tensor(torch.nan))


def test_a_metric_of_evaluation_alone(fit: Fit) -> None:
    names: list[Json] = [
        {"type": "accuracy", "training": False},
        {"type": "Accuracy", "args": {"task": "multiclass", "num_classes": 3}, "training": False},
    ]
    often = ["trainer.type=OnlyEvaluates", "trainer.save_every_steps=2", "trainer.monitor=max val_accuracy"]
    with temporarily(TRAINERS, OnlyEvaluates):
        run = fit(*often, metrics=names)
        last = run.history[-1]
        assert {"loss", "val_loss", "val_accuracy", "val_Accuracy"} <= last.keys()
        assert not {"accuracy", "Accuracy"} & last.keys()
        assert last["val_loss"] is None
        assert last["loss"] > 0
        assert last["val_accuracy"] == pytest.approx(last["val_Accuracy"])
        resumed = train.main(["-r", str(run.run_dir / "checkpoints" / "step-00000008.pth")])
    assert resumed.best == run.best
    with pytest.raises(ConfigError, match='no value is logged as "accuracy"; did you mean "val_accuracy"'):
        fit("trainer.monitor=max accuracy", metrics=names)
