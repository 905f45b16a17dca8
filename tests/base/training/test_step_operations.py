"""What a step launches on an accelerator: hardly more than the same step written by hand.

The host of a GPU needs 5 to 11 us for each operation, which limits small models. They are counted on the CPU, where the
losses are made to stay on the device.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from base.base_data_loader import BaseDataLoader
from base.base_model import BaseModel
from base.base_trainer import BaseTrainer
from base.data.batches import StepBatches
from base.data.sources import TensorSource
from tests.helpers import Fit, keep_on_device, temporarily
from utils.registry import DATA_LOADERS, MODELS

Batch = tuple[Tensor, Tensor]

NO_KERNEL = ("view", "_unsafe_view", "detach", "t", "transpose", "expand", "unsqueeze", "empty_like", "new_empty")
"""Operations without any arithmetic."""


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that would launch kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **kwargs or {})

    def kernels(self) -> Counter[str]:
        others = (name for name in self.counts if name in NO_KERNEL or name.startswith("_record_function"))
        return self.counts - Counter({name: self.counts[name] for name in others})


class Images(BaseDataLoader):
    """Images with a number, a class, or a class of each pixel."""

    def __init__(self, *, targets: str, **batches: Any) -> None:
        super().__init__(**batches)
        self.targets = targets

    def training_data(self, *, augment: bool) -> TensorSource:
        classes = torch.arange(32) % 3
        targets = {"numbers": torch.randn(32, 3), "classes": classes, "pixels": classes.view(-1, 1, 1).repeat(1, 4, 4)}
        return TensorSource(torch.randn(32, 3, 4, 4), targets[self.targets])

    def test_data(self) -> TensorSource:
        return self.training_data(augment=False)


class Convolution(BaseModel):
    """(B, 3, H, W) -> (B, 3, H, W) or (B, 3)."""

    def __init__(self, *, pixels: bool) -> None:
        super().__init__()
        self.pixels = pixels
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3))

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.layers(images)
        return outputs if self.pixels else outputs.mean((2, 3))


def by_hand(model: nn.Module, loss: Callable[..., Tensor], batches: list[Batch], *, clip: bool) -> Counter[str]:
    """The kernels of a step, as dev/bench/jobs.py takes it."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, fused=True)
    for _ in range(2):  # the first creates the momentum
        operations = Operations()
        with operations:
            optimizer.zero_grad()
            for inputs, targets in batches:
                value = loss(model(inputs), targets)
                (value / len(batches) if len(batches) > 1 else value).backward()  # type: ignore[no-untyped-call]
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return operations.kernels()


WEIGHTS = [0.2, 1.0, 5.0]
WEIGHTED = {"type": "cross_entropy", "args": {"weight": WEIGHTS}}


@pytest.mark.parametrize(
    ("targets", "keys", "overrides", "more"),
    [
        ("numbers", {"loss": "mse_loss"}, [], 0),
        ("numbers", {"loss": "mse_loss"}, ["trainer.clip_grad_norm=1"], 0),
        ("classes", {}, [], 3),  # the count at least 1e-12, the division by it, and the division's gradient
        ("classes", {"loss": WEIGHTED}, [], 3),
        ("pixels", {}, [], 6),  # also the targets that count, their sum, and the sum of the losses in a fixed order
        ("classes", {"metrics": ["accuracy"]}, [], 3 + 3),  # the largest, whether it is right, their sum
        # each micro-batch also adds its parts of the loss and of the count (6), but by hand it is divided (3); at the
        # end, the sum of the counts is applied to the loss and to all gradients at once (5)
        ("classes", {}, ["trainer.accumulate_steps=2"], 2 * (3 + 6 - 3) + 5),
        ("numbers", {"loss": "mse_loss"}, ['trainer.ema={"decay": 0.9}'], 2),  # floats and integers, each at once
    ],
)
def test_a_step_launches_hardly_more_than_by_hand(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, targets: str, keys: Any, overrides: list[str], more: int
) -> None:
    keep_on_device(monkeypatch)
    step = BaseTrainer.optimizer_step
    counted: list[Counter[str]] = []
    batches: list[Batch] = []

    def watched(self: BaseTrainer, loaded: StepBatches) -> Any:
        loaded.micro_batches = list(loaded.micro_batches)
        batches[:] = [micro_batch.data for micro_batch in loaded.micro_batches]
        operations = Operations()
        with operations:
            loss = step(self, loaded)
        counted.append(operations.kernels())
        return loss

    monkeypatch.setattr(BaseTrainer, "optimizer_step", watched)
    given: dict[str, Any] = {
        "loss": "cross_entropy",
        "metrics": [],
        "model": {"type": "Convolution", "args": {"pixels": targets == "pixels"}},
        "data_loader": {"type": "Images", "args": {"targets": targets, "batch_size": 4}},
        "optimizer": {"type": "SGD", "args": {"lr": 0.01, "momentum": 0.9}},
    }
    with temporarily(MODELS, Convolution), temporarily(DATA_LOADERS, Images):
        result = fit("trainer.epochs=1", "trainer.log_every_steps=100", *overrides, **{**given, **keys})
    loss: Any = F.mse_loss if targets == "numbers" else F.cross_entropy
    if "loss" in keys and keys["loss"] == WEIGHTED:
        loss = functools.partial(loss, weight=torch.tensor(WEIGHTS))
    expected = by_hand(result.model, loss, batches, clip="trainer.clip_grad_norm=1" in overrides)
    found = counted[-2]
    assert found.total() - expected.total() <= more, (found - expected, expected - found)
