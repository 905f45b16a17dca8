"""A loss whose mean is not over samples: the same number however the data are divided, and the same training."""

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint
from torchmetrics.classification import MulticlassAUROC

import train
from base.base_data_loader import BaseDataLoader
from base.base_model import BaseModel
from base.base_trainer import BaseTrainer
from base.data.sources import TensorSource
from base.experiment import Experiment
from base.metric import StepResult, with_count
from base.training.loss import LossSum, count_targets, counted
from base.training.metrics import StepLoss
from model.loss import cross_entropy
from tests.conftest import load_script
from tests.helpers import Fit, curves, equal, keep_on_device, lines, registering, resumed, state, temporarily
from trainer.trainer import Trainer
from utils.distributed import ProcessGroup
from utils.errors import ConfigError, UserError
from utils.registry import DATA_LOADERS, LOSSES, MODELS, TRAINERS
from utils.schema import TrainerConfig

IGNORED = -100


class Tokens(BaseDataLoader):
    """Sequences of 5 tokens of 3 classes. Whole runs of samples have no token that counts."""

    def training_data(self, *, augment: bool) -> TensorSource:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(48, 5, 4, generator=generator)
        targets = torch.randint(3, (48, 5), generator=generator)
        ignored = torch.rand(48, 5, generator=generator) < 0.6
        ignored[8:16] = True
        return TensorSource(inputs, targets.masked_fill(ignored, IGNORED))

    def test_data(self) -> TensorSource:
        return self.training_data(augment=False)


