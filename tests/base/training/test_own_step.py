"""Common mistakes in your own step, loss, metric or model: each ends with one message that names it."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import train
from base.base_trainer import BaseTrainer
from base.experiment import Experiment
from base.metric import StepResult
from tests.conftest import load_script
from tests.helpers import Fit, keep_on_device, lines, needs_extra, same, state, temporarily
from trainer.trainer import Trainer
from utils.errors import ConfigError, TrainingError, UserError
from utils.registry import LOSSES, METRICS, MODELS, OPTIMIZERS, TRAINERS
from utils.schema import TrainerConfig


class ReturnsNothing(Trainer):
    def train_step(self, batch: Any) -> StepResult:
        super().train_step(batch)
        return None  # type: ignore[return-value]


class ReturnsTheLoss(Trainer):
    def train_step(self, batch: Any) -> Any:
        return super().train_step(batch).loss


class ReturnsATuple(Trainer):
    def train_step(self, batch: Any) -> Any:
        return tuple(super().train_step(batch))[:3]


class ReturnsAFloat(Trainer):
    def train_step(self, batch: Any) -> Any:
        result = super().train_step(batch)
        return result._replace(loss=result.loss.item())  # type: ignore[arg-type]


class LogsNothing(Trainer):
    def train_step(self, batch: Any) -> StepResult:
        return super().train_step(batch)._replace(log=None)  # type: ignore[arg-type]


class LogsText(Trainer):
    logs = ("note",)

    def train_step(self, batch: Any) -> StepResult:
        return super().train_step(batch)._replace(log={"note": "good"})  # type: ignore[dict-item]


class CountsEach(Trainer):
    def train_step(self, batch: Any) -> StepResult:
        result = super().train_step(batch)
        return result._replace(count=torch.ones_like(result.targets))


class CountsWrong(Trainer):
    count: ClassVar[Any] = None

    def train_step(self, batch: Any) -> StepResult:
        return super().train_step(batch)._replace(count=self.count)


class LogsComplex(Trainer):
    logs = ("phase",)

    def train_step(self, batch: Any) -> StepResult:
        return super().train_step(batch)._replace(log={"phase": torch.tensor(1j)})


class StepsItself(Trainer):
    def train_step(self, batch: Any) -> StepResult:
        result = super().train_step(batch)
        self.training.optimizer.step()
        return result


class BeginsWithoutNumber(Trainer):
    def begin_epoch(self) -> None:  # type: ignore[override]
        pass


class Starts(Trainer):
    def start(self, batch: Any) -> None:  # type: ignore[override]
        pass


class Counts(Trainer):
    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.progress = 0  # type: ignore[assignment]


class Collects(Trainer):
    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.outputs = []  # type: ignore[assignment]


class Finishes(Trainer):
    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.finished = True  # type: ignore[assignment,method-assign]


class Wraps(Trainer):
    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.model = nn.Sequential(experiment.model)


class Crosses(Trainer):
    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(settings, experiment)  # type: ignore[arg-type]


class StepsItsOwnOptimizer(Trainer):
    def train_step(self, batch: Any) -> StepResult:
        result = super().train_step(batch)
        torch.optim.SGD(self.model.parameters(), lr=0.1).step()
        return result


class StepsForItsProbe(Trainer):
    """With an optimizer of its own for a module that the config's optimizer does not train."""

    def __init__(self, experiment: Any, settings: Any) -> None:
        super().__init__(experiment, settings)
        self.probe = nn.Linear(3, 1)
        self.own = torch.optim.SGD(self.probe.parameters(), lr=0.1)

    def train_step(self, batch: Any) -> StepResult:
        result = super().train_step(batch)
        self.own.zero_grad()
        self.probe(result.outputs.detach()).mean().backward()
        self.own.step()
        return result


class SavesOnlyItsOwn(Trainer):
    def stateful(self) -> dict[str, Any]:
        return {"own": nn.Linear(1, 1)}


class SavesNothing(Trainer):
    def stateful(self) -> dict[str, Any]:
        super().stateful()
        return None  # type: ignore[return-value]


class ReplacesTheModel(Trainer):
    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "model": nn.Linear(1, 1)}


class WithoutSuper(Trainer):
    def __init__(self, experiment: Any, settings: Any) -> None:
        self.share = 0.5


class WithoutExperiment(Trainer):
    def __init__(self, share: float = 0.5) -> None:
        self.share = share


class OtherNames(Trainer):
    def __init__(self, e: Any, s: Any, *, share: float = 0.5) -> None:
        super().__init__(e, s)


class Swapped(Trainer):
    def __init__(self, settings: Any, experiment: Any) -> None:
        super().__init__(experiment, settings)


class EvaluatesToNothing(Trainer):
    def eval_step(self, batch: Any) -> Any:
        super().eval_step(batch)


class EvaluatesEachSample(Trainer):
    def eval_step(self, batch: Any) -> StepResult:
        result = super().eval_step(batch)
        return result._replace(loss=F.cross_entropy(result.outputs, result.targets, reduction="none"))


