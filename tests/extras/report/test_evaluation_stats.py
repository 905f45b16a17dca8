"""What is found batch by batch is what all outputs at once would show."""

import math
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from base.base_data_loader import BaseDataLoader
from base.data.batches import BatchRange
from base.data.sources import Source, TensorSource
from base.metric import StepResult
from data_loader.cifar10 import CIFAR10Loader
from extras.classification import are_probabilities
from extras.report.evaluation_stats import EvaluationStats
from extras.report.statistics import Classification, Regression, as_probabilities
from model.loss import cross_entropy, mse_loss
from utils.distributed.process_group import ProcessGroup


class Noise(BaseDataLoader):
    def training_data(self, *, augment: bool) -> Source:
        return self.test_data()

    def test_data(self) -> Source:
        return TensorSource(torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))


def outputs_and_targets(samples: int = 300, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(classes, (samples,), generator=generator)
    return torch.randn(samples, classes, generator=generator) + 2 * torch.eye(classes)[targets], targets


def classified(outputs: Tensor, targets: Tensor, batch: int, **arguments: Any) -> Classification:
    found = Classification(outputs.shape[1], **arguments)
    for start in range(0, len(outputs), batch):
        part = slice(start, start + batch)
        probabilities = as_probabilities(outputs[part], given=False)
        found.add(start, probabilities, targets[part], torch.arange(start, start + len(outputs[part])))
    return found


def test_a_classification_by_its_definitions() -> None:
    outputs, targets = outputs_and_targets()
    found = classified(outputs, targets, batch=64)
    chances = outputs.softmax(1)
    confidence, predicted = chances.max(1)
    for true in range(5):
        for guess in range(5):
            assert found.confusion[true, guess] == ((targets == true) & (predicted == guess)).sum()
    right = predicted == targets
    assert found.accuracy() == pytest.approx(right.float().mean().item())
    error = 0.0
    for place in range(found.BINS):
        inside = (confidence >= place / found.BINS) & (confidence < (place + 1) / found.BINS)
        if inside.any():
            gap = confidence[inside].mean() - right[inside].float().mean()
            error += abs(gap.item()) * inside.float().mean().item()
    assert found.calibration_error() == pytest.approx(error, abs=1e-6)
    wrong = [i for i in confidence.argsort(descending=True).tolist() if not right[i]][: found.keep]
    assert [mistake.sample for mistake in found.mistakes] == wrong
    for mistake in found.mistakes:
        assert mistake.true == targets[mistake.sample]
        assert mistake.predicted == predicted[mistake.sample]
        assert mistake.probability == pytest.approx(confidence[mistake.sample].item())
        assert mistake.input is not None
        assert mistake.input.item() == mistake.sample


def test_precision_recall_counts_are_those_of_each_threshold() -> None:
    outputs, targets = outputs_and_targets()
    found, chances = classified(outputs, targets, batch=64), outputs.softmax(1).numpy()
    last = found.THRESHOLDS - 1
    for label in (0, 3):
        true, false = found.curve(label)
        for place in (0, 1, 40, 100, last):
            above = np.floor(chances[:, label] * last) >= place
            assert true[place] == (above & (targets.numpy() == label)).sum()
            assert false[place] == (above & (targets.numpy() != label)).sum()


@pytest.mark.parametrize(
    ("confusion", "only"),
    [([[0, 3], [0, 4]], 1), ([[3, 0], [0, 0]], None), ([[3, 1], [0, 1]], None), ([[0, 0], [0, 0]], None)],
)
def test_a_single_predicted_class_is_noticed(confusion: list[list[int]], only: int | None) -> None:
    """Unless it is always correct."""
    found = Classification(2)
    found.confusion[:], found.samples = confusion, sum(map(sum, confusion))
    assert found.only_prediction() == only


def test_scores_of_classes_that_are_rare_or_never_predicted() -> None:
    found = Classification(3)
    found.confusion[:] = [[3, 1, 0], [2, 4, 0], [0, 0, 0]]
    scores = found.scores()
    assert scores.precision.tolist()[:2] == [0.6, 0.8]
    assert scores.recall.tolist()[:2] == [0.75, 4 / 6]
    assert scores.f1.tolist()[0] == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert np.isnan([scores.precision[2], scores.recall[2], scores.f1[2]]).all()
    assert scores.support.tolist() == [4, 6, 0]


@pytest.mark.parametrize("batch", [1, 7, 300])
def test_batches_of_any_size_show_the_same(batch: int) -> None:
    outputs, targets = outputs_and_targets()
    whole, parts = classified(outputs, targets, 300), classified(outputs, targets, batch)
    for name in ("confusion", "scored"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    assert np.allclose(whole.bins, parts.bins)
    assert [mistake.sample for mistake in whole.mistakes] == [mistake.sample for mistake in parts.mistakes]


def test_nothing_grows_with_the_samples() -> None:
    sizes = []
    for samples in (300, 3000):
        found = classified(*outputs_and_targets(samples), batch=50)
        regression = Regression(samples * 10, 1)
        for number in range(10):
            regression.add(samples * number, torch.randn(samples, 1), torch.randn(samples, 1))
        assert regression.numbers == samples * 10
        arrays = [found.confusion, found.bins, found.scored]
        sizes.append((sum(map(sys.getsizeof, arrays)), len(found.mistakes)))
        assert regression.pairs.shape[1] <= Regression.KEPT
    assert sizes[0] == sizes[1]


def test_a_target_that_is_not_a_class_is_left_out() -> None:
    outputs, targets = outputs_and_targets()
    kept = targets.clone()
    kept[::3] = -100
    found, expected = classified(outputs, kept, 64), classified(outputs[kept >= 0], targets[kept >= 0], 64)
    assert found.samples == expected.samples == 200
    assert all(kept[mistake.sample] == mistake.true for mistake in found.mistakes)
    assert np.array_equal(found.confusion, expected.confusion)


def test_what_counts_as_a_probability() -> None:
    logits = torch.randn(20, 4)
    chances = logits.softmax(1)
    assert torch.allclose(as_probabilities(logits.log_softmax(1), given=False), chances)
    assert not are_probabilities(logits)
    assert not are_probabilities(logits.log_softmax(1))
    assert are_probabilities(chances.to(torch.bfloat16))
    assert are_probabilities(torch.eye(2, dtype=torch.int64)), "a model may return integers"
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        one = torch.tensor([[0.39, 0.62]], dtype=dtype)
        assert not are_probabilities(one), "one sample's logits may add up to nearly 1"
    assert torch.equal(as_probabilities(chances, given=True), chances)
    broken = torch.tensor([[float("nan"), 1.0], [0.2, 0.8]])
    assert as_probabilities(broken, given=True)[0].isnan().all()
    assert are_probabilities(broken)
    assert are_probabilities(broken[:1]) is None


@pytest.mark.parametrize("width", [1, 3, 10])
@pytest.mark.parametrize("batch", [1, 77, 2000])
def test_a_regression_by_its_definitions(width: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    true = 1e4 + torch.randn(2000, width, generator=generator)
    guess = true + 0.1 + 0.5 * torch.randn(2000, width, generator=generator)
    found = Regression(2000, width)
    for start in range(0, 2000, batch):
        found.add(start, guess[start : start + batch], true[start : start + batch])
    residual = (guess.double() - true.double()).numpy()
    values = found.residuals()
    assert values.mean == pytest.approx(residual.mean())
    assert values.deviation == pytest.approx(residual.std(), rel=1e-6)
    assert values.rmse == pytest.approx(np.sqrt((residual**2).mean()))
    assert values.mae == pytest.approx(np.abs(residual).mean())
    assert values.largest == pytest.approx(np.abs(residual).max())
    assert values.r2 == pytest.approx((1 - (residual**2).mean(0) / true.double().numpy().var(0)).mean())
    kept = found.pairs.shape[1]
    assert min(1600, Regression.KEPT // 2) <= kept <= Regression.KEPT
    every = -(-2000 * width // kept)
    assert np.array_equal(found.pairs[1], true.double().flatten().numpy()[::every][:kept])


def test_a_large_bias_hides_no_deviation() -> None:
    """As where times in seconds are predicted before the model has learnt anything."""
    true = torch.linspace(0, 1, 64, dtype=torch.float64)[:, None] + 1.7e9
    halves = []
    for start in (0, 32):
        halves.append(Regression(64, 1))
        halves[-1].add(start, torch.zeros(32, 1), true[start : start + 32])
    found, other = halves
    found.gather(SimpleNamespace(gather=lambda own: [own, other]))  # type: ignore[arg-type]
    values = found.residuals()
    assert values.deviation == pytest.approx(float(true.std(correction=0)), rel=1e-6)
    assert values.mean == pytest.approx(-1.7e9 - 0.5)
    assert values.rmse == pytest.approx(1.7e9 + 0.5)


def test_the_sample_of_a_regression_has_all_of_a_samples_numbers() -> None:
    found = Regression(Regression.KEPT, 2)
    true = torch.tensor([1.0, 2.0]).expand(Regression.KEPT, 2)
    found.add(0, true, true)
    assert set(found.pairs[1]) == {1, 2}


def test_numbers_that_are_not_finite_are_left_out() -> None:
    found = Regression(4, 1)
    found.add(0, torch.tensor([1.0, float("nan"), 3.0, 4.0]), torch.tensor([1.0, 2.0, float("inf"), 5.0]))
    found.add(4, torch.tensor([float("inf")]), torch.tensor([float("inf")]))
    assert found.numbers == 2
    assert found.residuals().largest == 1


@pytest.mark.parametrize("wider", [0, 1])
def test_samples_of_different_widths_are_no_columns_in_any_process(wider: int) -> None:
    halves = [Regression(8, 2), Regression(8, 2)]
    for place, half in enumerate(halves):
        rows = torch.ones(4, 4 if place == wider else 2)  # (4, 4) has as many numbers as (8, 2)
        half.add(0, rows, rows)
    assert [half.uneven for half in halves] == [wider == 0, wider == 1]
    halves[0].gather(SimpleNamespace(gather=lambda own: halves))  # type: ignore[arg-type]
    assert halves[0].uneven


LABELS, SCORES = torch.zeros(6, dtype=torch.int64), torch.randn(6, 3)


@pytest.mark.parametrize(
    ("outputs", "targets", "loss", "task"),
    [
        (SCORES, LABELS, cross_entropy, "classification"),
        (SCORES[:, :1], LABELS, cross_entropy, "classification"),
        (SCORES, LABELS.int(), nn.NLLLoss(), "classification"),
        (SCORES, SCORES, mse_loss, "regression"),
        (SCORES[:, 0], SCORES[:, 0], nn.L1Loss(), "regression"),
        (SCORES.bfloat16(), SCORES, mse_loss, "regression"),
        (SCORES, SCORES.softmax(1), cross_entropy, None),
        (SCORES, SCORES.sigmoid(), nn.BCEWithLogitsLoss(), None),
        (torch.randn(6, 3, 4, 4), torch.zeros(6, 4, 4, dtype=torch.int64), cross_entropy, None),
        (torch.randn(6, 1001), LABELS, cross_entropy, None),
        (SCORES, LABELS[:, None], cross_entropy, None),
        (SCORES, SCORES[:, :1], mse_loss, None),
        (LABELS, LABELS, mse_loss, None),
        (LABELS.float().sum(), SCORES.sum(), mse_loss, None),
    ],
)
def test_the_task_is_recognised(outputs: Tensor, targets: Tensor, loss: Any, task: str | None) -> None:
    runtime = SimpleNamespace(process_group=ProcessGroup())
    findings = EvaluationStats(SimpleNamespace(data=Noise(batch_size=1), criterion=loss, runtime=runtime))  # type: ignore[arg-type]
    findings.begin_evaluation(6)
    with torch.inference_mode():
        for start in (0, 3):
            part = slice(start, start + 3)
            parts = [item[part] if item.dim() else item for item in (outputs, targets)]
            result = StepResult(torch.tensor(0.0), parts[0], parts[1])
            findings.evaluated(BatchRange(0, start, start + 3), (torch.rand(3, 3, 8, 8), LABELS[part]), result)
    assert (findings.classification is not None) == (task == "classification")
    assert (findings.regression is not None) == (task == "regression")
    if findings.classification:
        assert findings.classification.samples == 6


def test_a_first_batch_that_is_not_finite_does_not_tell_what_the_outputs_are() -> None:
    """A model that ends in a softmax, in batches of one."""
    runtime = SimpleNamespace(process_group=ProcessGroup())
    experiment: Any = SimpleNamespace(data=Noise(batch_size=1), criterion=cross_entropy, runtime=runtime)
    stats = EvaluationStats(experiment)
    stats.begin_evaluation(2)
    for place, row in enumerate(([math.nan, 0.0], [0.1, 0.9])):
        result = StepResult(torch.tensor(0.0), torch.tensor([row]), torch.tensor([0]))
        stats.evaluated(BatchRange(0, place, place + 1), (torch.zeros(1), LABELS[:1]), result)
    assert stats.classification is not None
    assert stats.classification.not_finite == 1
    assert stats.mistakes()[0].probability == pytest.approx(0.9)


def test_each_mistake_keeps_its_own_picture() -> None:
    """Inputs of several shapes, of which the second is not a picture."""
    runtime = SimpleNamespace(process_group=ProcessGroup())
    experiment: Any = SimpleNamespace(data=Noise(batch_size=1), criterion=cross_entropy, runtime=runtime)
    stats = EvaluationStats(experiment)
    stats.begin_evaluation(3)
    wrong = torch.tensor([[0.0, 3.0, 0.0]])
    for place, shape in enumerate([(1, 3, 8, 8), (1, 3), (1, 3, 4, 4)]):
        result = StepResult(torch.tensor(0.0), wrong, LABELS[:1])
        stats.evaluated(BatchRange(0, place, place + 1), (torch.rand(shape), LABELS[:1]), result)
    stats.end_evaluation()
    with pytest.MonkeyPatch.context() as patch:
        drawn: list[int] = []
        patch.setattr("extras.report.evaluation_stats.pictures_of", lambda data, inputs: drawn.append(len(inputs)))
        assert len(stats.mistakes(1)) == 1
        assert drawn == [1], "of those that are not shown there are no pictures"
    pictures = [mistake.picture for mistake in stats.mistakes()]
    assert [None if each is None else each.shape for each in pictures] == [(8, 8, 3), None, (4, 4, 3)]


@pytest.mark.filterwarnings("ignore:.*(Sparse|nested)")
def test_inputs_of_any_layout_are_evaluated() -> None:
    runtime = SimpleNamespace(process_group=ProcessGroup())
    stats = EvaluationStats(SimpleNamespace(data=Noise(batch_size=1), criterion=cross_entropy, runtime=runtime))  # type: ignore[arg-type]
    rows = torch.eye(3)
    for inputs in (rows.to_sparse(), rows.to_sparse_csr(), torch.nested.nested_tensor([*rows])):
        stats.begin_evaluation(3)
        result = StepResult(torch.tensor(0.0), torch.randn(3, 3), LABELS[:3])
        stats.evaluated(BatchRange(0, 0, 3), (inputs, LABELS[:3]), result)
        stats.end_evaluation()
        assert stats.classification is not None
        assert stats.classification.samples == 3


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (3, 3), (2, 1), (4, 1), (16, 1)])
def test_inputs_as_pictures(channels: int, shown: int) -> None:
    # two of the brightest pixels may round to one level
    inputs = torch.randn(5, channels, 6, 7, generator=torch.Generator().manual_seed(0))
    pictures = Noise(batch_size=1).pictures(inputs)
    assert pictures is not None
    assert (pictures.shape, pictures.dtype) == ((5, 6, 7, shown), torch.uint8)
    assert [int(end) for end in pictures.aminmax()] == [0, 255]
    grey = inputs.mean(1) if shown == 1 else inputs[:, 0]
    assert pictures[0, :, :, 0].flatten().argmax() == grey[0].flatten().argmax()


def test_inputs_that_are_not_pictures_and_pictures_as_they_are() -> None:
    show = Noise(batch_size=1).pictures
    other = torch.randn(5, 3, 8, 8, dtype=torch.complex64)
    for inputs in (torch.randn(5, 10), torch.randn(5, 3, 8), torch.randn(5, 1, 2, 3, 4), other):
        assert show(inputs) is None
    stored = torch.randint(100, 200, (2, 3, 4, 4), dtype=torch.uint8)
    as_stored = show(stored)
    assert as_stored is not None
    assert torch.equal(as_stored, stored.permute(0, 2, 3, 1))
    for inputs in (torch.full((2, 1, 4, 4), 3.0), torch.full((2, 1, 4, 4), float("nan")), torch.empty(0, 3, 4, 4)):
        assert show(inputs) is not None
    black_and_white = torch.arange(16).view(1, 1, 4, 4) > 7
    partly_nan = torch.where(black_and_white, 2.0, float("nan"))
    for inputs in (black_and_white, partly_nan, black_and_white.byte().repeat(1, 4, 1, 1)):
        pictures = show(inputs)
        assert pictures is not None
        assert pictures.flatten().tolist() == [0] * 8 + [255] * 8


def test_photographs_come_back_to_the_byte() -> None:
    loader = CIFAR10Loader(batch_size=1, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    images = torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8)
    pictures = loader.pictures(loader.normalize(images))
    assert torch.equal(pictures, images)


@pytest.mark.parametrize("supervised", [True, False])
def test_a_process_without_samples_takes_any_outputs(supervised: bool) -> None:
    """A batch may have fewer samples than there are processes, and a model return a dict."""
    runtime = SimpleNamespace(process_group=ProcessGroup())
    experiment: Any = SimpleNamespace(
        data=SimpleNamespace(class_names=None), criterion=cross_entropy, runtime=runtime, supervised=supervised
    )
    for outputs in ({"logits": SCORES[:1]}, (SCORES[:1], [SCORES[:1]]), SCORES[:1]):
        stats = EvaluationStats(experiment)
        stats.begin_evaluation(1)
        targets: Any = LABELS[:1] if isinstance(outputs, Tensor) else {"label": LABELS[:1]}
        stats.evaluated(BatchRange(0, 0, 0), None, StepResult(torch.tensor(0.0), outputs, targets))  # type: ignore[arg-type]
        stats.end_evaluation()
        assert (stats.classification is not None) == (supervised and isinstance(outputs, Tensor))


@pytest.mark.parametrize("samples", [3, 1000])
def test_r2_leaves_out_outputs_whose_targets_are_constant(samples: int) -> None:
    """The mean of many 0.1 is not quite 0.1."""
    varying = torch.linspace(1e9, 1e9 + 1, samples, dtype=torch.float64)
    true = torch.stack([torch.full_like(varying, 0.1), varying], 1)
    found = Regression(samples, 2)
    for start in range(0, samples, 64):
        found.add(start, true[start : start + 64] + 0.01, true[start : start + 64])
    assert 0.99 < found.residuals().r2 < 1


def test_r2_of_several_outputs_is_the_mean_of_theirs() -> None:
    """Not that of all numbers, to which differences between the outputs' means would add."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(40, 3, generator=generator) * torch.tensor([1.0, 10, 100]) + torch.tensor([-50.0, 0, 50])
    predicted = true + torch.randn(40, 3, generator=generator) * torch.tensor([0.5, 9, 20])
    predicted[7, 1] = torch.nan
    found = Regression(40, 3)
    for start in range(0, 40, 8):
        found.add(start, predicted[start : start + 8], true[start : start + 8])
    kept = [torch.arange(40) != (7 if column == 1 else -1) for column in range(3)]
    each = [
        1 - (predicted[rows, i] - true[rows, i]).square().sum() / (true[rows, i] - true[rows, i].mean()).square().sum()
        for i, rows in enumerate(kept)
    ]
    assert found.residuals().r2 == pytest.approx(float(sum(each) / 3), rel=1e-5)
    assert (found.numbers, found.not_finite) == (119, 1)