class PartlyPadded(Tokens):
    """Every token counts in some batches of 4, and few in others."""

    def training_data(self, *, augment: bool) -> TensorSource:
        source = super().training_data(augment=augment)
        assert isinstance(source.targets, Tensor)
        whole = source.targets.clamp(min=0)
        source.targets = torch.where((torch.arange(48) // 4 % 2 == 0)[:, None], whole, source.targets)
        return source


class TokenNet(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).transpose(1, 2)  # type: ignore[no-any-return]  # (B, T, C) -> (B, C, T)


class Weighted(nn.CrossEntropyLoss):
    def __init__(self) -> None:
        super().__init__(weight=torch.tensor([0.2, 1.0, 5.0]), ignore_index=IGNORED)


class Masked(nn.Module):
    """The mean over the tokens whose target is 0 or 1, by a method of its own."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(outputs, targets.clamp(min=0), reduction="none")
        kept = (targets == 0) | (targets == 1)
        return (losses * kept).sum() / kept.sum().clamp(min=1)

    def count(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((targets == 0) | (targets == 1)).sum()


class Undefined(Masked):
    """0 / 0 where nothing counts, and so are its gradients."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        kept = (targets == 0) | (targets == 1)
        return (F.cross_entropy(outputs, targets.clamp(min=0), reduction="none") * kept).sum() / kept.sum()


class Ignoring(nn.Module):
    """Torch's mean: NaN where nothing counts, but its gradients are 0."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def count(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets != IGNORED).sum()


class Focal(nn.CrossEntropyLoss):
    """The mean over all targets: an ignored one adds 0."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(outputs, targets, self.weight, ignore_index=self.ignore_index, reduction="none")
        return (losses * (1 - torch.exp(-losses)) ** 2).mean()

    def count(self, outputs: Tensor, targets: Tensor) -> int:
        return targets.numel()


class Scaled(nn.CrossEntropyLoss):
    """Torch's mean, times 2."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 2 * super().forward(outputs, targets)

    def count(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weight = torch.ones(3) if self.weight is None else self.weight
        return (weight[targets.clamp(min=0)] * (targets != IGNORED)).sum()


class CountingTrainer(BaseTrainer):
    """Says itself what its loss is a mean over."""

    def train_step(self, batch: Any) -> StepResult:
        result = self.eval_step(batch)
        self.backward(result.loss)
        return result

    def eval_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.model(inputs)
        kept = targets != IGNORED
        losses = F.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="none")
        return StepResult(losses.sum() / kept.sum().clamp(min=1), outputs, targets, count=kept.sum())


_registered = registering(
    (DATA_LOADERS, Tokens, PartlyPadded),
    (MODELS, TokenNet),
    (LOSSES, Weighted, Masked, Undefined, Ignoring, Focal, Scaled),
    (TRAINERS, CountingTrainer),
)


def tokens(
    fit: Fit, batch_size: int, *overrides: str, loss: Any = "CrossEntropyLoss", data: str = "Tokens", **args: Any
) -> train.Result:
    return fit(
        f"data_loader.args.batch_size={batch_size}",
        "data_loader.args.shuffle=false",
        *overrides,
        data_loader={"type": data, "args": {"batch_size": 48, "validation_split": 12, **args}},
        model={"type": "TokenNet"},
        loss=loss,
        metrics=[],
    )


WEIGHTS = {"weight": [0.2, 1.0, 5.0]}
LOSS: list[Any] = [
    "cross_entropy",
    {"type": "cross_entropy", "args": WEIGHTS},
    "CrossEntropyLoss",
    {"type": "CrossEntropyLoss", "args": WEIGHTS | {"ignore_index": IGNORED}},
    "Weighted",
    "Masked",
]
OWN_FORWARD: list[Any] = [{"type": name, "args": args} for name in ("Focal", "Scaled") for args in ({}, WEIGHTS)]


@pytest.mark.parametrize("loss", [*LOSS, *OWN_FORWARD])
def test_a_validation_loss_does_not_depend_on_the_batch_size(fit: Fit, loss: Any) -> None:
    values = [tokens(fit, 36, loss=loss, eval_batch_size=size).last["val_loss"] for size in (12, 5, 3, 1)]
    assert values == pytest.approx(values[:1] * 4, rel=1e-6)


def test_each_of_several_losses_is_averaged_over_its_own_count(fit: Fit) -> None:
    losses = {"weighted": {"type": "cross_entropy", "args": WEIGHTS}, "plain": {"type": "cross_entropy"}}
    still = "optimizer.args.lr=0.0"
    alone = tokens(fit, 36, still, loss=losses["weighted"], eval_batch_size=12).last["val_loss"]
    for size in (12, 5, 1):
        last = tokens(fit, 36, still, loss=losses, eval_batch_size=size).last
        assert last["val_weighted"] == pytest.approx(alone, rel=1e-6)


HALF = {"type": "cross_entropy", "weight": 0.5}
NAMED: list[Any] = [{"words": {"type": "cross_entropy"}}, {"words": HALF, "again": HALF}]


@pytest.mark.parametrize("loss", NAMED)
def test_losses_by_name_are_what_one_without_a_name_is(fit: Fit, loss: Any) -> None:
    """Whether all targets of a batch count changes nothing in what its loss is averaged over."""
    whole = tokens(fit, 36, "trainer.epochs=3", loss="cross_entropy", data="PartlyPadded", eval_batch_size=4)
    for overrides in ([], ["trainer.accumulate_steps=9"]):
        size = 4 if overrides else 36
        by_name = tokens(fit, size, "trainer.epochs=3", *overrides, loss=loss, data="PartlyPadded", eval_batch_size=4)
        assert by_name.last["val_loss"] == pytest.approx(by_name.last["val_words"], rel=1e-6)
        for name in ("loss", "val_loss"):
            assert by_name.last[name] == pytest.approx(whole.last[name], rel=1e-5)
        for name, weights in state(whole.run_dir)["model"].items():
            torch.testing.assert_close(state(by_name.run_dir)["model"][name], weights, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSS)
@pytest.mark.parametrize("optimizer", ["SGD", "LBFGS"])
def test_accumulation_trains_what_one_large_batch_does(fit: Fit, loss: Any, optimizer: str) -> None:
    few = {"max_iter": 4} if optimizer == "LBFGS" else {}
    chosen = (f"optimizer={json.dumps({'type': optimizer, 'args': {'lr': 0.1, **few}})}", "trainer.epochs=3")
    whole = tokens(fit, 36, *chosen, loss=loss)
    parts = tokens(fit, 4, *chosen, "trainer.accumulate_steps=9", loss=loss)
    for name, weights in state(whole.run_dir)["model"].items():
        torch.testing.assert_close(state(parts.run_dir)["model"][name], weights, rtol=1e-3, atol=1e-4)
    assert [line["loss"] for line in lines(parts.run_dir)] == pytest.approx(
        [line["loss"] for line in lines(whole.run_dir)], rel=1e-5
    )


def test_a_trainer_says_what_its_loss_is_a_mean_over(fit: Fit) -> None:
    one = tokens(fit, 36)
    for chosen in (["trainer.type=Trainer"], ["trainer.type=CountingTrainer", "loss=null"]):
        parts = tokens(fit, 4, "trainer.accumulate_steps=9", *chosen, eval_batch_size=5)
        assert parts.last["loss"] == pytest.approx(one.last["loss"], rel=1e-5)
        assert parts.last["val_loss"] == pytest.approx(one.last["val_loss"], rel=1e-5)


def penalty(outputs: Tensor, targets: Tensor) -> Tensor:
    """Averaged over samples, whatever their tokens are."""
    return outputs.square().mean()


@pytest.mark.parametrize("on_device", [False, True])
def test_a_batch_in_which_nothing_counts_is_not_nan(fit: Fit, monkeypatch: pytest.MonkeyPatch, on_device: bool) -> None:
    """Samples 8 to 15 have no token that counts: a whole batch of 8."""
    losses = ["cross_entropy", "CrossEntropyLoss", "Weighted", "Ignoring"]
    if on_device:
        keep_on_device(monkeypatch)
    else:  # there, gradients that are NaN would have to be found in each step
        losses.append("Undefined")
    for loss in (*losses, {"tokens": {"type": "CrossEntropyLoss"}, "rest": {"type": "penalty"}}):
        with temporarily(LOSSES, penalty):
            result = tokens(fit, 8, loss=loss, validation_split=0)
        assert result.steps == 12
        assert result.last["loss"] > 0
        assert all(bool(parameter.isfinite().all()) for parameter in result.model.parameters())


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_it_counts_what_torch_divides_by(dtype: torch.dtype) -> None:
    outputs = torch.randn(6, 3, 5)
    targets = torch.randint(3, (6, 5)) if dtype == torch.int64 else torch.rand(6, 3, 5).softmax(1)
    if dtype == torch.int64:
        targets[0, :3] = 7
    ignore = 7 if dtype == torch.int64 else IGNORED  # torch takes no other for probabilities
    for weight in (None, torch.tensor([0.2, 1.0, 5.0])):
        for smoothing in (0.0, 0.1):
            module = nn.CrossEntropyLoss(weight=weight, ignore_index=ignore, label_smoothing=smoothing)
            total = F.cross_entropy(
                outputs, targets, weight=weight, ignore_index=ignore, reduction="sum", label_smoothing=smoothing
            )
            loss = counted(module)
            value, count = float(loss(outputs, targets)), loss.last_count
            assert count is not None
            assert value == pytest.approx(float(total / count), rel=1e-5)
            assert loss(outputs, targets).equal(module(outputs, targets))
            assert loss(target=targets, input=outputs).equal(module(outputs, targets))
            assert loss(outputs, target=targets).equal(module(outputs, targets))
            assert loss.last_count == pytest.approx(count)
            loss(outputs.clone().requires_grad_(), targets)  # here the count is what torch has kept
            assert loss.last_count == pytest.approx(count)


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="torch is older")
@pytest.mark.parametrize(("weight", "count"), [(None, 4), ([0.2, 1.0, 5.0], 7.2)])
def test_a_loss_with_its_own_layer_counts_its_targets(weight: list[float] | None, count: float) -> None:
    module = nn.LinearCrossEntropyLoss(2, 3, weight=None if weight is None else torch.tensor(weight))
    loss, targets = counted(module), torch.tensor([0, 1, 2, IGNORED, 1, IGNORED])
    for inputs in (torch.randn(6, 2), torch.randn(6, 2, requires_grad=True)):
        assert loss(inputs, targets).equal(module(inputs, targets))
        assert loss.last_count == pytest.approx(count)
        assert loss(inputs, torch.full((6,), IGNORED)).item() == 0


def test_classes_may_be_uint8() -> None:
    loss = counted(nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 5.0]), ignore_index=255))
    loss(torch.randn(4, 3), torch.tensor([0, 2, 255, 1], dtype=torch.uint8))
    assert loss.last_count == pytest.approx(6.2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_count_is_not_rounded_to_half_precision(dtype: torch.dtype) -> None:
    loss = counted(nn.CrossEntropyLoss())
    loss(torch.randn(2049, 3, dtype=dtype, requires_grad=True), torch.randint(3, (2049,)))
    assert loss.last_count == 2049


def test_counting_does_not_take_what_a_hook_keeps_for_the_backward_pass() -> None:
    kept, outputs = dict[int, Tensor](), torch.randn(6, 3, requires_grad=True)

    def keep(tensor: Tensor) -> int:
        kept[len(kept)] = tensor
        return len(kept) - 1

    loss = counted(nn.CrossEntropyLoss())
    with torch.autograd.graph.saved_tensors_hooks(keep, kept.pop):  # as a hook that moves activations to the CPU
        value = loss(outputs, torch.tensor([0, 1, 2, 0, IGNORED, 1]))
    value.backward()  # type: ignore[no-untyped-call]
    assert loss.last_count == 5

    calls = []

    def block(outputs: Tensor) -> Tensor:
        calls.append(1)
        return loss(outputs, torch.tensor([0, 1, 2, 0, IGNORED, 1]))

    value = checkpoint(block, outputs, use_reentrant=False)
    assert len(calls) == 1
    value.backward()  # type: ignore[no-untyped-call]
    assert len(calls) == 2


@pytest.mark.parametrize("result", [1.5, (torch.ones(()), {}), None])
def test_a_cross_entropy_that_was_edited_to_return_something_else(fit: Fit, result: Any) -> None:
    edited = functools.wraps(cross_entropy)(lambda *_, **__: result)
    expected = f"type {type(result).__name__}; expected one number per batch"
    with temporarily(LOSSES, edited), pytest.raises(UserError, match=expected):
        fit()


@pytest.mark.usefixtures("tensorboard")
def test_counts_that_stay_on_the_device_give_the_same(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("trainer.accumulate_steps=3", "trainer.log_every_steps=1")
    expected = tokens(fit, 4, *args)
    keep_on_device(monkeypatch)
    result = tokens(fit, 4, *args)
    assert [line["loss"] for line in lines(result.run_dir)] == pytest.approx(
        [line["loss"] for line in lines(expected.run_dir)], rel=1e-5
    )
    found, points = (dict(curves(each.run_dir)["loss/step"]) for each in (result, expected))
    assert found == pytest.approx(points, rel=1e-5)


@pytest.mark.parametrize("loss", OWN_FORWARD)
def test_a_mean_over_nothing_that_stays_on_the_device_does_not_count(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, loss: Any
) -> None:
    expected = tokens(fit, 36, loss=loss, eval_batch_size=12).last["val_loss"]
    keep_on_device(monkeypatch)
    assert tokens(fit, 36, loss=loss, eval_batch_size=1).last["val_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_micro_batch_without_targets_does_not_count_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_on_device(monkeypatch)
    total = StepLoss(4, alone=False, sum_loss=False)
    total.add(torch.tensor(3.0), torch.tensor(2), 2)
    total.add(torch.tensor(torch.nan), torch.tensor(0), 2)
    assert float(total.finish([], ProcessGroup())) == 3.0


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 4, 4)])
@pytest.mark.parametrize("by_class", [True, False])
def test_a_sum_over_pixels_adds_each_in_one_order(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], by_class: bool
) -> None:
    """torch's own sum over more than one dimension adds in no fixed order on a GPU."""
    reductions: list[str] = []
    function = F.cross_entropy

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        reductions.append(kwargs["reduction"])
        return function(*args, **kwargs)

    outputs, targets = torch.randn(shape), torch.randint(3, (shape[0], *shape[2:]))
    expected = float(F.cross_entropy(outputs, targets))
    keep_on_device(monkeypatch)
    monkeypatch.setattr(F, "cross_entropy", watched)
    loss = counted(nn.CrossEntropyLoss() if by_class else functools.partial(cross_entropy))
    assert float(loss(outputs, targets)) == pytest.approx(expected, rel=1e-5)
    assert reductions[-1] == ("sum" if len(shape) == 2 else "none")


def test_losses_over_samples_have_no_count() -> None:
    outputs = torch.randn(4, 3)
    for module in (nn.MSELoss(), nn.CrossEntropyLoss(reduction="sum"), nn.BCEWithLogitsLoss()):
        loss = counted(module)
        assert float(loss(outputs, torch.ones(4, 3))) > 0
        assert loss.last_count is None
    assert outputs.given_to_loss  # type: ignore[attr-defined]
    assert count_targets(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), weight=None, ignore=IGNORED) == 4


def test_a_forward_of_its_own_needs_a_count_if_targets_do_not_count_alike(fit: Fit) -> None:
    class Own(nn.CrossEntropyLoss):
        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().forward(outputs, targets)

    with temporarily(LOSSES, Own):
        fit(loss="Own")
        with pytest.raises(ConfigError, match=r"loss: Own may average .* add a method count"):
            fit(loss={"type": "Own", "args": {"weight": [1.0, 2.0, 3.0]}})
        with pytest.raises(ConfigError, match=r"loss: Own may average .* add a method count"):
            tokens(fit, 36, loss="Own")  # some of its targets are ignored


class ReturnsItsLoss(Trainer):
    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "loss": self.criterion}


