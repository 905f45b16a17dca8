"""What a run tries at each start, for its checks and for TensorBoard, leaves nothing that a checkpoint would hold."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import train
from base.experiment import Experiment
from base.metric import StepResult
from tests.helpers import Fit, lines, needs_extra, registering, same, state, temporarily
from trainer.trainer import Trainer
from utils.registry import MODELS, TRAINERS
from utils.schema import TrainerConfig
from utils.tree import same as same_nest

# in the training data, a last batch of one sample
IMAGES = {"num_samples": 33, "input_shape": [1, 4, 4], "num_classes": 3, "batch_size": 8, "validation_split": 8}


class Normed(nn.Module):
    """(B, 1, 4, 4) -> (B, 3), with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.calls, self.out = nn.BatchNorm2d(1), Calls(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.out(self.calls(self.norm(x)).flatten(1))
        return outputs


class Calls(nn.Module):
    """Counts its calls in an extra state."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x * (1 + self.calls / 100)

    def get_extra_state(self) -> Any:
        return self.calls

    def set_extra_state(self, state: Any) -> None:
        self.calls = state


class Queue:
    """Outputs of all evaluations, as a state of its own."""

    def __init__(self) -> None:
        self.values = np.zeros(0, dtype=np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state["values"].numpy()  # a tensor, as from a checkpoint


class Keeping(Trainer):
    """With a second net, a counter in a module and a queue, which evaluation changes."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.momentum, self.queue = Normed(), Queue()
        self.counter = nn.Module()
        self.counter.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.seen: list[bool] = []

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "momentum": self.momentum, "queue": self.queue, "counter": self.counter}

    def eval_step(self, batch: Any) -> StepResult:
        self.counter.steps.add_(1)  # type: ignore[operator]
        self.seen.append(self.momentum.training)
        result = super().eval_step(batch)
        self.queue.values = np.append(self.queue.values, self.momentum(batch[0])[0, :1].numpy())
        return result


_registered = registering((MODELS, Normed), (TRAINERS, Keeping))


@needs_extra("tensorboard")
@pytest.mark.usefixtures("tensorboard")
def test_what_evaluation_changes_is_the_same_in_a_resumed_run(fit: Fit) -> None:
    keys: dict[str, Any] = {
        "data_loader": {"type": "RandomTensorLoader", "args": IMAGES},
        "model": "Normed",
    }
    whole = fit("trainer.type=Keeping", "trainer.epochs=4", **keys).run_dir
    resumed = fit("trainer.type=Keeping", "trainer.epochs=1", **keys).run_dir
    for epochs in (2, 4):
        train.main(["-r", resumed, f"trainer.epochs={epochs}"])
    for part in ("model", "momentum", "queue", "counter"):
        assert same(state(whole)[part], state(resumed)[part]), part
    assert int(state(whole)["counter"]["steps"]) == 4  # one batch of validation in each epoch
    assert lines(whole)[-1]["loss"] == lines(resumed)[-1]["loss"]


def test_modules_that_a_trainer_adds_are_in_evaluation_mode_in_a_validation(fit: Fit) -> None:
    made: list[Keeping] = []

    class Watched(Keeping):
        def begin_epoch(self, epoch: int) -> None:
            made.append(self)
            self.seen.clear()

    with temporarily(TRAINERS, Watched):
        fit("trainer.type=Watched", data_loader={"type": "RandomTensorLoader", "args": IMAGES}, model="Normed")
    assert made[-1].seen == [False]
    assert made[-1].momentum.training


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ([torch.tensor(torch.nan)], [torch.tensor(torch.nan)], True),
        ({"a": 1}, {"a": 1.0}, False),
        ((1, "b"), (1, "b"), True),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), False),
        (torch.zeros(2), torch.zeros(1), False),
        ([1], [1, 2], False),
        ({"a": 1}, {"b": 1}, False),
    ],
)
def test_nests_are_compared_bit_for_bit(one: Any, other: Any, equal: bool) -> None:
    assert same_nest(one, other) is equal


class Replacing(Normed):
    """With buffers that a forward pass in training mode creates, or replaces by others."""

    center: Tensor | None
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", None)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x)
        if self.training:
            self.center, self.count = outputs.detach().mean(0), self.count + 0.5
        return outputs


def test_buffers_that_a_tried_step_creates_or_replaces_are_as_before(fit: Fit) -> None:
    untouched = pytest.importorskip("extras.untouched").untouched

    class Trying(Trainer):
        def begin_epoch(self, epoch: int) -> None:
            model = self.experiment.model
            before = model.count
            with untouched(self, "test"):
                model.train()
                model(torch.randn(4, 1, 4, 4))
                assert model.center is not None
            if not self.progress.steps:
                assert model.center is None
            assert model.count is before

    with temporarily(MODELS, Replacing), temporarily(TRAINERS, Trying):
        data = {"type": "RandomTensorLoader", "args": {**IMAGES, "num_samples": 40}}
        assert fit("trainer.type=Trying", data_loader=data, model="Replacing").epochs == 2
