"""``--check`` takes what is sound for sound, of whatever kind; and notes what breaks exactness in silence."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import Dataset

import train
from base.base_data_loader import BaseDataLoader
from base.base_model import count_parameters
from base.data import Batches
from base.experiment import Experiment
from base.losses import build_loss
from base.metric import StepResult
from base.training.observer import Observer
from extras.check import preflight
from extras.check.data_checks import check_batch
from extras.layers import Trace, traced
from tests.averaged import AveragedTrainer
from tests.configs import sound
from tests.conftest import load_script
from tests.helpers import temporarily
from trainer.trainer import Trainer
from utils.config import load_config
from utils.errors import ConfigError
from utils.registry import DATA_LOADERS, LOSSES, MODELS, TRAINERS
from utils.schema import TrainerConfig

Check = Callable[..., tuple[int, str]]


class Nested(nn.Module):
    """8 numbers to logits in a dict, a tuple or a list; with a state of its own, and a buffer."""

    calls: Tensor

    def __init__(self, kind: str = "dict", moving: bool = False, normed: bool = False) -> None:
        super().__init__()
        self.kind, self.moving = kind, moving
        self.linear = nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8) if normed else nn.Identity()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Any) -> Any:
        if self.moving and self.training:
            self.calls = self.calls + 1
        x = x["x"] if isinstance(x, dict) else x
        y = self.linear(self.norm(x))
        return {"dict": {"logits": y, "more": [y.sum()]}, "tuple": (y, y.sum(1)), "list": [y]}.get(self.kind, y)

    def get_extra_state(self) -> dict[str, Any]:
        return {"kind": self.kind, "table": {"rows": torch.zeros(2)}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        assert state["kind"] == self.kind


class Pairs(BaseDataLoader):
    """40 samples, the inputs and targets in a nest; with a generator of its own, if it is asked for."""

    def __init__(
        self,
        *,
        batch_size: int = 10,
        changing: bool = False,
        nested: bool = True,
        samples: int = 40,
        constant: bool = False,
    ) -> None:
        super().__init__(batch_size=batch_size, validation_split=9)
        self.changing, self.nested, self.samples, self.constant = changing, nested, samples, constant

    def training_data(self, *, augment: bool) -> Dataset[Any]:
        return _Pairs(self)

    def test_data(self) -> Dataset[Any]:
        return _Pairs(self)


class _Pairs(Dataset[Any]):
    def __init__(self, loader: Pairs) -> None:
        self.loader = loader
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(loader.samples, 8, generator=generator) * (not loader.constant)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        x, label = self.inputs[index], index % 3
        if self.loader.changing:
            x += 0.1  # a view
        return ({"x": x}, {"label": label, "name": f"sample {index}"}) if self.loader.nested else (x, label)


def nested_loss(outputs: Any, targets: Any) -> Tensor:
    """Cross entropy of whatever it gets."""
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return F.cross_entropy(logits, targets["label"])


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of (B, T, C), under a name of its own."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


class Tokens(nn.Module):
    """(B, 8) tokens to (B, 8, 89), with large initial weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(89, 16), nn.Linear(16, 89)
        nn.init.normal_(self.linear.weight, std=4)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(self.table(x))
        return outputs


class Text(BaseDataLoader):
    """Tokens, and the next ones as targets."""

    def training_data(self, *, augment: bool) -> Dataset[Any]:
        tokens = torch.randint(89, (40, 9), generator=torch.Generator().manual_seed(0))
        return torch.utils.data.TensorDataset(tokens[:, :-1], tokens[:, 1:])

    def test_data(self) -> Dataset[Any]:
        return self.training_data(augment=False)


class MovingLoss(nn.Module):
    """Cross entropy that counts its calls in a buffer."""

    reduction = "mean"
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.count += 1
        return F.cross_entropy(outputs, targets)


class Keeping(Trainer):
    """Uses what training gives it, and keeps a second network and a constant."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.critic = nn.Linear(2, 2)
        self.still = torch.ones(2)

    def train_step(self, batch: Any) -> StepResult:
        assert self.training.optimizer.param_groups[0]["lr"] > 0
        assert self.outputs.writers is not None
        assert self.log.settings is self.settings
        return super().train_step(batch)

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "critic": self.critic}


class Adversarial(Trainer):
    """A GAN in miniature: its loss does not fall, its outputs are not a classifier's, its targets are not used."""

    supervised = False

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.model(inputs)
        loss = (outputs.sin() * inputs.roll(1, 0)[:, :3]).mean() - 1
        self.backward(loss)
        return StepResult(loss, outputs, targets)

    eval_step = train_step

    def backward(self, loss: Tensor) -> None:
        if loss.requires_grad:
            super().backward(loss)