def test_a_trainer_may_return_its_loss_by_the_name_it_has_anyway(fit: Fit) -> None:
    with temporarily(TRAINERS, ReturnsItsLoss):
        run = tokens(fit, 36, "trainer.type=ReturnsItsLoss", loss="Weighted").run_dir
        assert state(run)["loss"]["weight"].tolist() == pytest.approx([0.2, 1.0, 5.0])


# ------------------------------------------------------------------ further values


class LoggingTrainer(CountingTrainer):
    """Logs the norm of the outputs, and in training the number of samples of the batch."""

    logs: ClassVar[Sequence[str]] = ("norm", "batch")

    def train_step(self, batch: Any) -> StepResult:
        result = super().train_step(batch)
        return result._replace(log={**result.log, "batch": len(batch[0])})

    def eval_step(self, batch: Any) -> StepResult:
        result = super().eval_step(batch)
        return result._replace(log={"norm": result.outputs.norm(dim=(1, 2)).mean()})


class TokenLogger(CountingTrainer):
    """Logs its loss again, as a mean over the same tokens, and a float."""

    logs = ("again", "three")

    def train_step(self, batch: Any) -> StepResult:
        result = super().train_step(batch)
        count = result.count
        return result._replace(log={"again": with_count(result.loss, count), "three": with_count(3.0, count)})

    def eval_step(self, batch: Any) -> StepResult:
        result = super().eval_step(batch)
        return result._replace(log={"again": with_count(result.loss.item(), result.count)})


