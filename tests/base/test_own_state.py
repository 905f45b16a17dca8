"""What users' own models, trainers and data loaders keep, and what would be lost without a word."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import train
from base.load_run import load_run
from data_loader.random_tensor import RandomTensorLoader
from tests.conftest import load_script
from tests.helpers import temporarily
from trainer.trainer import Trainer
from utils.errors import CheckpointError, ConfigError, DataError
from utils.registry import DATA_LOADERS, MODELS, TRAINERS

Fit = Callable[..., train.Result]


class Adapted(nn.Module):
    """A base and an adapter, of which alone a state is returned: (B, 6) -> (B, 3)."""

    def __init__(self, *, frozen: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base, self.adapter = nn.Linear(6, 6), nn.Linear(6, 3)
        self.base.requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.adapter(self.base(x))
        return outputs

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if "base." not in name}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        super().load_state_dict(state_dict, strict=False, assign=assign)  # without a result


class Counting(Trainer):
    parts = ("count",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.count = nn.BatchNorm1d(1)

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), **dict.fromkeys(self.parts, self.count)}


class Pool(Dataset[Any]):
    def __init__(self, size: int) -> None:
        self.rows = [(torch.rand(6), index % 3) for index in range(size)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class Growing(RandomTensorLoader):
    """With another number of samples from the third epoch on."""

    later = 0

    def training_data(self, *, augment: bool) -> Any:
        self.pool = Pool(40)
        return self.pool

    def begin_epoch(self, epoch: int) -> None:
        if epoch == 3:
            self.pool.rows = Pool(self.later).rows


class WithoutAugment(RandomTensorLoader):
    def training_data(self) -> Any:  # type: ignore[override]
        return super().training_data(augment=False)


class OwnTest(RandomTensorLoader):
    def test(self) -> Any:
        return [1, 2]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with (
        temporarily(MODELS, Adapted),
        temporarily(TRAINERS, Counting),
        temporarily(DATA_LOADERS, Growing, WithoutAugment, OwnTest),
    ):
        yield


def test_a_checkpoint_of_adapters_alone_is_resumed_tested_and_loaded(fit: Fit) -> None:
    run = fit("trainer.epochs=1", model="Adapted").run_dir
    train.main(["-r", run, "trainer.epochs=2"])
    load_script("test").main(["-r", str(run)])
    assert isinstance(load_run(run).model, Adapted)


def test_a_teacher_that_is_gone_is_named_at_the_trainer(fit: Fit) -> None:
    class Taught(Trainer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.teacher = load_run("saved/nothing")

    with temporarily(TRAINERS, Taught), pytest.raises(CheckpointError, match=r"trainer: .*nothing: no such run folder"):
        fit("trainer.type=Taught")


def test_trained_weights_that_no_checkpoint_would_have_are_refused(fit: Fit) -> None:
    trained = {"type": "Adapted", "args": {"frozen": False}}
    with pytest.raises(ConfigError, match=r"Adapted.state_dict\(\) leaves out base.weight, base.bias, so a checkpoint"):
        fit(model=trained)
    fit(model=trained, trainer={"freeze": [{"params": ["base.*"]}]})


def test_a_part_that_a_trainer_no_longer_returns_is_refused(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit("trainer.type=Counting").run_dir
    monkeypatch.setattr(Counting, "parts", ())
    with pytest.raises(CheckpointError, match=r"count: stateful\(\) of the trainer no longer returns it"):
        train.main(["-r", run, "trainer.epochs=3"])
    monkeypatch.setattr(Counting, "parts", ("count", "other"))
    with pytest.raises(CheckpointError, match=r"has no part other, which stateful\(\) of the trainer returns"):
        load_script("test").main(["-r", str(run)])


@pytest.mark.parametrize("later", [80, 20])
def test_a_data_set_of_another_length_is_refused(fit: Fit, monkeypatch: pytest.MonkeyPatch, later: int) -> None:
    monkeypatch.setattr(Growing, "later", later)
    says = f"a data set of Growing had 40 samples and now has {later}; its length must stay the same"
    with pytest.raises(DataError, match=says):
        fit("data_loader.type=Growing", "data_loader.args.validation_split=0", "trainer.epochs=4")


@pytest.mark.parametrize(
    ("loader", "says"),
    [
        (
            "WithoutAugment",
            r"WithoutAugment.training_data should be \(self, \*, augment\), as in BaseDataLoader",
        ),
        ("OwnTest", "OwnTest.test should return a Batches, but returns list"),
    ],
)
def test_a_method_of_a_data_loader_for_something_else(fit: Fit, loader: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_script("test").main(["-r", str(fit(f"data_loader.type={loader}").run_dir)])
