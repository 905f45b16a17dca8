"""What users' own models, trainers and data loaders keep, and what would be lost without a word."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import train
from base.build import build_experiment, build_trainer
from base.load_run import load_run, load_trainer
from data_loader.random_tensor import RandomTensorLoader
from tests.conftest import load_script
from tests.helpers import Fit, registering, same, state, temporarily
from trainer.trainer import Trainer
from utils.config import load_config
from utils.errors import CheckpointError, ConfigError, DataError, UserError
from utils.random import seed_generators
from utils.registry import DATA_LOADERS, MODELS, TRAINERS


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


_registered = registering((MODELS, Adapted), (TRAINERS, Counting), (DATA_LOADERS, Growing, WithoutAugment, OwnTest))


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

    with temporarily(TRAINERS, Taught), pytest.raises(CheckpointError, match=r"trainer.args: .*nothing: no such run"):
        fit("trainer.type=Taught")


class OneOfEachSample(Trainer):
    """Has a part before the others, of the size of the data."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.bank = nn.Embedding(self.experiment.data.num_samples, 1)  # type: ignore[attr-defined]

    def stateful(self) -> dict[str, Any]:
        return {"bank": self.bank, **super().stateful()}


class Lengthened(RandomTensorLoader):
    more = 0

    def __init__(self, **args: Any) -> None:
        super().__init__(**args)
        self.num_samples += self.more


def test_data_of_another_size_is_named_before_a_part_that_does_not_fit_it(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    with temporarily(TRAINERS, OneOfEachSample), temporarily(DATA_LOADERS, Lengthened):
        run = fit("data_loader.type=Lengthened", "trainer.type=OneOfEachSample").run_dir
        monkeypatch.setattr(Lengthened, "more", 10)
        with pytest.raises(DataError, match="the number of samples for training was 40, and is now 50"):
            train.main(["-r", run, "trainer.epochs=3"])


class WithTarget(Trainer):
    """Matches the outputs of a random net, which it creates itself and no checkpoint has."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.target = nn.Linear(6, 3).to(self.runtime.device).requires_grad_(False)


def test_modules_of_a_trainers_constructor_are_the_same_in_tests_and_in_all_processes(fit: Fit) -> None:
    with temporarily(TRAINERS, WithTarget):
        run = fit("trainer.type=WithTarget").run_dir
        loaded = load_config(run / "config.json")
        experiment = build_experiment(loaded)
        targets = [load_trainer(run).trainer.target]  # type: ignore[attr-defined]
        for rank in range(2):
            seed_generators(loaded.config.seed, "training", rank, 2)  # as before a trainer of two processes is built
            targets.append(build_trainer(loaded, experiment).target)  # type: ignore[attr-defined]
        assert all(same(each.state_dict(), targets[0].state_dict()) for each in targets)
    assert same(state(run)["model"], state(fit().run_dir)["model"]), "it draws nothing from the training"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            ValueError("no width"),
            r"36:\d+: trainer.args: Failing cannot be built: no width\n  .*: raise error\n +\d+ \|",
        ),
        (AttributeError("'Net' object has no attribute 'fc'"), r"has no attribute 'fc'\n  .*: raise error\n +\d+ \|"),
        (DataError("data_loader.args.fold: none"), r"trainer.args: data_loader.args.fold: none"),
    ],
)
def test_an_error_in_a_trainers_constructor_is_reported_at_its_arguments(fit: Fit, error: Exception, says: str) -> None:
    class Failing(Trainer):
        def __init__(self, *args: Any, width: int = 3) -> None:
            super().__init__(*args)
            raise error

    with temporarily(TRAINERS, Failing), pytest.raises(UserError, match=says):
        fit(trainer={"type": "Failing", "args": {"width": 2}})


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
        ("OwnTest", "OwnTest.test returns list; expected Batches"),
    ],
)
def test_a_method_of_a_data_loader_for_something_else(fit: Fit, loader: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_script("test").main(["-r", str(fit(f"data_loader.type={loader}").run_dir)])
