"""What a trainer or data loader may define for the start of an epoch, and show in TensorBoard."""

import copy
import os
import signal
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.utils import prune

import test
import train
from base.data.batches import StepBatches
from base.experiment import Experiment
from base.load_run import load_run, load_trainer
from base.metric import StepResult
from tests.helpers import Fit, equal, identical, lines, registering, resumed, same, state, temporarily
from tests.small_data import SmallSamples
from trainer.trainer import Trainer
from utils.errors import ConfigError, Stopped, UserError
from utils.registry import DATA_LOADERS, TRAINERS
from utils.run_folder import RunFolder
from utils.schema import Command, TrainerConfig


class Warming(Trainer):
    """The loss grows with the epoch, and each evaluation shows what it has seen."""

    logs = ("factor",)
    factor = 0.0

    def begin_epoch(self, epoch: int) -> None:
        self.factor = epoch / 10
        self.noise = torch.rand(3)
        self.text("factor", f"**{self.factor}**")

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.model(inputs) + 0.1 * torch.rand(3) * self.noise
        loss = self.factor * self.criterion(outputs, targets)
        self.backward(loss)
        return StepResult(loss, outputs, targets, log={"factor": self.factor})

    def eval_step(self, batch: Any) -> StepResult:
        self.picture("samples", torch.rand(3, 1, 5, 4))
        return super().eval_step(batch)


class Wrong(Warming):
    images: ClassVar[Any] = None

    def eval_step(self, batch: Any) -> StepResult:
        self.picture("samples", self.images)
        return super().eval_step(batch)


class Still(Trainer):
    """Trains with a module in evaluation mode, as with a BatchNorm whose statistics must stay."""

    def begin_epoch(self, epoch: int) -> None:
        self.modes: list[tuple[bool, ...]] = []
        self.experiment.model.fc2.eval()  # type: ignore[union-attr]

    def train_step(self, batch: Any) -> StepResult:
        self.modes.append(tuple(module.training for module in self.model.modules()))
        return super().train_step(batch)

    def end_epoch(self, validation: dict[str, float]) -> None:
        super().end_epoch(validation)
        print("modes", *sorted(set(self.modes)))


class Reversing(Trainer):
    """Changes the gradients of a step once they are complete."""

    def compute_gradients(self, step: StepBatches, **more: Any) -> Any:
        loss = super().compute_gradients(step, **more)
        for parameter in self.training.parameters:
            assert parameter.grad is not None
            parameter.grad.neg_()
        return loss


class Penalizing(Trainer):
    """Adds the gradients of a penalty to those of a step once they are complete."""

    def compute_gradients(self, step: StepBatches, **more: Any) -> Any:
        loss = super().compute_gradients(step, **more)
        parameters: list[Any] = self.training.parameters
        expected = [each.grad + each for each in parameters]
        self.backward(sum(each.square().sum() for each in parameters) / 2)
        torch.testing.assert_close([each.grad for each in parameters], expected)
        return loss


class Showing(Still):
    """Puts the whole model into evaluation mode to show samples, and leaves it there."""

    def begin_epoch(self, epoch: int) -> None:
        self.modes = []
        self.model.eval()


class Growing(SmallSamples):
    """Images that are brighter in each epoch."""

    epoch = 0

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def training_data(self, *, augment: bool) -> Any:
        return _Brightened(SmallSamples.training_data(self, augment=augment), self)


class GrowingInTests(Growing):
    def test_data(self) -> Any:
        return _Brightened(super().test_data(), self)

    validation_data = test_data


class Changed(SmallSamples):
    """Images that the trainer makes brighter."""

    epoch = 0
    training_data = Growing.training_data


class Changing(Trainer):
    def begin_epoch(self, epoch: int) -> None:
        self.experiment.data.epoch = epoch  # type: ignore[attr-defined]


class _Brightened(torch.utils.data.Dataset[Any]):
    def __init__(self, data: Any, loader: Any) -> None:
        self.data, self.loader = data, loader

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        inputs, target = self.data[index]
        return inputs + self.loader.epoch, target


_registered = registering((TRAINERS, Warming, Wrong, Still, Showing, Changing), (DATA_LOADERS, Growing, Changed))


