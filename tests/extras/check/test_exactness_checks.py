"""``--check`` notes what a trainer remembers or draws from, unless its checkpoints have it."""

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from base.base_data_loader import BaseDataLoader
from base.data import TensorSource
from base.experiment import Experiment
from base.metric import StepResult
from extras.check import preflight
from model.two_layer_net import TwoLayerNet
from tests.helpers import temporarily
from trainer.trainer import Trainer
from utils.config import load_config
from utils.errors import UserError
from utils.registry import DATA_LOADERS, MODELS, TRAINERS
from utils.schema import TrainerConfig


class Recalling(Trainer):
    """Fills buffers and draws from generators of its own.

    saved: what stateful() returns: nothing of it, all of it, or a part without load_state_dict().
    """

    def __init__(self, experiment: Experiment, settings: TrainerConfig, *, saved: str) -> None:
        super().__init__(experiment, settings)
        self.saved = saved
        self.recent = deque[Tensor](maxlen=5000)
        self.counts = np.zeros(3)
        self.number = 0
        self.python, self.numpy = random.Random(0), np.random.default_rng(0)
        self.torch = torch.Generator().manual_seed(0)
        self.unused, self.kind = random.Random(0), nn.Linear

    def train_step(self, batch: Any) -> StepResult:
        self.recent.extend(batch[0])
        self.number += self.python.randrange(1, 3)
        self.counts += self.numpy.random() + float(torch.rand((), generator=self.torch))
        return super().train_step(batch)

    def stateful(self) -> dict[str, Any]:
        own: dict[str, dict[str, Any]] = {"nothing": {}, "all": {"own": _Own(self)}, "a deque": {"recent": self.recent}}
        return {**super().stateful(), **own[self.saved]}


class _Own:
    def __init__(self, trainer: Recalling) -> None:
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        trainer = self.trainer
        numpy: dict[str, Any] = dict(trainer.numpy.bit_generator.state)
        return {
            "recent": list(trainer.recent),
            "counts": trainer.counts,
            "number": trainer.number,
            "python": trainer.python.getstate(),
            "numpy": {**numpy, "state": {name: str(number) for name, number in numpy["state"].items()}},
            "torch": trainer.torch.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        trainer = self.trainer
        trainer.recent = deque(state["recent"], maxlen=5000)
        trainer.counts, trainer.number = np.asarray(state["counts"]), state["number"]
        version, words, gauss = state["python"]
        trainer.python.setstate((version, tuple(words), gauss))
        numpy = state["numpy"]
        numbers = {name: int(number) for name, number in numpy["state"].items()}
        trainer.numpy.bit_generator.state = {**numpy, "state": numbers}
        trainer.torch.set_state(state["torch"])


@pytest.fixture
def check(write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    def run(saved: str) -> str:
        config = write_config(trainer={"type": "Recalling", "args": {"saved": saved}})
        with temporarily(TRAINERS, Recalling):
            preflight(load_config(config))
        return capsys.readouterr().out

    return run


def test_buffers_and_generators_in_no_checkpoint_are_noted(check: Callable[[str], str]) -> None:
    assert "would not have: recent, counts, number, python, numpy, torch\n" in check("nothing")


def test_buffers_and_generators_in_checkpoints_are_not_noted(check: Callable[[str], str]) -> None:
    assert "exactness" not in check("all")


def test_a_part_that_cannot_be_loaded_is_refused_as_in_training(check: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match=r"recent, of type .* has no load_state_dict\(\)"):
        check("a deque")


class Memory:
    """Like a replay buffer, in a plain class."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


class Forgetful(Memory):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Broken(Memory):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["before"]


class Holder:
    """Hides its memory from a look at the trainer's attributes."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.steps = 0


class Replaying(Trainer):
    """Its loss depends on what it has seen so far."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig, *, kind: str) -> None:
        super().__init__(experiment, settings)
        self.kind = kind
        self.holder = Holder({"forgetful": Forgetful, "broken": Broken}.get(kind, Memory)())

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.model(inputs)
        loss = self.criterion(outputs, targets)
        if self.kind == "short":
            loss = loss * torch.ones(12)[self.progress.steps]  # for the steps of the run, which --check exceeds
        if self.kind == "used up" and self.progress.steps < self.holder.steps:
            raise IndexError("no more rows")
        self.holder.steps = self.progress.steps
        self.backward(loss * (1 + 0.1 * len(self.holder.memory.seen)))
        self.holder.memory.seen.append(1.0)
        return StepResult(loss, outputs, targets)

    def stateful(self) -> dict[str, Any]:
        kept = {} if self.kind in ("left out", "used up") else {"memory": self.holder.memory}
        return {**super().stateful(), **kept}


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("sound", ""),
        ("short", ""),
        ("left out", "3 steps, repeated from the restored state, end with a different model"),
        ("used up", "3 steps, repeated from the restored state, fail: TrainingError: training failed after step 13"),
        ("forgetful", "3 steps, repeated from the restored state, end with a different model, memory"),
        ("broken", "a run cannot resume: the part memory in the state before does not match"),
    ],
)
def test_state_that_attributes_do_not_show_is_found_by_repeating_steps(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], kind: str, says: str
) -> None:
    config = write_config(trainer={"type": "Replaying", "args": {"kind": kind}})
    with temporarily(TRAINERS, Replaying):
        status = preflight(load_config(config))
    printed = " ".join(capsys.readouterr().out.split())
    assert says in printed
    assert ("exactness" in printed) is bool(says)
    assert status == (1 if kind == "broken" else 0)


class Caching(Trainer):
    def begin_epoch(self, epoch: int) -> None:
        if epoch == 1:
            self.cache = torch.ones(3)


class Needing(Caching):
    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        self.cache.add_(0)


class Collecting(Trainer):
    """Fills what it has and the data in the first epoch, as with a rollout and its labels."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.rollout, self.kept = nn.BatchNorm1d(3), torch.zeros(3)
        experiment.data.labels = torch.zeros(3)  # type: ignore[attr-defined]

    def begin_epoch(self, epoch: int) -> None:
        if epoch == 1:
            labels: Tensor = self.experiment.data.labels  # type: ignore[attr-defined]
            for tensor in (self.rollout.get_buffer("running_mean"), self.kept, labels):
                tensor += 1


class Chaining(Trainer):
    weight = 1.0

    def begin_epoch(self, epoch: int) -> None:
        self.weight *= 0.9


class Following(Trainer):
    def begin_epoch(self, epoch: int) -> None:
        self.weight = 0.9**epoch
        self.noise = torch.rand(3)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Caching, "values that a resumed run would not have: cache"),
        (Needing, "'Needing' object has no attribute 'cache'"),
        (Collecting, "values that a resumed run would not have: rollout, kept, data_loader.labels"),
        (Chaining, "values that a resumed run would not have: weight"),
        (Following, ""),
    ],
)
def test_what_begin_epoch_sets_in_earlier_epochs_is_noted(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], kind: type[Trainer], says: str
) -> None:
    with temporarily(TRAINERS, kind):
        preflight(load_config(write_config(trainer={"type": kind.__name__})))
    shown = " ".join(capsys.readouterr().out.split())
    assert says in shown
    assert ("exactness" in shown) is bool(says)