class Careless(Adversarial):
    """Calls a loss that the config does not give."""

    def train_step(self, batch: Any) -> StepResult:
        self.criterion(*batch)
        return super().train_step(batch)


class TwoLayers(nn.Sequential):
    """Two layers, with an empty parameter."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 3), nn.Linear(3, 3))
        self.empty = nn.Parameter(torch.empty(0))


class LayerByLayer(Trainer):
    """Trains the first layer, and after 1,000 steps the second."""

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        first = self.progress.steps < 1000
        outputs = self.model[0](inputs) if first else self.model(inputs)  # type: ignore[index]
        loss = self.criterion(outputs, targets)
        with self.optimizing("first" if first else "second"):
            self.backward(loss)
        return StepResult(loss, outputs, targets)


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Check]:
    """Status and report of a check of the sound config with some keys replaced; None leaves one out."""

    def run(**keys: Any) -> tuple[int, str]:
        config = {**sound(), "lr_scheduler": None, "metrics": [], "trainer": {"save_dir": str(tmp_path)}, **keys}
        path = tmp_path / "config.json"
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        status = preflight(load_config(path))
        return status, capsys.readouterr().out

    with (
        temporarily(MODELS, Nested, Tokens, TwoLayers),
        temporarily(DATA_LOADERS, Pairs, Text),
        temporarily(LOSSES, nested_loss, token_loss, MovingLoss),
        temporarily(TRAINERS, Keeping, Adversarial, Careless, LayerByLayer),
    ):
        yield run


def nested(**args: Any) -> dict[str, Any]:
    return {"data_loader": "Pairs", "model": {"type": "Nested", "args": args}, "loss": "nested_loss"}


def plain(**args: Any) -> dict[str, Any]:
    return {"data_loader": {"type": "Pairs", "args": {"nested": False, **args}}, "loss": "cross_entropy"}


@pytest.mark.parametrize("kind", ["dict", "tuple", "list"])
def test_nests_as_outputs_and_targets(check: Check, kind: str) -> None:
    status, report = check(**nested(kind=kind))
    assert status == 0, report
    assert "inputs.x (10, 8) float32" in report
    assert "learning      ok" in report


def test_attributes_that_training_gives_are_there(check: Check) -> None:
    status, report = check(**plain(), trainer={"type": "Keeping"})
    assert status == 0, report
    assert "exactness" not in report


@pytest.mark.slow
def test_what_no_checkpoint_has_is_noted(check: Check) -> None:
    _, report = check(**(nested(moving=True)))
    assert "values that a resumed run would not have: model.calls\n" in report
    _, report = check(**plain() | {"loss": "MovingLoss"})
    assert "values that a resumed run would not have: loss.count\n" in report


class EvaluatesAverage(AveragedTrainer):
    """Evaluates an average of the weights, which the steps of a check do not follow."""

    def eval_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.ema(inputs)
        return StepResult(self.criterion(outputs, targets), outputs, targets)


class ComparesAverage(EvaluatesAverage):
    """Runs the model itself in evaluation, too; only the optimizer's own steps update the average."""

    train_step = Trainer.train_step

    def eval_step(self, batch: Any) -> StepResult:
        self.model(batch[0])
        return super().eval_step(batch)


@pytest.mark.parametrize("kind", [EvaluatesAverage, ComparesAverage])
def test_a_trainer_that_evaluates_another_model_is_judged_by_its_training(check: Check, kind: type[Any]) -> None:
    with temporarily(TRAINERS, kind):
        status, report = check(**plain(), trainer={"type": kind.__name__})
    assert status == 0, report
    assert "learning      ok" in report


@pytest.mark.parametrize("changing", [True, False])
def test_data_that_change_when_they_are_read_are_noted(check: Check, changing: bool) -> None:
    status, report = check(**plain(changing=changing))
    assert status == 0, report
    assert ("loaded twice with the same seed, differ" in report) == changing


@pytest.mark.parametrize("samples", [40, 42])
def test_the_smallest_batch_is_tried(check: Check, samples: int) -> None:
    """31 or 33 samples are left for training, in batches of 10."""
    status, report = check(
        **plain(samples=samples) | {"model": {"type": "Nested", "args": {"kind": "", "normed": True}}}
    )
    assert status == (1 if samples == 40 else 0), report
    assert ("last batch    FAIL  ValueError" in report) == (samples == 40)
    assert ("drop_last=true" in report) == (samples == 40)


@pytest.mark.filterwarnings("default")
def test_a_loss_or_a_metric_that_broadcasts_fails(check: Check) -> None:
    regression = {
        "data_loader": {
            "type": "RandomTensorLoader",
            "args": {
                "num_samples": 60,
                "input_shape": [8],
                "target_shape": [],
                "batch_size": 10,
                "validation_split": 9,
            },
        },
        "model": {"type": "LinearRegression", "args": {"in_features": 8}},
    }
    status, report = check(**regression, loss="L1Loss")
    assert status == 1
    assert "compares outputs of shape (10, 1) with targets of shape (10,)" in report
    assert "squeeze(-1)" in report


