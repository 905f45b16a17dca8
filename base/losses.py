"""Builds the loss from the config: a single one, or a weighted sum of several by name."""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from base.construct import arguments_of, construct
from base.metric import check_loss, outputs_and_targets, with_count
from base.training.loss import OWN_MEAN, CountedLoss, Loss, count_targets, no_loss, take_count
from base.training.parameters import loss_module, stateful_loss, unregistered_weights
from utils.config import LoadedConfig, located
from utils.errors import ConfigError, errors_at
from utils.random import seed_generators
from utils.registry import LOSSES
from utils.schema import Component, KeyPath
from utils.tree import to_device

# older versions of torch have no LinearCrossEntropyLoss
CLASS_LOSSES: Any = tuple(
    getattr(nn, name) for name in ("CrossEntropyLoss", "NLLLoss", "LinearCrossEntropyLoss") if hasattr(nn, name)
)


@located
def build_loss(loaded: LoadedConfig, device: torch.device) -> tuple[Loss, bool]:
    """The loss, and whether it sums over the samples, from its argument or attribute "reduction".

    Raises ConfigError with the source location of what cannot be built.
    """
    losses = loaded.config.losses
    seed_generators(loaded.config.seed, "loss")
    if not losses:
        return no_loss, False
    if "" in losses:
        loss, reduction = _build(losses[""], ("loss",), device)
        return loss, reduction == "sum"
    built = {name: _build(component, ("loss", name), device) for name, component in losses.items()}
    sums = [name for name, (_, reduction) in built.items() if reduction == "sum"]
    if sums and len(sums) < len(built):
        raise ConfigError("this loss is a sum over the samples, but another one is a mean", ("loss", sums[0]))
    taken = dir(LossSum({}, {}))
    if of_torch := [name for name, (loss, _) in built.items() if name in taken and stateful_loss(loss) is not None]:
        message = "a loss with its own state is a module inside another, which has an attribute of this name"
        raise ConfigError(f"{message} already; give it another name", ("loss", of_torch[0]))
    for name, (loss, _) in built.items():
        loss.name = f'"{name}"'
    weights = {name: component.weight for name, component in losses.items()}
    return LossSum({name: loss for name, (loss, _) in built.items()}, weights).to(device), bool(sums)


def _build(component: Component, at: KeyPath, device: torch.device) -> tuple[CountedLoss, str]:
    """A loss and its reduction."""
    function = LOSSES[component.type]
    loss: Loss
    if inspect.isclass(function):
        module = construct(LOSSES, component, at, nn.Module)
        if unregistered := unregistered_weights(module):
            raise ConfigError(unregistered, at)
        loss, reduction = module.to(device), getattr(module, "reduction", "mean")
    else:
        args = arguments_of(LOSSES, component.type, component.args, (*at, "args"))
        modules = [value for value in args.values() if isinstance(value, nn.Module)]
        if any(next(module.parameters(), None) is not None for module in modules):
            raise ConfigError(f"{component.type} has parameters, which no optimizer would train", at)
        on_device = to_device(args, device)
        loss, reduction = functools.partial(function, **on_device), component.args.get("reduction", "mean")
    # that of KLDivLoss is a mean over samples; torch's other losses have none
    batch_mean = component.type == "KLDivLoss" or component.type in LOSSES.own()
    if reduction not in ("mean", "sum") and not (batch_mean and reduction == "batchmean"):
        message = f'the loss must be "mean" or "sum" over the samples, not {reduction!r}'
        raise ConfigError(message, (*at, "args", "reduction"))
    with errors_at(at):
        return counted(loss), reduction