class Unnamed(LoggingTrainer):
    logs = ("norm",)


class Shaped(LoggingTrainer):
    def eval_step(self, batch: Any) -> StepResult:
        result = super().eval_step(batch)
        return result._replace(log={"norm": result.outputs.norm(dim=(1, 2))})


class Taken(LoggingTrainer):
    logs = ("val_norm",)


@pytest.mark.slow
def test_a_step_logs_further_values(fit: Fit) -> None:
    with temporarily(TRAINERS, LoggingTrainer):
        chosen = (
            "trainer.type=LoggingTrainer",
            "loss=null",
            "trainer.monitor=max val_norm",
            "trainer.log_every_steps=1",
            "trainer.tensorboard=true",
        )
        result = tokens(fit, 8, *chosen, eval_batch_size=5)
        one = tokens(fit, 8, *chosen, eval_batch_size=12)
        again = train.main(["-r", str(one.run_dir), "trainer.epochs=3"])
        load_script("test").main(["-r", str(one.run_dir)])
    line = lines(result.run_dir)[-1]
    assert {"norm", "val_norm", "batch"} <= line.keys()
    assert "val_batch" not in line  # the evaluation has not logged it
    assert line["batch"] == pytest.approx((4 * 8 * 8 + 4 * 4) / 36)  # averaged over the samples
    assert line["val_norm"] == pytest.approx(lines(one.run_dir)[1]["val_norm"], rel=1e-6)
    assert result.best == max(line["val_norm"] for line in lines(result.run_dir))
    assert again.last["val_norm"] > 0
    assert len(curves(result.run_dir)["norm/step"]) == 10
    assert "norm/valid" in curves(result.run_dir)
    tested = json.loads((one.run_dir / "test" / "metrics.json").read_text(encoding="utf-8"))
    assert tested["norm"] > 0


