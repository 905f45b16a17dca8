"""``train.py --check``: a fault of each kind is found and its cause named; sound configs pass; nothing is written."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

import train
from base.base_data_loader import BaseDataLoader
from base.metric import StepResult
from extras.check import preflight
from extras.check.check_result import CheckResult
from extras.check.data_checks import check_batch
from extras.check.first_loss import first_loss
from extras.check.model_checks import check_memorising, check_time, loading_time
from logger.console import styled
from tests.base.training.test_modes import PlainBackward
from tests.configs import BUNDLED, sound, with_small_data
from tests.helpers import temporarily
from trainer.trainer import Trainer
from utils.config import load_config
from utils.errors import DataError
from utils.registry import DATA_LOADERS, LOSSES, METRICS, MODELS, TRAINERS
from utils.text import duration, printable

Check = Callable[..., tuple[int, str]]


class Planted(nn.Module):
    """8 numbers to 3 classes, with one fault."""

    seen: Tensor

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        if fault == "unused":
            self.unused = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(0, 8))
        if fault == "large":
            nn.init.normal_(self.last.weight, std=30)
        if fault == "zero":
            nn.init.constant_(self.first.bias, -100)

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "mixed":
            x = x - x.mean(0)
        if self.fault == "in place":
            x *= 10
        if self.fault == "grown" and self.training:
            self.seen = torch.cat([self.seen, x.detach()])[-50:]
        noisy = 0.6 if self.fault == "noisy" else 0.0
        hidden = functional.dropout(
            self.first(functional.dropout(x.flatten(1), noisy, self.training)).relu(), noisy, self.training
        )
        if self.fault == "detached":
            hidden = hidden.detach()
        outputs: Tensor = self.last(hidden)
        if self.fault == "softmax":
            return outputs.softmax(1)
        if self.fault == "training" and self.training:
            raise ValueError("not with this batch")
        if self.fault == "elsewhere":
            outputs = outputs + torch.ones(3, device="meta")
        return outputs[:, :2] if self.fault == "two" else outputs


class Words(nn.Module):
    """5 indices to 3 classes; its inputs have no gradients."""

    def __init__(self, mixed: bool = False) -> None:
        super().__init__()
        self.table, self.mixed = nn.Embedding(20, 3), mixed

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.table(x).mean(1)
        return outputs + outputs.sum(0) if self.mixed else outputs


class Shared(nn.Module):
    """8 numbers to 3 classes, through one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.hidden(self.hidden(x.flatten(1)).relu()).relu())
        return outputs


class Steps(nn.Module):
    """8 numbers to 2 outputs at each of 4 steps, (B, 2, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(x).unflatten(1, (2, 4))
        return outputs


class Broken(Dataset[Any]):
    """No sample can be read."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        raise KeyError("label")


class Made(BaseDataLoader):
    """A torch data set of one kind."""

    def __init__(self, *, kind: str) -> None:
        super().__init__(batch_size=10)
        self.kind = kind

    def training_data(self, *, augment: bool) -> Dataset[Any]:
        random = torch.Generator().manual_seed(0)
        if self.kind == "broken":
            return Broken()
        inputs, targets = torch.randn(40, 8, generator=random), torch.randint(3, (40,), generator=random)
        if self.kind == "nan":
            inputs[:, 3] = float("nan")
        if self.kind == "constant":
            inputs = torch.zeros(40, 8)
        if self.kind == "unscaled":
            inputs = inputs * 100
        if self.kind == "sorted":
            targets = targets * 0
        if self.kind == "words":
            inputs = torch.randint(20, (40, 5), generator=random)
        if self.kind == "steps":
            targets = torch.randint(2, (40, 4), generator=random)
        return TensorDataset(inputs, targets)

    def test_data(self) -> Dataset[Any]:
        if self.kind == "no test files":
            raise DataError("the folder test/ is missing")
        return None if self.kind == "no return" else self.training_data(augment=False)  # type: ignore[return-value]


def everything(outputs: Tensor, targets: Tensor) -> Tensor:
    """No number for each sample."""
    return outputs.mean()