class Asserts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        assert inputs.dim() == 4, "expected images"
        return self.layer(inputs)  # type: ignore[no-any-return]


class Hidden(nn.Module):
    """With weights that torch does not find. kept: how."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        inner = nn.Module()
        inner.kept = {  # type: ignore[assignment]
            "list": [[nn.Linear(6, 6)]],
            "dict": {"a": nn.Linear(6, 6)},
            "parameters": [nn.Parameter(torch.ones(6))],
            "tensor": torch.ones(6, requires_grad=True),
            "known": [self.layer, *self.layer.parameters()],
            "frozen": [nn.Linear(6, 6).requires_grad_(False), torch.ones(6)],
            "computed": self.layer.weight * 1,
        }[kept]
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)  # type: ignore[no-any-return]


class Misspells(Asserts):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)  # type: ignore[operator,no-any-return]


def a_float(outputs: Tensor, targets: Tensor) -> Any:
    return float((outputs.argmax(1) == targets).float().mean())


def an_array(outputs: Tensor, targets: Tensor) -> Any:
    return (outputs.argmax(1) == targets).numpy()


def nothing(outputs: Tensor, targets: Tensor) -> None:
    pass


class NoMetric(nn.Module):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).float()


class HiddenScale(nn.Module):
    """A loss with a weight that torch does not find."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = [nn.Parameter(torch.ones(3))]

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.scales[0] * outputs, targets)


def several_values(outputs: Tensor, targets: Tensor) -> Any:
    return {"cross_entropy": F.cross_entropy(outputs, targets)}


def a_number(outputs: Tensor, targets: Tensor) -> Any:
    return F.cross_entropy(outputs, targets).item()


def each_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    own = (each for each in globals().values() if isinstance(each, type) and issubclass(each, BaseTrainer))
    with (
        temporarily(TRAINERS, *(each for each in own if each not in (BaseTrainer, Trainer))),
        temporarily(MODELS, Asserts, Hidden, Misspells),
        temporarily(METRICS, a_float, an_array, nothing, NoMetric),
        temporarily(LOSSES, several_values, a_number, each_sample, HiddenScale),
    ):
        yield


