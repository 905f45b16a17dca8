"""Any state of an optimizer is resumed to the bit, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import train
from base.base_model import BaseModel
from base.data.batches import StepBatches
from base.load_run import load_run
from base.training.state import load_part
from tests.helpers import Fit, copy_run, lines, registering, same, state, temporarily
from trainer.trainer import Trainer
from utils.errors import CheckpointError, ConfigError
from utils.optimizers import forgets
from utils.registry import MODELS, OPTIMIZERS, TRAINERS


class Double(BaseModel):
    """Computes in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.double())  # type: ignore[no-any-return]


class Own(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})


class Precise(Own):
    """Sums the gradients of float32 weights in float64, and counts its steps in an integer tensor."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                own = self.state[parameter]
                if not own:
                    own["count"] = torch.zeros((), dtype=torch.int64)
                    own["sums"] = [torch.zeros_like(parameter, dtype=torch.float64)]
                own["count"] += 1
                own["sums"][0] += parameter.grad.double() / own["count"]
                parameter -= group["lr"] * own["sums"][0].float()


class Shared(torch.optim.Optimizer):
    """Follows the sign of the mean gradient: keeps one value for all parameters, and a tensor for each."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        shared = self.state["shared"]  # type: ignore[index]
        shared["steps"] = shared.get("steps", 0) + 1
        for group in self.param_groups:
            for parameter in group["params"]:
                mean = self.state[parameter] if parameter in self.state else torch.zeros_like(parameter)
                mean = torch.lerp(mean, parameter.grad, 1 / shared["steps"])
                self.state[parameter] = mean
                parameter -= group["lr"] * mean.sign()


class SAM(torch.optim.Optimizer):
    """As it is widely copied: takes its steps by another optimizer."""

    def __init__(self, params: Any, lr: float = 0.1, rho: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=lr, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        loss = closure()
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        with torch.no_grad():
            moves = [self.defaults["rho"] * parameter.grad.sign() for parameter in parameters]
            torch._foreach_add_(parameters, moves)
        closure()
        with torch.no_grad():
            torch._foreach_sub_(parameters, moves)
        self.base_optimizer.step()
        return loss

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self.base_optimizer.param_groups = self.param_groups


class SavedSAM(SAM):
    """As the message asks for."""

    def state_dict(self) -> Any:
        return {**super().state_dict(), "base": self.base_optimizer.state_dict()}

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self.base_optimizer.load_state_dict(state_dict["base"])
        self.param_groups = self.base_optimizer.param_groups


class Renaming(torch.optim.SGD):
    """Its arguments have other names in its groups, in which it also keeps a number of its own."""

    def __init__(self, params: Any, rate: float = 0.1, decay: float = 0.0) -> None:
        super().__init__(params, lr=rate, weight_decay=decay)
        self.param_groups[0]["count"] = 0

    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["count"] += 1
        return super().step(closure)


OWN = (Precise, Shared, SAM, SavedSAM, Renaming)


_registered = registering((MODELS, Double), (OPTIMIZERS, *OWN))


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        *(("Double", name) for name in ("NAdam", "ASGD", "Adam")),
        *(("TwoLayerNet", name) for name in ("Precise", "Shared", "SavedSAM")),
    ],
)
def test_state_of_another_dtype_than_its_parameter_resumes_exactly(
    fit: Fit, tmp_path: Path, model: str, optimizer: str
) -> None:
    keys: dict[str, Any] = {"optimizer": {"type": optimizer, "args": {"lr": 0.1}}}
    if model == "Double":
        keys["model"] = "Double"
    whole = fit("trainer.save_every_steps=2", "trainer.keep_last=null", **keys).run_dir
    resumed = copy_run(whole, tmp_path)
    train.main(["-r", str(resumed / "checkpoints" / "step-00000006.pth")])
    assert same(state(whole)["optimizer"], state(resumed)["optimizer"])
    assert same(state(whole)["model"], state(resumed)["model"])
    assert lines(whole) == lines(resumed)


def test_the_state_of_an_inner_optimizer_must_be_saved_and_loaded() -> None:
    class OnlySaved(SavedSAM):
        load_state_dict = torch.optim.Optimizer.load_state_dict

    class Sharing(SAM):
        def __init__(self, params: Any) -> None:
            super().__init__(params)
            self.base_optimizer.state = self.state

    for kind, lost in ((SAM, True), (SavedSAM, False), (OnlySaved, True), (Sharing, False)):
        optimizer = kind([nn.Parameter(torch.ones(1))])
        assert forgets(optimizer, optimizer.base_optimizer) == lost, kind