def test_a_first_loss_far_above_ln_c_is_noted_whatever_the_loss_is_called(check: Check) -> None:
    loader = {"type": "Text", "args": {"batch_size": 10}}
    _, report = check(data_loader=loader, model="Tokens", loss="token_loss")
    assert "first loss    note" in report
    assert "equally likely classes would give ln 89 = 4.489" in report


UNSUPERVISED: dict[str, Any] = {"loss": None, "trainer": {"type": "Adversarial"}}


def test_a_trainer_that_is_not_supervised_needs_no_loss_and_passes(check: Check) -> None:
    status, report = check(**plain() | UNSUPERVISED)
    assert status == 0, report
    assert "learning" not in report
    assert "equally likely" not in report


def test_a_layer_that_is_trained_later_is_noted(check: Check) -> None:
    optimizers = {
        "first": {"type": "Adam", "params": ["0.*", "empty"]},
        "second": {"type": "Adam", "params": ["1.*"]},
    }
    status, report = check(**plain(), model="TwoLayers", optimizer=optimizers, trainer={"type": "LayerByLayer"})
    assert status == 0, report
    assert "gradients     note  none for 1.weight, 1.bias\n" in report


def test_constant_inputs_stand_in_for_data_of_a_trainer_that_makes_them(check: Check) -> None:
    loader = {"data_loader": {"type": "Pairs", "args": {"nested": False, "constant": True}}}
    status, report = check(**plain() | loader | UNSUPERVISED)
    assert status == 0, report
    assert "batch         ok    inputs" in report
    _, report = check(**plain() | loader)
    assert "batch         note  inputs" in report


@pytest.mark.usefixtures("check")
def test_it_trains_is_tested_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {**sound(), "lr_scheduler": None, "metrics": []} | plain()
    keys["trainer"] = {"type": "Adversarial", "epochs": 1, "save_dir": str(tmp_path), "monitor": "min val_loss"}
    del keys["loss"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(keys))
    run = train.main(["-c", str(path)]).run_dir
    assert json.loads((run / "config.json").read_text())["loss"] is None
    assert train.main(["-r", str(run), "trainer.epochs=2"]).epochs == 2
    assert "loss" in load_script("test").main(["-r", str(run)])
    assert "No figures: " in (run / "test" / "report.md").read_text()
    assert "warning" not in capsys.readouterr().err
    with pytest.raises(ConfigError, match='the key "loss" is missing; null if the trainer computes its own'):
        train.main(["-c", str(path), "trainer.type=Trainer"])
    with pytest.raises(ConfigError, match="the config has no loss"):
        train.main(["-c", str(path), "trainer.type=Careless"])


def test_a_mean_over_a_batch_is_a_mean_over_samples(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(sound()))
    loss = 'loss={"type": "%s", "args": {"reduction": "batchmean"}}'
    build_loss(load_config(path, [loss % "KLDivLoss"]), torch.device("cpu"))
    with pytest.raises(ConfigError, match='must be "mean" or "sum"'):
        build_loss(load_config(path, [loss % "MSELoss"]), torch.device("cpu"))


def test_the_classes_of_one_images_boxes_may_all_be_the_same() -> None:
    targets = [{"labels": torch.ones(3, dtype=torch.int64), "boxes": torch.rand(3, 4)} for _ in range(2)]
    assert {result.verdict for result in check_batch((torch.rand(2, 3), targets))} == {"ok"}
    [_, constant] = check_batch((torch.rand(2, 3), {"mask": torch.ones(3)}))
    assert constant.verdict == "note"


def test_the_layers_have_all_parameters() -> None:
    """Attention uses the weights of a layer of its own that is never called, and a model may have weights itself."""
    model, trace = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), nn.PReLU()), Trace()
    model.token = nn.Parameter(torch.zeros(3))
    with traced(model, trace):
        model(torch.zeros(2, 4, 8))
    assert sum(int(row[3].replace(",", "") or 0) for row in trace.rows) == count_parameters(model)


class Evaluates(Trainer):
    """With a validation of its own, which may do something wrong."""

    logs = ("spread",)

    def __init__(self, experiment: Experiment, settings: TrainerConfig, *, mistake: str = "") -> None:
        super().__init__(experiment, settings)
        self.mistake, self.sizes = mistake, set[int]()
        self.center: Any = nn.BatchNorm1d(3, affine=False)

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "center": self.center}

    def eval_step(self, batch: Any) -> StepResult:
        raise NotImplementedError

    def evaluate(self, batches: Batches, observer: Observer, **more: Any) -> dict[str, float]:
        with self.evaluating():
            outputs = torch.cat([self.model(batch.data[0]) for batch in batches.one_pass()])
        if self.mistake == "fails":
            raise ValueError("no such file")
        if self.mistake == "learns":
            self.center(outputs)
        if self.mistake == "trains":
            self.model(torch.zeros_like(next(batches.one_pass()).data[0]))
        name = "spraed" if self.mistake == "misspells" else "spread"
        return {name: outputs if self.mistake == "shape" else outputs.std()}  # type: ignore[dict-item]