def of_some(outputs: Tensor, targets: Tensor) -> Tensor:
    """A mean over the targets that are not 0."""
    return nn.functional.cross_entropy(outputs, targets, ignore_index=0)


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Check]:
    """Status and report of a check of the sound config with some keys replaced."""

    def run(**keys: Any) -> tuple[int, str]:
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**sound(), "lr_scheduler": None, "trainer": {"save_dir": str(tmp_path)}, **keys}))
        status = preflight(load_config(path))
        assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]
        return status, capsys.readouterr().out

    with (
        temporarily(MODELS, Planted, Words, Steps, Shared),
        temporarily(DATA_LOADERS, Made),
        temporarily(METRICS, everything),
        temporarily(LOSSES, of_some),
        temporarily(TRAINERS, PlainBackward),
    ):
        yield run


def planted(fault: str) -> dict[str, Any]:
    return {"model": {"type": "Planted", "args": {"fault": fault}}}


def made(kind: str) -> dict[str, Any]:
    return {"data_loader": {"type": "Made", "args": {"kind": kind}}, **planted("")}


@pytest.mark.parametrize(
    ("keys", "line", "cause"),
    [
        (made("nan"), "batch         FAIL  inputs", "10 values are not finite"),
        (
            made("broken"),
            "batch         FAIL  Broken: sample 15 cannot be read: KeyError: 'label'",
            'raise KeyError("label")',
        ),
        (made("constant"), "batch         note  inputs", "all values are the same"),
        (made("unscaled"), "batch         note  inputs", "unscaled inputs"),
        (made("sorted"), "batch         note  targets", "sorted by class"),
        (made("no return"), "test data     FAIL", "the data is of type NoneType"),
        (
            made("no test files"),
            "test data     note",
            "the folder test/ is missing",
        ),
        (planted("large"), "first loss    note", "ln 3 = 1.099\n                    usually: initial weights"),
        ({**planted(""), "loss": "NLLLoss"}, "first batch   note", "model end in log_softmax"),
        ({**planted(""), "trainer": {"monitor": "max loss"}}, "first batch   note", 'did you mean "min loss"?'),
        (planted("in place"), "batch         note  the model, the loss or eval_step changes", "x = x.clone()"),
        (planted("mixed"), "independence  FAIL", "the output of sample 4 depends on other samples"),
        ({**made("words"), "model": {"type": "Words", "args": {"mixed": True}}}, "independence  FAIL", "dimension 0"),
        (planted("unused"), "gradients     FAIL  none for unused.weight, unused.bias", "unused by forward"),
        (planted("detached"), "gradients     FAIL  none for first.weight, first.bias", "detach()"),
        (planted("zero"), "gradients     note  zero for first.weight", "ReLUs that are inactive"),
        (planted("softmax"), "learning      FAIL  one batch cannot be learnt", "a softmax before a loss"),
        (planted("two"), "forward       FAIL", "a class index that is not below the number of the model's outputs"),
        (
            planted("elsewhere"),
            "forward       FAIL  RuntimeError",
            "usually: a tensor on a different device from the batch",
        ),
        (
            planted("training"),
            "forward       FAIL  ValueError: not with this batch",
            "not with this batch",
        ),
        ({**planted(""), "optimizer": {"type": "SGD", "args": {"lr": 1e30}}}, "optimizer     FAIL", "a learning rate"),
        ({**planted(""), "metrics": ["everything"]}, "metrics       FAIL", "one number per sample"),
        ({**planted(""), "loss": "of_some"}, "loss          note", "give the loss a method count"),
    ],
)
def test_a_planted_fault_is_found(check: Check, keys: dict[str, Any], line: str, cause: str) -> None:
    status, report = check(**keys)
    assert line in report
    assert cause in report
    assert "extras/" not in report.replace("tests/extras/", ""), "a line of the project's own explains nothing"
    assert status == (1 if " FAIL " in report else 0)


def test_a_metric_that_fails_is_reported_once_and_not_again_on_the_validation_data(check: Check) -> None:
    loader = {"num_samples": 60, "input_shape": [8], "num_classes": 3, "batch_size": 10, "validation_split": 7}
    metrics = {"data_loader": {"type": "RandomTensorLoader", "args": loader}, "metrics": ["everything"]}
    _, report = check(**planted(""), **metrics)
    assert report.count("one number per sample") == 1