def test_a_logged_value_may_be_a_mean_over_what_the_loss_is(fit: Fit) -> None:
    with temporarily(TRAINERS, TokenLogger):
        result = tokens(fit, 8, "trainer.type=TokenLogger", "loss=null", eval_batch_size=5)
    assert result.last["again"] == result.last["loss"]
    assert result.last["val_again"] == result.last["val_loss"]
    assert result.last["three"] == 3


@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        (Unnamed, 'the trainer logs "batch", which is missing from its class attribute "logs"'),
        (Shaped, r'logs "norm" of shape \(8,\); a logged value is a single number'),
        (Taken, 'trainer.type: its value would be logged as "val_norm", but that name is taken'),
    ],
)
def test_a_value_that_cannot_be_logged(fit: Fit, trainer: type[BaseTrainer], says: str) -> None:
    with temporarily(TRAINERS, trainer), pytest.raises(UserError, match=says):
        tokens(fit, 8, f"trainer.type={trainer.__name__}", "loss=null")


# ------------------------------------------------------------------ several losses


class TwoHeads(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.kind, self.size = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"kind": self.kind(inputs), "size": self.size(inputs)[:, 0]}


class TwoTargets(BaseDataLoader):
    def training_data(self, *, augment: bool) -> Any:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(40, 6, generator=generator)
        kinds = torch.randint(3, (40,), generator=generator)
        sizes = torch.randn(40, generator=generator)
        return _Rows([(inputs[i], {"kind": kinds[i], "size": sizes[i]}) for i in range(40)])

    def test_data(self) -> Any:
        return self.training_data(augment=False)