def shown(run: Path) -> tuple[list[Any], list[Any]]:
    """The pictures and texts of TensorBoard, as (step, content)."""
    events = EventAccumulator(str(run), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    images = [(event.step, event.encoded_image_string) for event in events.Images("samples")]
    texts = [(event.step, event.tensor_proto.string_val[0]) for event in events.Tensors("factor")]
    return images, texts


@pytest.mark.usefixtures("tensorboard")
def test_a_trainer_changes_with_the_epoch_and_resumes_exactly(fit: Fit, tmp_path: Path) -> None:
    run = fit("trainer.type=Warming", "trainer.save_every_steps=2", "trainer.keep_last=null").run_dir
    assert [line["factor"] for line in lines(run)] == pytest.approx([0.1, 0.2])
    identical(run, resumed(run, tmp_path, 8))


@pytest.mark.usefixtures("tensorboard")
def test_pictures_and_texts_are_in_tensorboard_once(fit: Fit, tmp_path: Path) -> None:
    run = fit("trainer.type=Warming", "trainer.save_every_steps=2", "trainer.keep_last=null").run_dir
    images, texts = shown(run)
    assert [step for step, _ in images] == [5, 10]  # of the first of the two batches of each validation
    assert texts == [(0, b"**0.1**"), (5, b"**0.2**")]
    assert shown(resumed(run, tmp_path, 8)) == (images, texts)


@pytest.mark.parametrize(("kind", "trained"), [("Still", "(True, False, False)"), ("Showing", "(True, False, True)")])
def test_a_module_keeps_the_mode_of_the_epoch(
    fit: Fit, capsys: pytest.CaptureFixture[str], kind: str, trained: str
) -> None:
    frozen = 'trainer.freeze=[{"params": ["fc1.*"]}]'
    fit(f"trainer.type={kind}", "trainer.validate_every_steps=2", "trainer.epochs=2", frozen)
    modes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("modes")]
    assert modes == [f"modes {trained}"] * 2


def test_a_trainer_may_change_the_gradients_of_a_step(fit: Fit) -> None:
    with temporarily(TRAINERS, Reversing):
        reversed_twice = fit("trainer.type=Reversing", "optimizer.args.maximize=true").run_dir
    assert same(state(reversed_twice)["model"], state(fit().run_dir)["model"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_trainer_may_add_gradients_to_those_of_a_step(fit: Fit, accumulate: int) -> None:
    with temporarily(TRAINERS, Penalizing):
        fit("trainer.type=Penalizing", "trainer.epochs=1", f"trainer.accumulate_steps={accumulate}")


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.rand(3, 5), r"\(3, 5\) float32"),
        (torch.rand(0, 3, 8, 8), r"\(0, 3, 8, 8\) float32"),
        (np.zeros((2, 3, 8, 8)), "type ndarray"),
        ([torch.rand(3, 8, 8)], "type list"),
    ],
)
def test_what_is_not_an_image_is_refused(fit: Fit, monkeypatch: pytest.MonkeyPatch, images: Any, got: str) -> None:
    monkeypatch.setattr(Wrong, "images", images)
    says = rf"picture 'samples': expected a tensor of images of shape \(B, C, H, W\), got {got}"
    with pytest.raises(ConfigError, match=says):
        fit("trainer.type=Wrong")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_changes_with_the_epoch(fit: Fit, tmp_path: Path, workers: int) -> None:
    data = {"type": "Growing", "args": {"batch_size": 8, "num_workers": workers}}
    options = ("trainer.save_every_steps=2", "trainer.keep_last=null", "trainer.epochs=3", "metrics=[]")
    run = fit(*options, data_loader=data, model="LeNet").run_dir
    steps = sorted((run / "checkpoints").glob("step-*.pth"))
    equal(run, resumed(run, tmp_path, int(steps[-2].stem.removeprefix("step-"))))


@pytest.mark.slow
def test_a_data_loader_changes_with_the_epoch_for_validation_too(fit: Fit) -> None:
    data = {"type": "Growing", "args": {"batch_size": 8, "validation_split": 0.2}}
    logged = [
        lines(fit("metrics=[]", f"data_loader.args.num_workers={workers}", data_loader=data, model="LeNet").run_dir)
        for workers in (0, 1)
    ]
    assert logged[0] == logged[1]
    assert "val_loss" in logged[0][1]


def test_a_data_loader_has_the_epoch_of_the_checkpoint_in_tests_and_predictions(fit: Fit) -> None:
    with temporarily(DATA_LOADERS, GrowingInTests):
        result = fit("metrics=[]", data_loader={"type": "GrowingInTests", "args": {"batch_size": 8}}, model="LeNet")
        assert test.main(["-r", str(result.run_dir)])["loss"] == result.last["val_loss"]
        data: Any = load_trainer(result.run_dir, command=Command.PREDICT).experiment.data
    assert data.epoch == result.epochs


