"""Builds the loss from the config: a single one, or a weighted sum of several by name."""

import functools
import inspect

import torch
from torch import nn

from base.construct import arguments_of, construct
from base.training.loss import CountedLoss, Loss, LossSum, counted, no_loss, stateful_loss
from base.training.parameters import unregistered_weights
from utils.config import LoadedConfig, located
from utils.errors import ConfigError, errors_at
from utils.random import seed_generators
from utils.registry import LOSSES
from utils.schema import Component, KeyPath
from utils.tree import to_device


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