class _Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class Learnt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean() * torch.exp(-self.scale) + self.scale


SUM: dict[str, Any] = {"kind": {"type": "cross_entropy", "weight": 0.5}, "size": {"type": "Learnt", "weight": 2.0}}
UNEQUAL = {"kind": {"type": "cross_entropy", "args": {"ignore_index": 2}}, "size": {"type": "MSELoss"}}
"""Means over different numbers of targets."""


def on_two_targets(fit: Fit, *overrides: str, loss: Any = SUM, metrics: Any = (), **data: Any) -> train.Result:
    with temporarily(MODELS, TwoHeads), temporarily(DATA_LOADERS, TwoTargets), temporarily(LOSSES, Learnt):
        return fit(
            *overrides,
            data_loader={"type": "TwoTargets", "args": {"batch_size": 8, "validation_split": 8, **data}},
            model="TwoHeads",
            loss=loss,
            metrics=list(metrics),
        )


@pytest.mark.usefixtures("tensorboard")
def test_a_weighted_sum_of_losses_by_name(fit: Fit) -> None:
    result = on_two_targets(fit, "trainer.monitor=min val_size", "trainer.save_every_steps=2", "trainer.keep_last=null")
    for prefix in ("", "val_"):
        total = 0.5 * result.last[f"{prefix}kind"] + 2 * result.last[f"{prefix}size"]
        assert result.last[f"{prefix}loss"] == pytest.approx(total, rel=1e-5)
    assert result.best == min(line["val_size"] for line in lines(result.run_dir))
    assert {"kind/train", "size/valid", "kind/step"} <= curves(result.run_dir).keys()
    assert float(state(result.run_dir)["loss"]["size.scale"]) != 0


def test_a_sum_of_losses_with_their_own_counts_is_validated_in_batches_of_any_size(fit: Fit) -> None:
    found = [
        on_two_targets(fit, "--lr=1e-9", "trainer.epochs=1", loss=UNEQUAL, eval_batch_size=size).last
        for size in (1, 3, 8)
    ]
    for last in found:
        assert last["val_loss"] == pytest.approx(last["val_kind"] + last["val_size"], rel=1e-6)
        assert last["val_loss"] == pytest.approx(found[0]["val_loss"], rel=1e-6)


def test_a_loss_by_a_name_that_no_entry_has(fit: Fit) -> None:
    misspelt = {"kind": "cross_entropy", "sizes": {"type": "MSELoss"}}
    with pytest.raises(UserError, match=r"(?s)the first batch .* failed in the model, the loss or a metric: .*'dict'"):
        on_two_targets(fit, loss=misspelt)


AUROC = {"type": "AUROC", "args": {"task": "multiclass", "num_classes": 3}, "entry": "kind"}
OF_ENTRIES: list[Any] = [
    {"type": "accuracy", "entry": "kind"},
    {"type": "MeanSquaredError", "entry": "size", "name": "mse"},
    AUROC,
]