class Rollouts(BaseDataLoader):
    """Samples that a trainer computes."""

    def __init__(self, *, batch_size: int = 10) -> None:
        super().__init__(batch_size=batch_size, device_cache=False)
        self.inputs = torch.zeros(40, 6)

    def training_data(self, *, augment: bool) -> TensorSource:
        return TensorSource(self.inputs, torch.arange(40) % 3)

    def test_data(self) -> TensorSource:
        return self.training_data(augment=False)


class Acting(Trainer):
    """Computes a scale and its samples from the weights. saved: whether checkpoints have them."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig, *, saved: bool) -> None:
        super().__init__(experiment, settings)
        self.saved, self.kept = saved, nn.Module()
        self.kept.register_buffer("inputs", experiment.data.inputs)  # type: ignore[attr-defined]
        self.kept.register_buffer("scale", torch.zeros(()))
        self.scale = torch.zeros(())

    def begin_epoch(self, epoch: int) -> None:
        weights = next(self.experiment.model.parameters()).detach().flatten()
        self.kept.get_buffer("inputs").copy_(weights[:6] + torch.randn(40, 6))
        self.scale = self.kept.get_buffer("scale").copy_(weights.sum()) if self.saved else weights.sum()

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), **({"kept": self.kept} if self.saved else {})}


@pytest.mark.parametrize("saved", [False, True])
def test_what_begin_epoch_computes_from_the_weights_is_noted(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], saved: bool
) -> None:
    trainer = {"type": "Acting", "args": {"saved": saved}}
    with temporarily(TRAINERS, Acting), temporarily(DATA_LOADERS, Rollouts):
        preflight(load_config(write_config(data_loader={"type": "Rollouts"}, trainer=trainer)))
    shown = " ".join(capsys.readouterr().out.split())
    assert ("values that a resumed run would not have: kept, scale" in shown) is not saved
    assert ("the same samples, loaded twice with the same seed, differ" in shown) is not saved
    assert ("exactness" in shown) is not saved


class Tally:
    """A number of epochs. Keeps the tensor that it loads."""

    def __init__(self) -> None:
        self.epochs = torch.zeros(())

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"]


class Tallying(Trainer):
    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.tally = Tally()

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "tally": self.tally}

    def begin_epoch(self, epoch: int) -> None:
        self.tally.epochs += 1


def test_what_begin_epoch_changes_in_a_part_is_not_noted(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with temporarily(TRAINERS, Tallying):
        preflight(load_config(write_config(trainer={"type": "Tallying"})))
    assert "exactness" not in capsys.readouterr().out


class Cooling(TwoLayerNet):
    """Scales its outputs by a number that soon stays the same."""

    def __init__(self) -> None:
        super().__init__(in_features=6, hidden_features=4, out_features=3)
        self.temperature = 1.0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.temperature = max(0.5, 0.7 * self.temperature)
        return super().forward(x) / self.temperature


class SavedCooling(Cooling):
    def get_extra_state(self) -> dict[str, float]:
        return {"temperature": self.temperature}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.temperature = state["temperature"]


@pytest.mark.parametrize("kind", ["Cooling", "SavedCooling"])
def test_a_number_in_the_model_that_no_checkpoint_has_is_noted(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    with temporarily(MODELS, Cooling, SavedCooling):
        preflight(load_config(write_config(model={"type": kind})))
    shown = capsys.readouterr().out
    noted = "values that a resumed run would not have: model.temperature\n" in shown
    assert noted == (kind == "Cooling"), shown
    assert ("exactness" in shown) == noted


class World(nn.Module):
    """An environment whose state is a plain tensor, or a buffer."""

    def __init__(self, *, buffer: bool) -> None:
        super().__init__()
        self.cells: Tensor
        if buffer:
            self.register_buffer("cells", torch.zeros(3))
        else:
            self.cells = torch.zeros(3)


class Exploring(Trainer):
    """Acts in an environment in each step, or at the start of an epoch."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig, *, buffer: bool, when: str) -> None:
        super().__init__(experiment, settings)
        self.world, self.when = World(buffer=buffer), when

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "world": self.world}

    def begin_epoch(self, epoch: int) -> None:
        self.world.cells += self.when == "epoch"

    def train_step(self, batch: Any) -> StepResult:
        self.world.cells += self.when == "step"
        return super().train_step(batch)


