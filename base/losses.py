"""From the config to the loss: one, or a weighted sum of several by name."""

import copy
import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from base.construct import arguments_of, construct, moved
from base.training.loss import CountedLoss, Loss, count_targets, no_loss
from base.training.loss_sum import LossSum
from utils.config import LoadedConfig
from utils.random import seed_generators
from utils.registry import LOSSES
from utils.schema import Component, KeyPath


def build_loss(loaded: LoadedConfig, device: torch.device) -> tuple[Loss, bool]:
    """The loss, and whether it sums over the samples. A loss says so by its argument or attribute "reduction".

    Raises ConfigError with the source location of what cannot be built.
    """
    losses = loaded.config.losses
    seed_generators(loaded.config.seed, "loss")
    if not losses:
        return no_loss, False
    if "" in losses:
        loss, reduction = _build(loaded, losses[""], ("loss",), device)
        return loss, reduction == "sum"
    made = {name: _build(loaded, component, ("loss", name), device) for name, component in losses.items()}
    sums = [name for name, (_, reduction) in made.items() if reduction == "sum"]
    if sums and len(sums) < len(made):
        raise loaded.error(("loss", sums[0]), "it is a sum over the samples, and another of these losses is a mean")
    weights = {name: component.weight for name, component in losses.items()}
    return LossSum({name: loss for name, (loss, _) in made.items()}, weights).to(device), bool(sums)


def _build(loaded: LoadedConfig, component: Component, at: KeyPath, device: torch.device) -> tuple[Loss, str]:
    """A loss and its reduction."""
    function = LOSSES[component.type]
    loss: Loss
    if inspect.isclass(function):
        module = construct(loaded, LOSSES, component, at, nn.Module)
        loss, reduction = module.to(device), getattr(module, "reduction", "mean")
    else:
        args = arguments_of(loaded, LOSSES, component.type, component.args, (*at, "args"))
        modules = [value for value in args.values() if isinstance(value, nn.Module)]
        if any(next(module.parameters(), None) is not None for module in modules):
            raise loaded.error(at, f"{component.type} has parameters, which no optimizer would train")
        on_device = {name: moved(value, device) for name, value in args.items()}
        loss, reduction = functools.partial(function, **on_device), component.args.get("reduction", "mean")
    if reduction not in ("mean", "batchmean", "sum"):
        message = f'the loss must be "mean" or "sum" over the samples, not {reduction!r}'
        raise loaded.error((*at, "args", "reduction"), message)
    return counted(loss), reduction


def counted(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss that knows what it is a mean over; the loss itself if that is samples.

    Of torch's losses, only those that take class indices are not means over samples: cross entropy and negative log
    likelihood leave out ``ignore_index``, weight the classes, and have a target for each token or pixel. Your own loss
    class may have a method ``count(outputs, targets)``.
    """
    if callable(own := getattr(loss, "count", None)):
        return CountedLoss(loss, own)
    if isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) and loss.reduction == "mean":
        total: Callable[..., Tensor] | None = None
        if type(loss).forward in (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward):
            total = summed = copy.copy(loss)
            summed.reduction = "sum"
        return CountedLoss(loss, functools.partial(count_targets, weight=loss.weight, ignore=loss.ignore_index), total)
    if isinstance(loss, functools.partial) and loss.func.__name__ in ("cross_entropy", "nll_loss"):
        weight, ignore = loss.keywords.get("weight"), loss.keywords.get("ignore_index", -100)
        if loss.func.__module__ in ("model.loss", F.__name__) and loss.keywords.get("reduction", "mean") == "mean":
            total = functools.partial(loss, reduction="sum")
            return CountedLoss(loss, functools.partial(count_targets, weight=weight, ignore=ignore), total)
    return loss