@pytest.mark.usefixtures("tensorboard")
def test_metrics_of_one_entry_of_outputs_and_targets(fit: Fit) -> None:
    losses = {"kind": "cross_entropy", "size": {"type": "MSELoss"}}
    found = [
        on_two_targets(fit, "trainer.monitor=max val_kind_accuracy", loss=losses, metrics=OF_ENTRIES, eval_batch_size=n)
        for n in (8, 3)
    ]
    one, other = (result.last for result in found)
    assert one["val_mse"] == pytest.approx(one["val_size"], rel=1e-6)  # the loss itself
    assert other["val_kind_AUROC"] == pytest.approx(one["val_kind_AUROC"], rel=1e-6)  # of probabilities in every batch
    assert found[0].best == max(line["val_kind_accuracy"] for line in lines(found[0].run_dir))
    assert {"kind_accuracy/train", "mse/valid"} <= curves(found[0].run_dir).keys()

    data = TwoTargets(batch_size=8, validation_split=8).validation()
    assert data is not None
    [batch] = data.one_pass()
    inputs, targets = batch.data
    weights = state(found[0].run_dir)["model"]
    scores = inputs @ weights["kind.weight"].T + weights["kind.bias"]
    assert one["val_kind_accuracy"] == pytest.approx(float((scores.argmax(1) == targets["kind"]).float().mean()))
    expected = MulticlassAUROC(3)(scores.softmax(1), targets["kind"])
    assert one["val_kind_AUROC"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", ["accuracy", {"type": "AUROC", "args": AUROC["args"]}])
def test_a_metric_of_an_entry_that_is_not_there(fit: Fit, kind: Any) -> None:
    metric = {"name": "it", "entry": "kinds", **(kind if isinstance(kind, dict) else {"type": kind})}
    with pytest.raises(ConfigError, match='metrics: "it" takes the entry "kinds", which is not there: kind, size'):
        on_two_targets(fit, metrics=[metric])
    with pytest.raises(ConfigError, match=r'"it" takes the entry "kinds", .*: neither outputs nor targets are dicts'):
        fit(metrics=[metric])


@pytest.mark.slow
def test_a_sum_of_losses_accumulates_and_resumes_exactly(fit: Fit, tmp_path: Path) -> None:
    large = on_two_targets(fit, batch_size=8).run_dir
    small = on_two_targets(fit, "trainer.accumulate_steps=4", batch_size=2).run_dir
    for name, value in state(large)["model"].items():
        assert torch.allclose(value, state(small)["model"][name], atol=1e-6)
    run = on_two_targets(fit, "trainer.save_every_steps=2", "trainer.keep_last=null").run_dir
    with temporarily(MODELS, TwoHeads), temporarily(DATA_LOADERS, TwoTargets), temporarily(LOSSES, Learnt):
        equal(run, resumed(run, tmp_path, 6))


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (
            {"kind": {"type": "cross_entrop"}, "size": {"type": "Learnt"}},
            r'loss.kind.type: unknown loss "cross_entrop"',
        ),
        ({"kind": {"type": "cross_entropy", "wieght": 1}, "size": {"type": "Learnt"}}, "loss.kind.wieght: unknown key"),
        ({"loss": {"type": "cross_entropy"}}, 'loss.loss: its value would be logged as "loss", but that name is taken'),
        ({"type": "cross_entropy", "weight": 2}, "loss.weight: a single loss cannot have a weight"),
        (
            {"kind": {"type": "cross_entropy"}, "size": {"type": "MSELoss", "args": {"reduction": "sum"}}},
            "loss.size: this loss is a sum over the samples, but another one is a mean",
        ),
    ],
)
def test_a_mistake_in_several_losses_is_located(fit: Fit, loss: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        on_two_targets(fit, loss=loss)


def test_losses_may_have_names_of_attributes_of_modules(fit: Fit) -> None:
    named = {"half": {"type": "cross_entropy", "weight": 0.5}, "training": {"type": "CrossEntropyLoss", "weight": 0.5}}
    run = fit(loss={**named, "weights": "cross_entropy"})
    assert run.last["half"] == pytest.approx(run.last["weights"])
    assert run.last["loss"] == pytest.approx(2 * run.last["training"])


class WithState(nn.CrossEntropyLoss):
    pass


def test_a_loss_with_a_state_needs_a_name_that_modules_do_not_have(fit: Fit) -> None:
    says = r"config.json:\d+:\d+: loss.half: .* already; give it another name"
    with temporarily(LOSSES, WithState), pytest.raises(ConfigError, match=says):
        fit(loss={"half": "WithState", "whole": "cross_entropy"})


def test_an_empty_loss_with_a_state_is_registered() -> None:
    class Queue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def __len__(self) -> int:
            return 0

    assert [name for name, _ in LossSum({"queue": counted(Queue())}, {"queue": 1.0}).named_parameters()] == [
        "queue.scale"
    ]


def test_losses_by_name_alone(fit: Fit) -> None:
    result = on_two_targets(fit, loss={"kind": "cross_entropy", "size": "MSELoss"})
    assert result.last["loss"] == pytest.approx(result.last["kind"] + result.last["size"], rel=1e-5)


@pytest.mark.parametrize("on_device", [False, True])
def test_means_over_different_numbers_are_weighted_by_samples(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, on_device: bool
) -> None:
    expected = on_two_targets(fit, "trainer.accumulate_steps=2", loss=UNEQUAL).last["loss"]
    if on_device:
        keep_on_device(monkeypatch)
    result = on_two_targets(fit, "trainer.accumulate_steps=2", loss=UNEQUAL)
    assert result.last["loss"] == pytest.approx(expected, rel=1e-5)


OTHER_SUM = {"kind": {"type": "cross_entropy", "args": {"reduction": "sum"}}, "size": {"type": "Distances"}}


class Distances(nn.L1Loss):
    def __init__(self) -> None:
        super().__init__(reduction="sum")


PROPORTIONAL = {"kind": {"type": "cross_entropy"}, "size": {"type": "MSELoss"}}
DIFFERENT = r"warning: the losses kind, size are averaged over different numbers"


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(
    ("loss", "steps", "warns"),
    [(UNEQUAL, 2, True), (UNEQUAL, 1, False), (PROPORTIONAL, 2, False), (OTHER_SUM, 2, False)],
)
def test_gradients_of_losses_with_different_counts_are_not_called_exact(
    fit: Fit,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    loss: Any,
    steps: int,
    warns: bool,
    on_device: bool,
) -> None:
    if on_device:
        keep_on_device(monkeypatch)
    with temporarily(LOSSES, Distances):
        on_two_targets(fit, f"trainer.accumulate_steps={steps}", "--lr=1e-9", loss=loss, batch_size=8 // steps)
    assert len(re.findall(DIFFERENT, capsys.readouterr().err)) == warns


@pytest.mark.parametrize(("loss", "exact"), [(UNEQUAL, False), (PROPORTIONAL, True), (OTHER_SUM, True)])
def test_gradients_of_losses_by_name_are_those_of_a_large_batch(fit: Fit, loss: Any, exact: bool) -> None:
    """But not if their counts are in different proportions, of which a warning tells."""
    with temporarily(LOSSES, Distances):
        one, two = (
            on_two_targets(
                fit, "--lr=0.01", "trainer.epochs=1", f"trainer.accumulate_steps={n}", loss=loss, batch_size=8 // n
            )
            for n in (1, 2)
        )
    weights = [state(each.run_dir)["model"]["kind.weight"] for each in (one, two)]
    assert torch.allclose(weights[0], weights[1], rtol=1e-4, atol=1e-6) is exact


class Compiling(Trainer):
    """Compiles the loss, alone or with the model."""

    together = False

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        torch.compiler.reset()
        if self.together:
            self.forward_and_loss = torch.compile(self.forward_and_loss, backend="eager")  # type: ignore[method-assign]
        else:
            self.criterion = torch.compile(self.criterion, backend="eager")

    def forward_and_loss(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.model(inputs)
        return outputs, self.criterion(outputs, targets)

    def train_step(self, batch: Any) -> StepResult:
        outputs, loss = self.forward_and_loss(*batch)
        self.backward(loss)
        return StepResult(loss, outputs, batch[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.parametrize(("steps", "together"), [(1, True), (3, False)])
def test_a_compiled_loss_is_averaged_as_any_other(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, steps: int, together: bool
) -> None:
    monkeypatch.setattr(Compiling, "together", together)
    loss = {"type": "CrossEntropyLoss", "args": {"weight": [0.2, 1.0, 5.0], "ignore_index": 1}}
    overrides = (f"trainer.accumulate_steps={steps}", "data_loader.args.num_samples=53")  # the last batch has 3 samples
    with temporarily(TRAINERS, Compiling):
        runs = [fit(*overrides, f"trainer.type={name}", loss=loss) for name in ("Trainer", "Compiling")]
    for expected, values in zip(*(run.history for run in runs), strict=True):
        assert values["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert values["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-5)


class Doubling(Trainer):
    def eval_step(self, batch: Any) -> StepResult:
        result = super().eval_step(batch)
        return result._replace(loss=2 * result.loss)


def test_a_step_may_return_another_loss_than_the_sum_of_those_by_name(fit: Fit) -> None:
    losses = {"one": "cross_entropy", "other": "cross_entropy"}
    with temporarily(TRAINERS, Doubling):
        plain, doubled = (
            fit("trainer.epochs=1", f"trainer.type={name}", loss=losses).last for name in ("Trainer", "Doubling")
        )
    assert doubled["val_loss"] == pytest.approx(2 * plain["val_loss"])


class Wrapping(Trainer):
    """Passes the loss through a function that hides its parts."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        loss = self.criterion
        self.criterion = lambda *args: loss(*args)


def test_a_sum_of_losses_whose_parts_are_hidden_is_averaged_as_it_is(fit: Fit) -> None:
    part = {"type": "CrossEntropyLoss", "args": {"ignore_index": 1}, "weight": 0.5}
    with temporarily(TRAINERS, Wrapping):
        runs = [
            fit("trainer.epochs=1", f"trainer.type={name}", loss={"part": part, "whole": "cross_entropy"})
            for name in ("Trainer", "Wrapping")
        ]
    expected, values = (run.history[-1]["val_loss"] for run in runs)
    assert values == pytest.approx(expected, rel=0.1)  # a compromise between the two counts, but not 0