@pytest.mark.parametrize("when", ["epoch", "step"])
@pytest.mark.parametrize("buffer", [True, False])
def test_a_tensor_of_a_part_that_is_no_buffer_is_noted(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], buffer: bool, when: str
) -> None:
    with temporarily(TRAINERS, Exploring):
        preflight(load_config(write_config(trainer={"type": "Exploring", "args": {"buffer": buffer, "when": when}})))
    shown = capsys.readouterr().out
    noted = "world.cells\n" in shown
    assert noted == (not buffer), shown


class Codebook(TwoLayerNet):
    """With means of its hidden values that it learns in forward: only in training, or always."""

    def __init__(self, always: bool) -> None:
        super().__init__(in_features=6, hidden_features=4, out_features=3)
        self.always = always
        self.register_buffer("means", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x)
        if self.training or self.always:
            self.means.lerp_(outputs.detach().mean(0), 0.1)  # type: ignore[operator]
        return outputs


@pytest.mark.parametrize("always", [True, False])
def test_a_model_that_learns_from_validation_data_is_noted(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], always: bool
) -> None:
    with temporarily(MODELS, Codebook):
        preflight(load_config(write_config(model={"type": "Codebook", "args": {"always": always}})))
    assert ("a validation changes model.means\n" in capsys.readouterr().out) == always


class Teaches(Trainer):
    """Evaluates a network beside the model, whose BatchNorm learns in training mode."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.teacher = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "teacher": self.teacher}

    def eval_step(self, batch: Any) -> StepResult:
        outputs = self.teacher(batch[0])
        return StepResult(self.criterion(outputs, batch[1]), outputs, batch[1])


def test_networks_of_a_trainer_are_checked_in_evaluation_mode(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with temporarily(TRAINERS, Teaches):
        assert preflight(load_config(write_config(trainer={"type": "Teaches"}))) == 0
    assert "a validation changes" not in capsys.readouterr().out