def test_the_loader_of_a_validation_set_changes_with_the_epoch(fit: Fit) -> None:
    with temporarily(DATA_LOADERS, GrowingInTests):
        own, growing = ({"type": name, "args": {"batch_size": 8}} for name in ("GrowingInTests", "Growing"))
        held_out = fit("metrics=[]", data_loader=own, model="LeNet")
        separate = fit("metrics=[]", data_loader=growing, validation=own, model="LeNet")
    assert held_out.last["val_loss"] == separate.last["val_loss"]


class DrawingLoader(Growing):
    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        torch.rand(3)


class DrawingTrainer(Trainer):
    drawn: ClassVar[list[float]] = []

    def begin_epoch(self, epoch: int) -> None:
        self.drawn.append(float(torch.rand(())))


def test_a_trainer_draws_the_same_before_a_test_whatever_the_loader_draws(fit: Fit) -> None:
    with temporarily(DATA_LOADERS, DrawingLoader), temporarily(TRAINERS, DrawingTrainer):
        data = {"type": "DrawingLoader", "args": {"batch_size": 8}}
        result = fit("metrics=[]", "trainer.type=DrawingTrainer", data_loader=data, model="LeNet")
        load_trainer(result.run_dir)
    assert DrawingTrainer.drawn[-1] == DrawingTrainer.drawn[-2]


def test_workers_see_what_a_trainer_changes_in_the_data(fit: Fit) -> None:
    logged = [
        lines(fit("trainer.type=Changing", "metrics=[]", data_loader=data, model="LeNet").run_dir)
        for data in (
            {"type": "Growing", "args": {"batch_size": 8}},
            {"type": "Changed", "args": {"batch_size": 8}},
            {"type": "Changed", "args": {"batch_size": 8, "num_workers": 1}},
        )
    ]
    assert logged[0] == logged[1] == logged[2]


class Following(Trainer):
    """With a copy of the weights that follows after each optimizer step."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.follower = copy.deepcopy(experiment.model)

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "follower": self.follower}

    def optimizer_step(self, step: StepBatches) -> Tensor | float:
        loss = super().optimizer_step(step)
        with torch.no_grad():
            for own, new in zip(self.follower.parameters(), self.experiment.model.parameters(), strict=True):
                own.lerp_(new, 0.5)
        return loss


def test_what_follows_an_optimizer_step_is_done_once_for_all_its_micro_batches_and_resumes(fit: Fit) -> None:
    with temporarily(TRAINERS, Following):
        keys = ("trainer.type=Following", "trainer.accumulate_steps=2", "optimizer.args.momentum=0.9")
        whole = fit(*keys, "trainer.epochs=3").run_dir
        resumed = fit(*keys, "trainer.epochs=1").run_dir
        train.main(["-r", resumed, "trainer.epochs=3"])
    assert same(state(whole)["follower"], state(resumed)["follower"])
    once = ("trainer.accumulate_steps=2", "trainer.steps_per_epoch=1", "trainer.epochs=1")
    one, initial = fit(*once).run_dir, fit(*once, "optimizer.args.lr=0").run_dir
    with temporarily(TRAINERS, Following):
        own = fit("trainer.type=Following", *once)
    for name, follower in state(own.run_dir)["follower"].items():
        assert torch.allclose(follower, (state(initial)["model"][name] + state(one)["model"][name]) / 2)


class Ending(Following):
    """Adds the mean of the training data to a buffer at the end of each epoch."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.follower.register_buffer("means", torch.zeros(()))

    def optimizer_step(self, step: StepBatches) -> Tensor | float:
        loss = super().optimizer_step(step)
        if self.progress.trained:
            mean = torch.cat([batch.data[0] for batch in self.training.batches.one_pass()]).mean()
            self.follower.means += mean  # type: ignore[operator]
        return loss


@pytest.mark.parametrize("steps", [None, 3])
def test_what_ends_an_epoch_is_done_once_for_each_and_resumes(fit: Fit, tmp_path: Path, steps: int | None) -> None:
    keys = {"type": "Ending", "epochs": 3, "steps_per_epoch": steps, "save_every_steps": 1, "keep_last": None}
    with temporarily(TRAINERS, Ending):
        whole = fit(trainer=keys).run_dir
        at_the_end = resumed(whole, tmp_path, steps or 5)
        data = load_run(whole).data.training(0)
    assert same(state(whole)["follower"], state(at_the_end)["follower"])
    inputs = torch.cat([batch.data[0] for batch in data.one_pass()])
    assert torch.allclose(state(whole)["follower"]["means"], 3 * inputs.mean())