def test_a_model_with_much_dropout_can_learn_a_batch(check: Check) -> None:
    _, report = check(**planted("noisy"))
    assert "learning      ok" in report


def test_a_loss_of_evaluation_is_not_compared_with_a_smaller_one_of_training() -> None:
    model = nn.Linear(2, 1)

    def step() -> StepResult:
        loss = 1 + 0 * model(torch.ones(3, 2)).sum()
        loss.backward()
        return StepResult(loss.detach(), torch.ones(3, 1), torch.ones(3, 1))

    def measure() -> StepResult:
        return StepResult(torch.tensor(10.0), torch.ones(3, 1), torch.ones(3, 1))

    result = check_memorising(model, step, measure, must_learn=True)
    assert (result.verdict, "loss 10 to 10" in result.text) == ("FAIL", True)


def test_a_metric_whose_message_says_why_it_fails_gets_no_usual_cause(check: Check) -> None:
    matrix = {"type": "ConfusionMatrix", "args": {"task": "multiclass", "num_classes": 3}}
    status, report = check(**planted(""), metrics=[matrix])
    assert status == 1
    assert re.search(r"metrics +FAIL .* gives \(3, 3\), not a single number", report)
    assert not re.search(r"not a single number\n +usually", report)


def test_a_sound_model_passes_and_is_shown_layer_by_layer(check: Check) -> None:
    status, report = check(**planted(""))
    assert status == 0
    assert "FAIL" not in report
    assert "note" not in report.replace("time          note", "")  # the machine may be busy with something else
    assert "inputs (10, 8) float32" in report
    assert ["first", "Linear", "(10,", "16)", "144"] in [line.split() for line in report.splitlines()]
    assert report.splitlines()[-3].split() == ["all", "195"]
    assert "780 B parameters, 780 B gradients, 780 B optimizer" in report


def test_a_layer_that_is_called_twice_is_one_row(check: Check) -> None:
    status, report = check(model="Shared")
    assert status == 0
    assert [line.split() for line in report.splitlines() if line.startswith("hidden")] == [
        ["hidden", "Linear", "(10,", "8),", "called", "2", "times", "72"]
    ]


def test_a_verdict_is_coloured_and_wrapped_in_a_terminal() -> None:
    result = CheckResult(
        "first loss", "FAIL", "a loss that is " + "very " * 20 + "large\n  with a line of code", "a cause"
    )
    assert next(result.lines()).startswith("first loss    FAIL  a loss that is very")
    assert len(list(result.lines())) == 3
    for width in (8, 40, 60, 80):
        lines = list(result.lines(width=width))
        assert max(map(len, lines)) <= max(width, 40)
        assert all(line.startswith("    ") for line in lines[1:])
        assert " ".join(" ".join(lines).split()) == " ".join(" ".join(result.lines()).split())
    coloured = next(result.lines(width=80, plain=False))
    assert coloured.startswith(f"first loss    {styled('FAIL ', 'bad')} a loss")
    assert printable(coloured) == coloured, "say() leaves it as it is"


@pytest.mark.parametrize(
    "keys", [made("words") | {"model": "Words"}, made("steps") | {"model": "Steps", "metrics": []}]
)
def test_other_kinds_of_inputs_and_outputs(check: Check, keys: dict[str, Any]) -> None:
    status, report = check(**keys)
    assert status == 0, report
    assert "independence  ok" in report
    assert "equally likely classes would give ln" in report


class Pair(NamedTuple):
    image: Tensor
    sizes: Tensor