@pytest.mark.parametrize(
    ("count", "found"),
    [
        (-3, "-3"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (torch.tensor(-1.5), r"tensor\(-1.5000\)"),
        (True, "True"),
        ("a", "'a'"),
        ([1.0], r"\[1.0\]"),
        (torch.tensor(1j), r"tensor\(0.\+1.j\)"),
    ],
)
def test_a_count_that_is_not_a_number_is_refused(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, count: Any, found: str
) -> None:
    monkeypatch.setattr(CountsWrong, "count", count)
    with pytest.raises(ConfigError, match=f"train_step returned the count {found}; expected what the loss is averaged"):
        fit("trainer.type=CountsWrong")


@pytest.mark.parametrize("count", [0, 4, np.int64(4), np.float32(4.0), torch.tensor(4)])
def test_a_count_may_be_any_real_number(fit: Fit, monkeypatch: pytest.MonkeyPatch, count: Any) -> None:
    monkeypatch.setattr(CountsWrong, "count", count)
    assert fit("trainer.type=CountsWrong", "trainer.accumulate_steps=2").steps == 6


RETURN = r"end it with: return StepResult\(loss, outputs, targets\)"
ONE_NUMBER = r"expected one number per batch, a tensor of shape \(\)"


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ("ReturnsNothing", rf"ReturnsNothing.train_step returned nothing; {RETURN}"),
        ("ReturnsTheLoss", rf"ReturnsTheLoss.train_step returned a Tensor; {RETURN}"),
        ("ReturnsATuple", rf"ReturnsATuple.train_step returned a tuple; {RETURN}"),
        ("ReturnsAFloat", rf"ReturnsAFloat.train_step returned a loss of type float; {ONE_NUMBER}"),
        ("LogsNothing", "LogsNothing.train_step returned a log of type NoneType; expected a dict"),
        ("LogsText", 'the trainer logs "note" of type str; expected a number'),
        ("CountsEach", r"CountsEach.train_step returned the count tensor.*; expected what the loss is"),
        ("LogsComplex", 'the trainer logs "phase" of complex dtype; a logged value is a single number'),
        ("StepsItself", r"StepsItself.train_step steps parameters that the config's optimizer steps after it"),
        (
            "StepsItsOwnOptimizer",
            "train_step steps parameters that the config's optimizer steps after it",
        ),
        (
            "BeginsWithoutNumber",
            r"json:\d+:\d+: trainer: BeginsWithoutNumber.begin_epoch should be \(self, epoch\), as in BaseTrainer: too",
        ),
        (
            "Starts",
            r"json:\d+:\d+: trainer: Starts.start should be \(self\), as in BaseTrainer: missing a required argument: "
            "'batch'; anything else needs another name",
        ),
        ("Counts", "Counts.__init__ sets self.progress, which the base class sets; give it another name"),
        ("Collects", "Collects.__init__ sets self.outputs, which the base class sets; give it another name"),
        ("Finishes", r"Finishes.finished should be \(self\), as in BaseTrainer: True is not a callable object"),
        (
            "Wraps",
            "Wraps.__init__ replaces the config's model in self.model, .*; wrap it in a model of your own",
        ),
        ("Crosses", r"super\(\).__init__\(experiment, settings\), in this order"),
        (
            "SavesOnlyItsOwn",
            r"does not return .* own data, model, optimizer, .*: return {\*\*super\(\).stateful\(\), ",
        ),
        (
            "SavesNothing",
            r"does not return .* own data, model, optimizer, .*: return {\*\*super\(\).stateful\(\), ",
        ),
        ("ReplacesTheModel", "does not return the run's own model, so no run could resume"),
        ("WithoutSuper", r"json:\d+:\d+: trainer: WithoutSuper.__init__ does not call super\(\).__init__\(experiment"),
        (
            "WithoutExperiment",
            r"WithoutExperiment.__init__\(\) takes from 1 to 2 positional arguments but 3 were given",
        ),
        ("Swapped", r"Swapped cannot be built: .*super\(\).__init__\(experiment, settings\), in this order"),
        ("EvaluatesToNothing", rf"EvaluatesToNothing.eval_step returned nothing; {RETURN}"),
        ("EvaluatesEachSample", rf"EvaluatesEachSample.eval_step returned a loss of shape \(8,\); {ONE_NUMBER}"),
    ],
)
def test_a_mistake_in_a_trainer_is_named(fit: Fit, tmp_path: Path, trainer: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(f"trainer.type={trainer}")
    # a folder is left only where something was trained: by those whose mistake is in the validation
    for run in tmp_path.glob("saved/*/*"):
        assert (run / "checkpoints/last.pth").exists()


def test_a_trainer_may_step_an_optimizer_for_other_parameters(fit: Fit) -> None:
    assert fit("trainer.type=StepsForItsProbe").epochs == 2


@pytest.mark.parametrize(
    ("loss", "found"), [("several_values", "type dict"), ("a_number", "type float"), ("each_sample", r"shape \(8,\)")]
)
def test_a_loss_that_is_not_one_number_is_refused(fit: Fit, loss: str, found: str) -> None:
    with pytest.raises(UserError, match=rf"self.backward got a loss of {found}; {ONE_NUMBER}"):
        fit(loss=loss)


def test_one_of_several_losses_that_is_not_one_number_is_named(fit: Fit) -> None:
    with pytest.raises(UserError, match=rf'the loss "second" returned a value of shape \(8,\); {ONE_NUMBER}'):
        fit(loss={"first": "cross_entropy", "second": "each_sample"})


def test_one_of_several_losses_that_would_broadcast_is_named(fit: Fit) -> None:
    with pytest.raises(
        UserError, match=r'the loss "second" compares outputs of shape \(8, 3\) with targets of .*\(8,\)'
    ):
        fit(loss={"first": "cross_entropy", "second": "mse_loss"})


@pytest.mark.parametrize(
    ("kept", "kind"), [("list", "list"), ("dict", "dict"), ("parameters", "list"), ("tensor", "Tensor")]
)
def test_weights_that_would_not_be_trained_are_refused(fit: Fit, kept: str, kind: str) -> None:
    says = rf"config.json:\d+:\d+: model: inner.kept is a plain {kind} with weights .* neither trained nor saved"
    with pytest.raises(UserError, match=says):
        fit(model={"type": "Hidden", "args": {"kept": kept}})


def test_weights_of_a_loss_that_would_not_be_trained_are_refused(fit: Fit) -> None:
    with pytest.raises(UserError, match=r"json:\d+:\d+: loss: scales is a plain list with weights"):
        fit(loss="HiddenScale")


def test_an_optimizer_without_super_is_named(fit: Fit) -> None:
    class Unfinished(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float = 0.1) -> None:
            self.lr = lr

    with (
        temporarily(OPTIMIZERS, Unfinished),
        pytest.raises(UserError, match=r"optimizer: Unfinished.__init__ does not call super\(\).__init__\(params"),
    ):
        fit(optimizer={"type": "Unfinished", "args": {"lr": 0.1}})


def test_the_names_of_arguments_that_are_passed_are_free(fit: Fit) -> None:
    class Renamed(torch.optim.SGD):
        def __init__(self, weights: Any, lr: float = 0.1) -> None:
            super().__init__(weights, lr)

    with temporarily(OPTIMIZERS, Renamed):
        fit("trainer.type=OtherNames", "trainer.args.share=0.2", optimizer={"type": "Renamed", "args": {"lr": 0.1}})


@pytest.mark.parametrize("kept", ["known", "frozen", "computed"])
def test_other_tensors_and_modules_may_be_kept_in_any_way(fit: Fit, kept: str) -> None:
    assert fit(model={"type": "Hidden", "args": {"kept": kept}}).epochs == 2


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("a_float", r'"a_float" returned type float for 8 samples; .* one number per sample, a tensor of shape \(8,\)'),
        ("an_array", '"an_array" returned type ndarray for 8 samples'),
        ("nothing", '"nothing" returned type NoneType for 8 samples'),
        ("NoMetric", "NoMetric returns NoMetric; expected Metric"),
    ],
)
def test_a_metric_that_returns_no_tensor_is_refused(fit: Fit, metric: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(metrics=[metric])


def test_an_error_in_a_model_is_shown_with_its_line(fit: Fit) -> None:
    reason = "AssertionError: expected images"
    with pytest.raises(
        UserError, match=rf"\(8, 6\) float32.* failed in the model.*: {reason}[^$]*\n  tests/base/training/"
    ):
        fit(model="Asserts")


@needs_extra("advice")
def test_a_misspelt_attribute_is_answered_with_the_likely_one(fit: Fit) -> None:
    with pytest.raises(UserError, match=r"no attribute 'layers'[^$]*\n  tests/base/training/") as error:
        fit(model="Misspells")
    assert 'Did you mean "layer"?' in str(error.value)
    assert "shapes" not in str(error.value)


def step_of(body: Callable[[Trainer, Any, Any], Any]) -> type[Trainer]:
    """A trainer with this train_step, of the trainer, inputs and targets."""

    class Own(Trainer):
        def train_step(self, batch: Any) -> StepResult:
            inputs, targets = batch
            loss = body(self, inputs, targets)
            self.backward(loss)
            return StepResult(loss, self.model(inputs), targets)

    return Own


def loop(trainer: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    trainer.optimizer.zero_grad()
    raise AssertionError


def detached(trainer: Trainer, inputs: Tensor, targets: Tensor) -> Tensor:
    return trainer.criterion(trainer.model(inputs).detach(), targets)


def inner_index(trainer: Trainer, inputs: Tensor, targets: Tensor) -> Tensor:
    return inputs[0, 99]


class Unpacks(Trainer):
    def train_step(self, batch: Any) -> StepResult:
        inputs, targets, lengths = batch
        return StepResult(lengths, inputs, targets)


def by_its_training(trainer: Trainer, inputs: Tensor, targets: Tensor) -> Any:
    return trainer.model(inputs) if trainer.training else None


def logged_elsewhere(trainer: Any, inputs: Tensor, targets: Tensor) -> Any:
    trainer.log("loss", 1.0)


@needs_extra("advice")
@pytest.mark.parametrize(
    ("step", "cause"),
    [
        (loop, r"a hand-written loop in train_step: self.backward\(loss\) is enough"),
        (logged_elsewhere, r"self.log\(name, value\), as elsewhere: return StepResult\(\.\.\., "),
    ],
)
def test_the_usual_cause_of_a_first_batch_that_fails(fit: Fit, step: Any, cause: str) -> None:
    with temporarily(TRAINERS, step_of(step)), pytest.raises(UserError, match=f"The usual cause is {cause}"):
        fit("trainer.type=Own")


def moved(trainer: Any, inputs: Tensor, targets: Tensor) -> Any:
    return inputs.to(trainer.device)


@needs_extra("advice")
def test_an_attribute_of_another_templates_trainer_has_its_equivalent(fit: Fit) -> None:
    says = r"no self.device: use self.runtime.device; batch and model are on it already\."
    with temporarily(TRAINERS, step_of(moved)), pytest.raises(UserError, match=says):
        fit("trainer.type=Own")


def test_what_is_told_to_use_in_place_of_such_an_attribute_exists(fit: Fit) -> None:
    causes = pytest.importorskip("extras.advice.causes")
    seen: list[Any] = []

    def look(trainer: Trainer, inputs: Tensor, targets: Tensor) -> Any:
        seen.extend((trainer.steps_per_epoch(), trainer.progress.epochs, trainer.experiment.data))
        seen.extend((trainer.runtime.device, trainer.console.info, trainer.picture, trainer.text))
        assert not [name for name in causes.ELSEWHERE if hasattr(trainer, name)]
        return trainer.criterion(trainer.model(inputs), targets)

    with temporarily(TRAINERS, step_of(look)):
        fit("trainer.type=Own", "trainer.epochs=1")
    assert seen


def raises(trainer: Trainer, inputs: Tensor, targets: Tensor) -> Tensor:
    raise ValueError("the memory is empty")


def other_key(trainer: Trainer, inputs: Tensor, targets: Tensor) -> Tensor:
    batch = {"label": targets}
    return batch["labels"]


def misspelt(trainer: Trainer, inputs: Tensor, targets: Tensor) -> Tensor:
    raise NameError("name 'outptus' is not defined")


def without_forward(trainer: Trainer, inputs: Tensor, targets: Tensor) -> Any:
    return nn.Module()(inputs)


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (without_forward, 'missing the required "forward" function'),
        (raises, r"the memory is empty\n(.*\n)+ .*: raise ValueError"),
        (misspelt, "'outptus' is not defined"),
        (other_key, r"KeyError: 'labels'\n(.*\n)+ .*: return batch\[.labels.\]"),
    ],
)
def test_an_error_that_is_not_of_shapes_is_not_blamed_on_them(fit: Fit, step: Any, says: str) -> None:
    with (
        temporarily(TRAINERS, step_of(step)),
        pytest.raises(UserError, match=f"the first batch .*: .*{says}") as caught,
    ):
        fit("trainer.type=Own")
    assert "Do the shapes" not in str(caught.value)