def counted(loss: Callable[..., Tensor]) -> CountedLoss:
    """A loss that knows what it is averaged over.

    Among torch's losses, only those for class indices are not averaged over samples: cross entropy and negative log
    likelihood skip ``ignore_index``, weight the classes, and have a target for each token or pixel. Your own loss class
    can define a method ``count(outputs, targets)``; a subclass of torch's with its own ``forward`` must if it has
    weights, an ``ignore_index``, or targets of -100.
    """
    if callable(own_count := getattr(loss, "count", None)):
        return CountedLoss(loss, own_count)
    if isinstance(loss, CLASS_LOSSES) and loss.reduction == "mean":
        ignore = -100 if loss.ignore_index is None else loss.ignore_index
        if type(loss).forward not in [each.forward for each in CLASS_LOSSES]:
            if loss.weight is None and ignore == -100:
                count = functools.partial(count_targets, weight=None, ignore=-100)
                return CountedLoss(loss, count, own_mean=True)
            raise ConfigError(OWN_MEAN.format(type(loss).__name__))
        total = _total(functools.partial(_with_reduction, loss))
        return CountedLoss(loss, functools.partial(count_targets, weight=loss.weight, ignore=ignore), total)
    if isinstance(loss, functools.partial) and loss.func.__name__ in ("cross_entropy", "nll_loss"):
        weight, ignore = loss.keywords.get("weight"), loss.keywords.get("ignore_index", -100)
        if loss.func.__module__ in ("model.loss", F.__name__) and loss.keywords.get("reduction", "mean") == "mean":
            total = _total(lambda reduction: functools.partial(loss, reduction=reduction))
            return CountedLoss(loss, functools.partial(count_targets, weight=weight, ignore=ignore), total)
    return CountedLoss(loss)


def _with_reduction(loss: Any, reduction: str) -> Any:
    changed = copy.copy(loss)
    changed.reduction = reduction
    return changed


def _total(with_reduction: Callable[[str], Loss]) -> Loss:
    """The sum of a loss over all targets.

    torch's own sum over pixels or tokens, outputs of shape (B, C, ...), adds in no fixed order on a GPU.
    """
    total, each = with_reduction("sum"), with_reduction("none")

    def summed(*args: Any, **kwargs: Any) -> Tensor:
        outputs, _ = outputs_and_targets(args, kwargs)
        return total(*args, **kwargs) if outputs.dim() <= 2 else each(*args, **kwargs).sum()

    return summed


class LossSum(nn.Module):
    """A weighted sum of losses by name.

    If outputs or targets are a dict, a loss whose name is in it gets only that entry.
    """

    def __init__(self, losses: Mapping[str, CountedLoss], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.losses, self.weights = dict(losses), dict(weights)
        for name, loss in losses.items():
            if (module := stateful_loss(loss)) is not None:
                self.add_module(name, module)  # by name, so that its parameters are trained and saved
        self.last_count: Tensor | float | None = None
        self._parts = dict[str, Tensor]()

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        values, counts = dict[str, Tensor](), list[Any]()
        for name, loss in self.losses.items():
            values[name] = loss(part_of(outputs, name), part_of(targets, name))
            check_loss(values[name], f'the loss "{name}" returned a value')
            counts.append(take_count(loss))
        # the parts may be averaged over different numbers; whether the sum is over samples must not depend on the batch
        self.last_count = None if any(count is None for count in counts) else sum(counts) / len(counts)
        self._parts = {
            name: with_count(values[name].detach(), count) for name, count in zip(values, counts, strict=True)
        }
        total: Tensor = sum(self.weights[name] * value for name, value in values.items())  # type: ignore[assignment]
        return with_count(total, self.last_count)

    def train(self, mode: bool = True) -> Self:
        for module in filter(None, map(loss_module, self.losses.values())):
            module.train(mode)
        return super().train(mode)

    def take_parts(self) -> dict[str, Tensor]:
        """The values of the losses in the last call, returned once."""
        parts, self._parts = self._parts, {}
        return parts


def part_of(nest: Any, name: str) -> Any:
    """What the loss of a name gets of outputs or targets."""
    return nest[name] if isinstance(nest, Mapping) and name in nest else nest