def test_an_optimizer_whose_checkpoint_would_lack_the_state_of_another_is_refused(fit: Fit, tmp_path: Path) -> None:
    says = r"config.json:\d+:\d+: optimizer: SAM.base_optimizer is itself an optimizer, SGD, whose state a checkpoint"
    with pytest.raises(ConfigError, match=says):
        fit(optimizer={"type": "SAM", "args": {"lr": 0.1}})
    assert not list(tmp_path.glob("saved/*/*"))


@pytest.mark.parametrize("schedule", [None, {"type": "StepLR", "args": {"step_size": 1}}])
def test_a_changed_argument_with_another_name_in_the_groups_takes_effect(fit: Fit, schedule: Any) -> None:
    run = fit(optimizer={"type": "Renaming", "args": {"decay": 0.01}}, lr_scheduler=schedule).run_dir
    steps = state(run)["progress"]["steps"]
    train.main(["-r", str(run), "trainer.epochs=3", "optimizer.args.decay=0.02", "lr_scheduler=null"])
    [group] = state(run)["optimizer"]["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.02)
    assert group["count"] == state(run)["progress"]["steps"] > steps


class Reordered(nn.Module):
    """Two layers of the same shape, created in the order that the class says."""

    layers: tuple[str, ...] = ("first", "second")

    def __init__(self) -> None:
        super().__init__()
        for name in self.layers:
            setattr(self, name, nn.Linear(6, 6))
        self.last = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.second(self.first(inputs)))  # type: ignore[operator, no-any-return]


def test_an_optimizers_state_is_not_taken_for_that_of_other_parameters(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    with temporarily(MODELS, Reordered):
        run = fit(model="Reordered", optimizer="Adam").run_dir
        monkeypatch.setattr(Reordered, "layers", ("second", "first"))
        with pytest.raises(CheckpointError, match=r"first.weight is now created after second.weight, and was created"):
            train.main(["-r", str(run), "trainer.epochs=3"])
        load_run(run)


class Pruned(nn.Linear):
    """Registers a parameter again in training, as pruning does."""

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.weight
        del self.weight
        self.weight = weight
        return super().forward(inputs)


def test_a_parameter_may_be_registered_again_in_training(fit: Fit) -> None:
    model = {"type": "Pruned", "args": {"in_features": 6, "out_features": 3}}
    with temporarily(MODELS, Pruned):
        whole = fit(model=model, optimizer="Adam", trainer={"epochs": 3}).run_dir
        run = fit(model=model, optimizer="Adam").run_dir
        train.main(["-r", str(run), "trainer.epochs=3"])
    assert same(state(whole)["optimizer"], state(run)["optimizer"])


class Evaluating(torch.optim.SGD):
    """Keeps the losses that it computes."""

    losses: ClassVar[list[Tensor]] = []

    def step(self, closure: Callable[[], Tensor]) -> Any:  # type: ignore[override]
        self.losses.append(closure())
        return super().step()


def test_an_optimizer_gets_the_loss_in_the_precision_of_the_weights(fit: Fit) -> None:
    with temporarily(OPTIMIZERS, Evaluating):
        for model, dtype in (("Double", torch.float64), ("TwoLayerNet", torch.float32)):
            Evaluating.losses.clear()
            keys = {"model": model} if model == "Double" else {}
            result = fit("--bs=40", optimizer="Evaluating", **keys)
            assert [loss.dtype for loss in Evaluating.losses] == [dtype] * 2
            assert [float(loss) for loss in Evaluating.losses] == [record["loss"] for record in lines(result.run_dir)]


class Listed(nn.Linear):
    """A part of a trainer's own, whose state is a list."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return [super().state_dict(*args, **kwargs)]

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(state_dict[0], *args, **kwargs)


def test_a_module_may_save_its_state_in_a_form_of_its_own() -> None:
    saved, loaded = Listed(2, 2), Listed(2, 2)
    load_part(loaded, saved.state_dict(), in_order=True)
    assert torch.equal(saved.weight, loaded.weight)


class Sliced(BaseModel):
    """Its weight may be a part of a larger table, as nn.Embedding.from_pretrained(table[:, :6], freeze=False) has."""

    def __init__(self, *, sliced: bool) -> None:
        super().__init__()
        table = torch.linspace(-1, 1, 27).view(3, 9)[:, :6]
        self.weight = nn.Parameter(table if sliced else table.clone(memory_format=torch.contiguous_format))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.T


FUSED = ["AdamW", {"type": "SGD", "args": {"lr": 0.1, "momentum": 0.9}}]


@pytest.mark.parametrize("optimizer", FUSED)
def test_a_weight_that_is_a_part_of_a_larger_tensor_is_trained_like_any_other(fit: Fit, optimizer: Any) -> None:
    with temporarily(MODELS, Sliced):
        sliced, whole = (
            fit(model={"type": "Sliced", "args": {"sliced": each}}, optimizer=optimizer).run_dir
            for each in (True, False)
        )
    torch.testing.assert_close(state(sliced)["model"], state(whole)["model"])


class Transposing(Trainer):
    """As the Q of torch.linalg.qr, which an orthogonal weight may be set to after each step."""

    def optimizer_step(self, step: StepBatches) -> Any:
        loss = super().optimizer_step(step)
        weight = self.experiment.model.get_parameter("fc1.weight")
        weight.data = weight.data.T.contiguous().T
        return loss


@pytest.mark.parametrize("optimizer", FUSED)
def test_a_step_that_gives_a_weight_another_memory_format_is_refused(fit: Fit, optimizer: Any) -> None:
    with temporarily(TRAINERS, Transposing), pytest.raises(ConfigError, match=r"gave fc1.weight another memory format"):
        fit("trainer.type=Transposing", optimizer=optimizer)


def test_without_a_fused_kernel_a_step_may_change_the_memory_format(fit: Fit) -> None:
    with temporarily(TRAINERS, Transposing):
        changed = fit("trainer.type=Transposing", optimizer="RMSprop").run_dir
    torch.testing.assert_close(state(changed)["model"], state(fit(optimizer="RMSprop").run_dir)["model"])


class Thin(BaseModel):
    """Strides of dimensions of size 1, which both its weights have, mean nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs.view(-1, 1, 2, 3)).relu()).mean((2, 3))  # type: ignore[no-any-return]