def test_an_error_in_a_loss_shows_the_line_of_the_step_that_called_it(fit: Fit) -> None:
    class Columns(Trainer):
        def train_step(self, batch: Any) -> StepResult:
            inputs, targets = batch
            loss = self.criterion(self.model(inputs), targets[:, None])
            return StepResult(loss, inputs, targets)

    says = r"\n  tests/.*: loss = self.criterion\(.*\n  model/loss.py:\d+: "
    with temporarily(TRAINERS, Columns), pytest.raises(UserError, match=says):
        fit("trainer.type=Columns")


class EvaluatesByTraining(Trainer):
    """One step for both, as in much code for GANs and language models."""

    always = False

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        with self.optimizing(*self.settings.args.get("names", ())):
            outputs = self.model(inputs)
            loss = self.criterion(outputs, targets)
            if self.always or torch.is_grad_enabled():
                self.backward(loss)
        return StepResult(loss, outputs, targets)

    def eval_step(self, batch: Any) -> StepResult:
        return self.train_step(batch)


class Alias(EvaluatesByTraining):
    eval_step = EvaluatesByTraining.train_step


@pytest.mark.parametrize("trainer", [EvaluatesByTraining, Alias])
@pytest.mark.parametrize("names", [(), ("fc1", "fc2")])
def test_an_evaluation_may_call_train_step(fit: Fit, trainer: type[Any], names: tuple[str, ...]) -> None:
    class Named(trainer):  # type: ignore[misc]
        def __init__(self, *args: Any, names: list[str]) -> None:
            super().__init__(*args)

    sgd = {"type": "SGD", "args": {"lr": 0.1}}
    optimizer: Any = dict.fromkeys(names, sgd) or sgd
    with temporarily(TRAINERS, Named):
        run = fit(f"trainer.args.names={json.dumps(names)}", "trainer.type=Named", optimizer=optimizer).run_dir
        load_script("test").main(["-r", str(run)])
    assert same(state(run)["model"], state(fit().run_dir)["model"])