class Sampling(Trainer):
    """Calls the model before the first step, where its mistake shows first. after: epochs."""

    after = 0

    def begin_epoch(self, epoch: int) -> None:
        if epoch > self.after:
            self.experiment.model(torch.zeros(2, 77))


@pytest.mark.parametrize(("after", "kind"), [(0, UserError), (1, RuntimeError)])
def test_a_mistake_in_begin_epoch_is_one_message_before_the_first_step(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, after: int, kind: type[Exception]
) -> None:
    monkeypatch.setattr(Sampling, "after", after)
    with temporarily(TRAINERS, Sampling), pytest.raises(kind, match="mat1 and mat2 shapes") as error:
        fit("trainer.type=Sampling")
    if kind is UserError:
        assert str(error.value).startswith("begin_epoch failed before the first step: RuntimeError")
        assert "two_layer_net.py:" in str(error.value)


class NewLayer(Trainer):
    """Gives the model another last layer, or one more, or renames a weight, at some epoch."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig, *, name: str, epoch: int) -> None:
        super().__init__(experiment, settings)
        self.name, self.epoch = name, epoch

    def begin_epoch(self, epoch: int) -> None:
        if epoch == self.epoch and self.name == "fc1.weight_orig":
            prune.l1_unstructured(self.experiment.model.fc1, "weight", 0.5)  # type: ignore[no-untyped-call]
        elif epoch == self.epoch:
            self.experiment.model.add_module(self.name, nn.Linear(5, 3))


@pytest.mark.parametrize("name", ["fc2", "fc3", "fc1.weight_orig"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_parameters_that_begin_epoch_creates_are_refused(fit: Fit, tmp_path: Path, name: str, epoch: int) -> None:
    with (
        temporarily(TRAINERS, NewLayer),
        pytest.raises(ConfigError, match=rf"which no resumed run would have: {name}"),
    ):
        fit(f'trainer={{"type": "NewLayer", "args": {{"name": "{name}", "epoch": {epoch}}}, "save_dir": "{tmp_path}"}}')
    assert len([*tmp_path.glob("*/*/checkpoints/last.pth")]) == epoch - 1


class Assigning(Trainer):
    """Assigns to the data of a weight in the second epoch."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig, *, what: str) -> None:
        super().__init__(experiment, settings)
        self.what = what

    def begin_epoch(self, epoch: int) -> None:
        if epoch == 2:
            weight = self.experiment.model.get_parameter("fc1.weight")
            weights = {"the same": weight.data, "transposed": weight.data.T.contiguous().T, "double": weight.double()}
            weight.data = weights[self.what]


@pytest.mark.parametrize("optimizer", ["AdamW", {"type": "SGD", "args": {"lr": 0.1, "momentum": 0.9}}])
def test_weights_that_begin_epoch_lays_out_in_another_way_keep_their_optimizers_state(fit: Fit, optimizer: Any) -> None:
    with temporarily(TRAINERS, Assigning):
        trainer = {"type": "Assigning", "epochs": 3}
        runs = [
            fit(trainer={**trainer, "args": {"what": what}}, optimizer=optimizer).run_dir
            for what in ("the same", "transposed")
        ]
    assert state(runs[0])["optimizer"]["param_groups"][0]["fused"]
    identical(*runs)


def test_a_weight_that_begin_epoch_converts_is_refused(fit: Fit) -> None:
    message = r"changed fc1.weight from \(\d+, \d+\) float32 to \(\d+, \d+\) float64, which no resumed run would"
    with temporarily(TRAINERS, Assigning), pytest.raises(ConfigError, match=message):
        fit(trainer={"type": "Assigning", "args": {"what": "double"}, "epochs": 3})


class Counting(Trainer):
    """Counts its epochs in a part of the checkpoint, and may be stopped while it does."""

    stops = False

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.count = nn.BatchNorm1d(1)
        self.count.weight.requires_grad_(False)

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "count": self.count}

    def begin_epoch(self, epoch: int) -> None:
        self.count.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        if self.stops and epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            self.validate()


def test_a_signal_at_the_start_of_an_epoch_does_not_begin_it_twice(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("trainer.type=Counting", "trainer.epochs=3", "trainer.save_period=3", "trainer.tensorboard=true")
    with temporarily(TRAINERS, Counting):
        whole = fit(*options).run_dir
        with monkeypatch.context() as patch:
            patch.setattr(Counting, "stops", True)
            with pytest.raises(Stopped):
                fit(*options, name="stopped")
        stopped = RunFolder.newest(str(whole.parent.parent), "stopped").path
        train.main(["-r", str(stopped)])
    assert state(whole)["count"]["num_batches_tracked"] == 3
    identical(whole, stopped)