class Rescaling(Trainer):
    """As weight normalization, which sets weights by their rows."""

    def optimizer_step(self, step: StepBatches) -> Any:
        loss = super().optimizer_step(step)
        for weight in (parameter for parameter in self.model.parameters() if parameter.dim() == 4):
            weight.data = weight.data.reshape(len(weight), -1).contiguous().view(weight.shape)
        return loss


@pytest.mark.parametrize("optimizer", FUSED)
def test_a_step_may_change_the_strides_of_dimensions_of_size_1(fit: Fit, optimizer: Any) -> None:
    with temporarily(MODELS, Thin), temporarily(TRAINERS, Rescaling):
        changed = fit("trainer.type=Rescaling", model="Thin", optimizer=optimizer).run_dir
        plain = fit(model="Thin", optimizer=optimizer).run_dir
    torch.testing.assert_close(state(changed)["model"], state(plain)["model"])


class Replacing(Trainer):
    """As gradient surgery, which gives each weight a part of one vector."""

    def compute_gradients(self, step: StepBatches, **more: Any) -> Any:
        loss = super().compute_gradients(step, **more)
        for parameter in self.model.parameters():
            assert parameter.grad is not None
            parameter.grad = parameter.grad.flatten().view(parameter.shape)
        return loss


class Wide(Thin):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(4, 3, 2)


@pytest.mark.parametrize("optimizer", FUSED)
def test_gradients_in_another_memory_format_than_their_weights_are_refused(fit: Fit, optimizer: Any) -> None:
    with temporarily(MODELS, Wide), temporarily(MODELS, Thin), temporarily(TRAINERS, Replacing):
        fit("trainer.type=Replacing", model="Thin", optimizer=optimizer)
        with pytest.raises(ConfigError, match=r"gave second.weight a gradient in another memory format"):
            fit("trainer.type=Replacing", model="Wide", optimizer=optimizer)
        replaced = fit("trainer.type=Replacing", model="Wide", optimizer="RMSprop").run_dir
        plain = fit(model="Wide", optimizer="RMSprop").run_dir
    torch.testing.assert_close(state(replaced)["model"], state(plain)["model"])