@needs_extra("advice")
@pytest.mark.parametrize("trainer", [EvaluatesByTraining, Alias])
def test_a_backward_pass_in_an_evaluation_is_named_as_the_cause(fit: Fit, trainer: type[Any]) -> None:
    class Always(trainer):  # type: ignore[misc]
        always = True

    says = "(?s)the first batch of the evaluation .*The usual cause is a gradient in an evaluation"
    with temporarily(TRAINERS, Always), pytest.raises(UserError, match=says):
        fit("trainer.type=Always")


def test_a_trainer_is_not_in_a_mode(fit: Fit) -> None:
    """As a LightningModule is."""
    with temporarily(TRAINERS, step_of(by_its_training)), pytest.raises(UserError, match=r"use self.model.training"):
        fit("trainer.type=Own")


class OfLightning(Trainer):
    def training_step(self, batch: Any, index: int) -> Tensor:
        raise NotImplementedError


class OfVictoresque(BaseTrainer):
    """As abstract as it is: it defines nothing that is called here, and needs what a config does not have."""

    def __init__(self, model: Any, criterion: Any, metric_ftns: Any, optimizer: Any, config: Any) -> None:
        raise NotImplementedError

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        raise NotImplementedError


class Helping(Trainer):
    """Has a method of that name for itself."""

    def training_step(self, batch: Any) -> StepResult:
        return super().train_step(batch)

    def train_step(self, batch: Any) -> StepResult:
        return self.training_step(batch)


class EndsEpochs(Trainer):
    def on_train_epoch_end(self) -> None:
        raise NotImplementedError


@needs_extra("hints")
@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        (OfLightning, r"OfLightning.training_step is never called here; instead: train_step\(batch\)"),
        (OfVictoresque, r"OfVictoresque._train_epoch is never called here; instead: train_step\(batch\) for each"),
        (EndsEpochs, r"EndsEpochs.on_train_epoch_end is never called here; instead: a metric class"),
        (Helping, ""),
    ],
)
def test_methods_that_other_frameworks_call_are_refused(fit: Fit, trainer: type[BaseTrainer], says: str) -> None:
    with pytest.raises(ConfigError, match=says) if says else nullcontext():
        fit(f"trainer.type={trainer.__name__}", "trainer.epochs=1")


def test_an_index_that_is_too_large_in_a_later_batch_names_its_samples(fit: Fit) -> None:
    def late(trainer: Trainer, inputs: Tensor, targets: Tensor) -> Any:
        return trainer.criterion(trainer.model(inputs), targets + 100 * (trainer.progress.steps == 3))

    says = r"(?s)training failed after step 3, with samples \d+, .*out of bounds"
    with temporarily(TRAINERS, step_of(late)), pytest.raises(TrainingError, match=says) as error:
        fit("trainer.type=Own")
    assert "drop_last" not in str(error.value)