def test_the_parts_of_a_named_tuple_have_their_names() -> None:
    batch = (Pair(torch.rand(9, 2), torch.arange(9)), torch.arange(9))
    names = [result.text.partition(" ")[0] for result in check_batch(batch)]
    assert names == ["inputs.image", "inputs.sizes", "targets"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_summed_loss_is_compared_with_a_sum(check: Check, reduction: str) -> None:
    status, report = check(**planted(""), loss={"type": "cross_entropy", "args": {"reduction": reduction}})
    assert status == 0
    assert ("ln 3 x 10 = 10.99" in report) == (reduction == "sum")


class Penalised(Trainer):
    """Its loss in training never gets small, so that in evaluation is compared."""

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.model(inputs)
        loss = self.criterion(outputs, targets) + 3
        self.backward(loss)
        return StepResult(loss, outputs, targets)


@pytest.mark.parametrize(
    "keys",
    [
        {"optimizer": "LBFGS"},
        {"trainer": {"accumulate_steps": 3, "clip_grad_norm": 1.0}},
        {"trainer": {"type": "Penalised", "ema": {"decay": 0.999}}},
        {
            "optimizer": {"type": "SGD", "args": {"lr": 1000}},
            "lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.1}},
        },
        {"runtime": {"device": "cpu", "precision": "bf16"}},
        {"runtime": {"device": "cpu", "compile": True}},
    ],
)
def test_other_settings(check: Check, keys: dict[str, Any]) -> None:
    with temporarily(TRAINERS, Penalised):
        status, report = check(**planted(""), **keys)
    assert status == 0, report


@pytest.mark.slow
@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_bundled_configs_pass(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cifar10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"trainer.save_dir={tmp_path}"]
    overrides += with_small_data(path, own_cifar10)
    assert train.main(["--check", "-c", str(path), *overrides]) == 0, capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("accumulated", "status"), [(1, 0), (2, 1)])
def test_a_backward_pass_by_hand_fails_where_a_run_refuses_it(
    check: Check, tmp_path: Path, accumulated: int, status: int
) -> None:
    trainer = {"type": "PlainBackward", "accumulate_steps": accumulated, "save_dir": str(tmp_path)}
    found, printed = check(**planted(""), data_loader={"type": "Made", "args": {"kind": ""}}, trainer=trainer)
    assert found == status, printed
    assert (
        "gradients     FAIL  PlainBackward.train_step computes gradients without self.backward(loss)" in printed
    ) == bool(status)


@pytest.mark.parametrize(
    ("loss", "verdict", "pretrained"), [(0.2, "note", "ok"), (-0.1, "FAIL", "FAIL"), (3.0, "note", "note")]
)
def test_a_first_loss_far_from_chance_may_come_from_pretrained_weights(
    loss: float, verdict: str, pretrained: str
) -> None:
    result = StepResult(torch.tensor(loss), torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    experiment: Any = SimpleNamespace(sum_loss=False, data=SimpleNamespace(class_names=None))
    for weights, expected in ((None, verdict), ("weights.pth", pretrained)):
        config: Any = SimpleNamespace(
            losses={"": SimpleNamespace(type="cross_entropy")},
            model=SimpleNamespace(weights=weights),
        )
        assert first_loss(result, config, experiment).verdict == expected


def test_several_losses_by_name_pass(check: Check) -> None:
    losses = {"classes": {"type": "cross_entropy"}, "again": {"type": "cross_entropy", "weight": 0.5}}
    status, printed = check(**planted(""), data_loader={"type": "Made", "args": {"kind": ""}}, loss=losses)
    assert status == 0, printed


def test_a_buffer_that_grows_is_not_a_fault(check: Check) -> None:
    status, printed = check(**planted("grown"), data_loader={"type": "Made", "args": {"kind": ""}})
    assert status == 0, printed


@pytest.mark.parametrize(
    ("workers", "arrivals", "seconds"),
    [
        (0, [9.0, 9.5, 10.0], 0.5),  # the first sample may have opened files
        (1, [2.0, 4.0, 6.0], 2.0),
        (4, [2.0] * 4 + [4.0] * 4 + [6.0], 0.5),  # in bursts: a batch from each worker
        (4, [2.0] * 4 + [4.0], 0.5),
        (4, [2.0] * 4 + [4.0] * 3, 0.5),
        (4, [2.0, 2.0], 1.0),  # not a whole burst
        (0, [3.0], 3.0),
    ],
)
def test_the_time_of_a_run_follows_from_when_its_batches_arrive(
    workers: int, arrivals: list[float], seconds: float
) -> None:
    assert loading_time(arrivals, workers) == seconds
    config: Any = SimpleNamespace(trainer=SimpleNamespace(epochs=2, steps_per_epoch=10, accumulate_steps=1))
    training: Any = SimpleNamespace(batches=SimpleNamespace(num_workers=workers))
    text = check_time(config, training, step=0.25, fetching=seconds).text
    assert f"take about {duration(20 * (seconds if workers else seconds + 0.25), fine=True)}," in text