class Judges(Trainer):
    """Has no loss in evaluation, computes one with a gradient there, or uses the config's only there."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig, *, how: str) -> None:
        super().__init__(experiment, settings)
        self.how = how

    def train_step(self, batch: Any) -> StepResult:
        if self.how == "only in evaluation":
            loss = F.cross_entropy(outputs := self.model(batch[0]), batch[1])
            self.backward(loss)
            return StepResult(loss, outputs, batch[1])
        if self.how == "fails":
            raise ValueError("no such file")
        return super().train_step(batch)

    def eval_step(self, batch: Any) -> StepResult:
        if self.how in ("nan", "fails"):
            return StepResult(torch.tensor(torch.nan), self.model(batch[0]), batch[1])
        if self.how == "without a graph" and len(batch[0]) == 9:  # the validation data
            torch.autograd.grad(self.model(batch[0]).sum(), [*self.model.parameters()])
        with torch.enable_grad():
            return super().eval_step(batch)


@pytest.mark.parametrize(
    ("how", "status", "says"),
    [
        ("nan", 0, "all checks passed"),
        ("with a graph", 0, "all checks passed"),
        ("only in evaluation", 1, "loss          FAIL  Judges.train_step does not call self.criterion"),
        ("fails", 1, "forward       FAIL  ValueError: no such file"),
        ("without a graph", 1, "usually: a gradient in an evaluation, which runs without gradients"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_training_and_evaluation_are_judged_each_by_its_own_step(
    check: Check, how: str, status: int, says: str
) -> None:
    with temporarily(TRAINERS, Judges):
        found, report = check(**plain() | {"trainer": {"type": "Judges", "args": {"how": how}}})
    assert found == status, report
    assert says in report
    assert report.count("FAIL") == status


class Encodes(nn.Module):
    """A transformer whose padding torch skips by nested tensors."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.zeros(len(x), 8, dtype=torch.bool)
        padding[0, 5:] = True
        return self.out(self.encoder(x[:, :, None].expand(-1, -1, 8), src_key_padding_mask=padding)[:, 0])  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_in_a_model_can_be_shown() -> None:
    model, trace = Encodes().eval(), Trace()
    with traced(model, trace), torch.no_grad():
        model(torch.zeros(4, 8))
    assert "nested" in [row[2] for row in trace.rows]


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("", ""),
        ("fails", "validation    FAIL  ValueError: no such file"),
        ("learns", ""),
        ("trains", "validation    note  the model runs in training mode"),
        ("misspells", "validation    note  val_spread of trainer.monitor was not measured, only val_spraed\n"),
        ("shape", 'validation    FAIL  Evaluates.evaluate returned "spread" of shape (9, 3)'),
    ],
)
def test_a_validation_of_ones_own_is_tried(check: Check, mistake: str, says: str) -> None:
    with temporarily(TRAINERS, Evaluates):
        trainer = {"type": "Evaluates", "args": {"mistake": mistake}, "monitor": "min val_spread"}
        status, report = check(**plain() | {"trainer": trainer})
    assert status == ("FAIL" in says), report
    assert says in report
    assert "eval_step" not in report
    assert ("training mode" in report) == (mistake == "trains")
    assert ("evaluation    note  a validation changes center\n" in report) == (mistake == "learns")


class Chooses(Trainer):
    """Chooses a value in its validation, as a threshold for tests."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.chosen: Any = nn.BatchNorm1d(3, affine=False)

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "chosen": self.chosen}

    def validate(self) -> dict[str, float]:
        values = super().validate()
        self.chosen.running_mean.fill_(values["loss"])
        return values


def test_a_validation_may_choose_values_for_tests(check: Check) -> None:
    with temporarily(TRAINERS, Chooses):
        status, report = check(**plain() | {"trainer": {"type": "Chooses"}})
    assert status == 0, report
    assert "a validation changes" not in report


def test_a_validation_of_ones_own_has_the_monitored_value(check: Check) -> None:
    for monitor, says in (("min val_spread", ""), ("min val_loss", "no step has logged val_loss"), ("min loss", "")):
        with temporarily(TRAINERS, Evaluates):
            status, report = check(**plain() | {"trainer": {"type": "Evaluates", "monitor": monitor}})
        assert status == bool(says), report
        assert says in report