@needs_extra("advice")
def test_a_graph_that_is_kept_fails_in_the_second_step_with_its_usual_cause(fit: Fit) -> None:
    kept: list[Tensor] = []

    def carry(trainer: Trainer, inputs: Tensor, targets: Tensor) -> Any:
        kept.append(trainer.criterion(trainer.model(inputs), targets))
        return sum(kept[1:], kept[0])

    with temporarily(TRAINERS, step_of(carry)), pytest.raises(RuntimeError, match="a second time") as error:
        fit("trainer.type=Own")
    assert "keep tensor.detach()" in error.value.__notes__[0]


def test_an_error_without_a_usual_cause_asks_about_shapes(fit: Fit) -> None:
    with temporarily(TRAINERS, step_of(inner_index)), pytest.raises(UserError, match="Do the shapes and dtypes"):
        fit("trainer.type=Own")


def test_without_the_folder_of_advice_the_batch_the_error_and_its_line_are_named(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("base.training.first_batch.find_extra", lambda folder: None)
    with pytest.raises(UserError, match=r"(?s)the first batch \(.*values to unpack.*\n  .*:\d+: .*\nDo the shapes"):
        fit("trainer.type=Unpacks")


def test_gradients_that_are_there_before_self_backward_are_refused(fit: Fit) -> None:
    def kept(trainer: Trainer, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = trainer.criterion(trainer.model(inputs), targets)
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        return loss

    with (
        temporarily(TRAINERS, step_of(kept)),
        pytest.raises(ConfigError, match=r"Own.train_step computes gradients without self.backward\(loss\)"),
    ):
        fit("trainer.type=Own")


@needs_extra("advice")
def test_a_loss_that_is_cut_off_from_the_weights_and_requires_a_gradient(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(trainer: Trainer, inputs: Tensor, targets: Tensor) -> Tensor:
        return detached(trainer, inputs, targets).requires_grad_()

    with temporarily(TRAINERS, step_of(cut)):
        fit("trainer.type=Own")
    assert "unless later ones do, nothing is trained: call self.backward(loss)" in capsys.readouterr().err


def test_an_attribute_missing_in_the_template_keeps_its_traceback(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("utils.runtime.Runtime.to_device")
    with pytest.raises(AttributeError):
        fit()


class WithoutRate(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


def test_an_optimizer_without_a_rate_is_named(fit: Fit) -> None:
    with (
        temporarily(OPTIMIZERS, WithoutRate),
        pytest.raises(UserError, match=r'json:\d+:\d+: optimizer: WithoutRate has no "lr" in its defaults: super\(\)'),
    ):
        fit(optimizer="WithoutRate")


@pytest.mark.parametrize("on_device", [False, True])
def test_a_loss_of_shape_1_is_one_number(fit: Fit, monkeypatch: pytest.MonkeyPatch, on_device: bool) -> None:
    def with_dimension(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)[None]

    plain = fit().last
    if on_device:
        keep_on_device(monkeypatch)
    with temporarily(LOSSES, with_dimension):
        result = fit(loss="with_dimension").last
    assert (result["loss"], result["val_loss"]) == pytest.approx((plain["loss"], plain["val_loss"]), rel=1e-6)


class StepsAlone(Trainer):
    def optimizer_step(self, step: Any) -> Any:
        return 0.0


class CountsItself(Trainer):
    """Counts its first steps itself, in which it only looks at the data."""

    def optimizer_step(self, step: Any) -> Any:
        if self.progress.steps >= 2:
            return super().optimizer_step(step)
        list(step.micro_batches)
        self.progress.step(step.position, steps_per_epoch=self.settings.steps_per_epoch)
        return 0.0


def test_a_step_that_counts_itself_needs_no_optimizer(fit: Fit) -> None:
    assert fit("trainer.type=CountsItself", "trainer.epochs=1").steps == 5


class ReturnsNoLoss(Trainer):
    def optimizer_step(self, step: Any) -> Any:
        super().optimizer_step(step)


@pytest.mark.parametrize("kind", [StepsAlone, ReturnsNoLoss])
def test_an_optimizer_step_of_ones_own_must_call_the_base_class(fit: Fit, kind: type[Trainer]) -> None:
    name = kind.__name__
    says = rf"{name}.optimizer_step must call super\(\).optimizer_step\(step\), and return what it returns\nNo step c"
    with pytest.raises(ConfigError, match=says):
        fit(f"trainer.type={name}", "trainer.epochs=1")


class EndsWithoutCounting(Trainer):
    def end_epoch(self, validation: dict[str, float]) -> None:
        pass


def test_an_end_of_an_epoch_of_ones_own_must_call_the_base_class(fit: Fit) -> None:
    says = r"EndsWithoutCounting.end_epoch must call super\(\).end_epoch\(validation\)"
    with pytest.raises(ConfigError, match=says):
        fit("trainer.type=EndsWithoutCounting")


class ValidatesForNothing(Trainer):
    def validate(self) -> Any:
        super().validate()


class EvaluatesToANumber(Trainer):
    def evaluate(self, *args: Any, **more: Any) -> Any:
        return super().evaluate(*args, **more)["loss"]


class AddsAValue(Trainer):
    """Its validation also returns what ``value`` is."""

    logs = ("spread",)
    value: Any = None

    def evaluate(self, *args: Any, **more: Any) -> dict[str, float]:
        return {**super().evaluate(*args, **more), "spread": self.value}


@pytest.mark.parametrize("value", [torch.tensor(0.5), torch.tensor([0.5]), np.float32(0.5)], ids=repr)
def test_a_validation_of_ones_own_may_return_a_tensor_of_one_number(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    monkeypatch.setattr(AddsAValue, "value", value)
    run = fit("trainer.type=AddsAValue")
    assert [epoch["val_spread"] for epoch in run.history] == [0.5, 0.5]
    assert load_script("test").main(["-r", str(run.run_dir)])["spread"] == 0.5


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.rand(3), r'AddsAValue.evaluate returned "spread" of shape \(3,\); a logged value is a single number'),
        ([0.5], 'returned "spread" of type list; expected a number'),
        ("high", 'returned "spread" of type str; expected a number'),
    ],
)
def test_a_validation_of_ones_own_that_returns_no_number_is_named(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, value: Any, says: str
) -> None:
    monkeypatch.setattr(AddsAValue, "value", value)
    with pytest.raises(ConfigError, match=says):
        fit("trainer.type=AddsAValue")


VALIDATES = r"ValidatesForNothing.validate returned None; expected a dict of numbers by name, as from"
EVALUATES = r"EvaluatesToANumber.evaluate returned \d.*; expected a dict of numbers by name"


@pytest.mark.parametrize(
    ("kind", "says", "sets"),
    [
        (ValidatesForNothing, VALIDATES, "one"),
        (ValidatesForNothing, VALIDATES, "within"),
        (EvaluatesToANumber, EVALUATES, "one"),
        (EvaluatesToANumber, EVALUATES, "two"),
    ],
)
def test_a_validation_of_ones_own_returns_the_values(fit: Fit, kind: type[Trainer], says: str, sets: str) -> None:
    args = {"num_samples": 8, "input_shape": [6], "num_classes": 3, "batch_size": 4}
    data = {"type": "RandomTensorLoader", "args": args}
    several: Any = {"validation": {"day": data, "night": data}, "data_loader": data} if sets == "two" else {}
    within = ["trainer.validate_every_steps=2"] if sets == "within" else []
    with pytest.raises(ConfigError, match=says):
        fit(f"trainer.type={kind.__name__}", *within, **several)


class BrokenValidation(Trainer):
    broken = True

    def eval_step(self, batch: Any) -> StepResult:
        result = super().eval_step(batch)
        if self.broken and not torch.is_grad_enabled() and self.progress.steps:
            raise ValueError("a mistake of mine")
        return result


def test_of_two_errors_in_a_row_the_first_is_shown(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving may fail too, as after an error of the device."""

    def broken(self: Trainer) -> None:
        raise RuntimeError("the second")

    monkeypatch.setattr(BrokenValidation, "save", broken, raising=False)
    with pytest.raises(UserError, match="a mistake of mine"):
        fit("trainer.type=BrokenValidation")


@pytest.mark.parametrize("often", [(), ("trainer.validate_every_steps=5", "trainer.steps_per_epoch=10")])
def test_a_mistake_in_the_validation_costs_no_epoch(
    fit: Fit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    often: tuple[str, ...],
) -> None:
    broken = ("trainer.type=BrokenValidation", "trainer.epochs=2", *often)
    with pytest.raises(UserError, match="a mistake of mine"):
        fit(*broken)
    assert "step 5 is saved; -r starts with the validation after it" in capsys.readouterr().err
    (run,) = (tmp_path / "saved/small").iterdir()
    assert not (run / "metrics.jsonl").exists()
    monkeypatch.setattr(BrokenValidation, "broken", False)
    trained = train.main(["-r", str(run)])
    whole = fit(*broken)
    assert same(state(run)["model"], state(whole.run_dir)["model"])
    assert lines(run) == lines(whole.run_dir)
    assert trained.steps == whole.steps


class OnlySpread(Trainer):
    """Its validation returns no loss."""

    logs = ("spread",)

    def validate(self) -> dict[str, float]:
        return {"spread": 1.0}


class NeverMeasures(Trainer):
    """Measures a value in no epoch."""

    logs = ("bleu",)

    def evaluate(self, *args: Any, **more: Any) -> dict[str, Any]:
        return super().evaluate(*args, **more) | {"bleu": None}


def test_a_monitored_value_that_nothing_logs_costs_no_epoch(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = "trainer.monitor=min val_spread"
    with pytest.raises(ConfigError, match=r"trainer\.monitor: no step has logged val_loss; expected one of: loss, "):
        fit("trainer.type=OnlySpread", "trainer.epochs=2", "trainer.monitor=min val_loss")
    assert "step 5 is saved; -r starts with the validation after it" in capsys.readouterr().err
    (run,) = (tmp_path / "saved/small").iterdir()
    train.main(["-r", str(run), monitor])
    whole = fit("trainer.type=OnlySpread", "trainer.epochs=2", monitor)
    assert same(state(run)["model"], state(whole.run_dir)["model"])
    assert lines(run) == lines(whole.run_dir)


def test_a_value_that_is_measured_in_no_epoch_is_named(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("trainer.type=NeverMeasures", "trainer.epochs=2", "trainer.early_stop=1")
    assert fit(*keys, "trainer.monitor=max val_bleu").epochs == 2
    assert "none: val_bleu was not measured in any epoch, so no best.pth was saved" in capsys.readouterr().out


class Seldom(Trainer):
    """Measures a value in every third epoch: by evaluate, or in each step."""

    logs = ("score", "spread")

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def measured(self, value: Any) -> Any:
        return value if self.epoch % 3 == 0 else None

    def eval_step(self, batch: Any) -> StepResult:
        result = super().eval_step(batch)
        return result._replace(log={"spread": self.measured(result.outputs.std())})

    def evaluate(self, *args: Any, **more: Any) -> dict[str, Any]:
        return super().evaluate(*args, **more) | {"score": self.measured(float(self.epoch))}


@pytest.mark.parametrize("name", ["score", "spread"])
def test_a_monitored_value_need_not_be_measured_in_every_epoch(fit: Fit, name: str) -> None:
    monitor = f"trainer.monitor=max val_{name}"
    plateau = {"type": "ReduceLROnPlateau", "args": {"patience": 0}}
    keys = ("trainer.type=Seldom", "trainer.epochs=7", monitor, "trainer.early_stop=2")
    run = fit(*keys, lr_scheduler=plateau)
    tested = load_script("test").main(["-r", str(run.run_dir)])
    logged = lines(run.run_dir)
    assert [line["epoch"] for line in logged if f"val_{name}" in line] == [3, 6]
    assert len(logged) == 7
    assert run.best == max(line[f"val_{name}"] for line in logged if f"val_{name}" in line)
    assert state(run.run_dir, "best.pth")["progress"]["epochs"] in (3, 6)
    assert name in tested
    train.main(["-r", str(run.run_dir), "trainer.monitor=min val_loss", "trainer.epochs=8"])
    train.main(["-r", str(run.run_dir), monitor, "trainer.epochs=9"])
    assert len(lines(run.run_dir)) == 9


def test_a_run_stops_early_by_the_measured_epochs(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("trainer.type=Seldom", "trainer.epochs=9", "trainer.early_stop=1")
    assert len(lines(fit(*keys, "trainer.monitor=min val_score").run_dir)) == 6
    assert "stopped early: val_score did not improve for 1 measured epoch\n" in capsys.readouterr().out
    fit(*keys, "trainer.monitor=max val_loss")
    assert "stopped early: val_loss did not improve for 1 epoch\n" in capsys.readouterr().out


def test_a_first_training_batch_after_a_validation_is_checked_as_one(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a run is resumed with its validation."""

    def mistaken(self: Trainer, batch: Any) -> StepResult:
        raise ValueError("another mistake of mine")

    with pytest.raises(UserError, match="a mistake of mine"):
        fit("trainer.type=BrokenValidation", "trainer.epochs=2")
    (run,) = (tmp_path / "saved/small").iterdir()
    monkeypatch.setattr(BrokenValidation, "broken", False)
    monkeypatch.setattr(BrokenValidation, "train_step", mistaken)
    with pytest.raises(UserError, match=r"the first batch .* failed in the model, the loss or a metric: another"):
        train.main(["-r", str(run)])


class UsesSelfFirst(Trainer):
    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        self.teacher = self.model
        super().__init__(experiment, settings)


def test_a_constructor_that_uses_self_before_its_base_class_is_named(fit: Fit) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no attribute 'model'.*self.teacher = self.model"):
        fit("trainer.type=UsesSelfFirst")


class PlaysEpisodes(Trainer):
    """Validates without data."""

    logs = ("episode",)

    def validate(self) -> dict[str, float]:
        with self.evaluating():
            return {"episode": float(self.model(torch.randn(4, 6)).sum())}


def test_a_validation_of_ones_own_needs_no_validation_data(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["data_loader.args.validation_split=0", "trainer.type=PlaysEpisodes", "trainer.monitor=max val_episode"]
    run = fit(*overrides, "trainer.tensorboard=true")
    with pytest.raises(ConfigError, match=r"logged episode; expected one of: .*val_episode"):
        fit(*overrides[:2], "trainer.monitor=max episode")
    assert run.best == max(epoch["val_episode"] for epoch in run.history)
    shown = unquote(capsys.readouterr().out)
    assert '"tag":"episode/valid"' in shown
    assert "episode/train" not in shown  # no training step logs it


class OnlyPlays(PlaysEpisodes):
    """Its eval_step does nothing, which base_trainer demands."""

    def eval_step(self, batch: Any) -> StepResult:
        raise NotImplementedError


def test_a_validation_of_ones_own_without_data_needs_no_eval_step(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("data_loader.args.validation_split=0", "trainer.type=OnlyPlays", "trainer.tensorboard=true")
    assert "warning" not in capsys.readouterr().err
    with pytest.raises(UserError, match="metric: NotImplementedError"):
        load_script("test").main(["-r", str(run.run_dir)])
