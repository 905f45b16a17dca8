"""Builds the loss from the config: a single one, or a weighted sum of several by name."""

import copy
import functools
import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from base.construct import arguments_of, construct
from base.metric import check_loss, outputs_and_targets
from base.training.broadcast import name_of
from base.training.library_metric import LOGITS
from base.training.loss import CountedLoss, Loss, count_targets, no_loss, take_count, with_count
from base.training.parameters import loss_module, stateful_loss, unregistered_weights
from utils.config import LoadedConfig
from utils.errors import ConfigError
from utils.random import isolated, seed_generators
from utils.registry import LOSSES
from utils.schema import Component, KeyPath
from utils.tree import tensors, to_device
from utils.user_code import format_error_with_source


def build_loss(loaded: LoadedConfig, device: torch.device) -> tuple[Loss, bool]:
    """The loss, and whether it sums over the samples, from its argument or attribute "reduction".

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
        raise loaded.error(("loss", sums[0]), "this loss is a sum over the samples, but another one is a mean")
    taken = dir(LossSum({}, {}))
    if of_torch := [name for name, (loss, _) in made.items() if name in taken and stateful_loss(loss) is not None]:
        message = "a loss with a state of its own is a module inside another, which has an attribute of this name"
        raise loaded.error(("loss", of_torch[0]), f"{message} already; give it another name")
    weights = {name: component.weight for name, component in losses.items()}
    return LossSum({name: loss for name, (loss, _) in made.items()}, weights).to(device), bool(sums)


def _build(loaded: LoadedConfig, component: Component, at: KeyPath, device: torch.device) -> tuple[Loss, str]:
    """A loss and its reduction."""
    function = LOSSES[component.type]
    loss: Loss
    if inspect.isclass(function):
        module = construct(loaded, LOSSES, component, at, nn.Module)
        if unregistered := unregistered_weights(module):
            raise loaded.error(at, unregistered)
        loss, reduction = module.to(device), getattr(module, "reduction", "mean")
    else:
        args = arguments_of(loaded, LOSSES, component.type, component.args, (*at, "args"))
        modules = [value for value in args.values() if isinstance(value, nn.Module)]
        if any(next(module.parameters(), None) is not None for module in modules):
            raise loaded.error(at, f"{component.type} has parameters, which no optimizer would train")
        on_device = to_device(args, device)
        loss, reduction = functools.partial(function, **on_device), component.args.get("reduction", "mean")
    if reduction not in ("mean", "batchmean", "sum"):
        message = f'the loss must be "mean" or "sum" over the samples, not {reduction!r}'
        raise loaded.error((*at, "args", "reduction"), message)
    return counted(loss), reduction


def counted(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss that knows what it is averaged over; unchanged if that is samples.

    Among torch's losses, only those for class indices are not averaged over samples: cross entropy and negative log
    likelihood skip ``ignore_index``, weight the classes, and have a target for each token or pixel. Your own loss class
    can define a method ``count(outputs, targets)``; a subclass of torch's without it may average in a way of its own.
    """
    if name_of(loss) in LOGITS:
        return CountedLoss(loss, lambda *_: None)
    if callable(own := getattr(loss, "count", None)):
        return CountedLoss(loss, own)
    if isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) and loss.reduction == "mean":
        total: Callable[..., Tensor] | None = None
        if type(loss).forward in (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward):
            total = _total(functools.partial(_with_reduction, loss))
        elif not _averages_like_torch(loss):
            return loss
        return CountedLoss(loss, functools.partial(count_targets, weight=loss.weight, ignore=loss.ignore_index), total)
    if isinstance(loss, functools.partial) and loss.func.__name__ in ("cross_entropy", "nll_loss"):
        weight, ignore = loss.keywords.get("weight"), loss.keywords.get("ignore_index", -100)
        if loss.func.__module__ in ("model.loss", F.__name__) and loss.keywords.get("reduction", "mean") == "mean":
            total = _total(lambda reduction: functools.partial(loss, reduction=reduction))
            return CountedLoss(loss, functools.partial(count_targets, weight=weight, ignore=ignore), total)
    return loss


def _with_reduction(loss: nn.CrossEntropyLoss | nn.NLLLoss, reduction: str) -> nn.Module:
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


def _averages_like_torch(loss: nn.CrossEntropyLoss | nn.NLLLoss) -> bool:
    """Whether the mean of a subclass with its own forward follows from those of two halves of a batch as torch's does.

    Also true if it does not accept our small batch, with an ignored target and classes of different weights.
    """
    classes = 3 if loss.weight is None else len(loss.weight)
    outputs = torch.linspace(-1, 1, 4 * classes).square().view(4, classes).log_softmax(1)
    try:
        loss = copy.deepcopy(loss).cpu()  # it may change its buffers
        kept = [index for index in range(classes) if index != loss.ignore_index]
        targets = torch.tensor([kept[0], kept[-1], kept[-1], loss.ignore_index])
        with isolated("loss"), torch.no_grad():
            whole, *means = (float(loss(outputs[part], targets[part])) for part in (slice(4), slice(2), slice(2, 4)))
    except Exception:  # any error, in the user's code
        return True
    count = functools.partial(count_targets, outputs, weight=loss.weight, ignore=loss.ignore_index)
    first, second = (float(count(half)) for half in (targets[:2], targets[2:]))
    return math.isclose(whole, (first * means[0] + second * means[1]) / (first + second), rel_tol=1e-4)


class LossSum(nn.Module):
    """A weighted sum of losses by name.

    If outputs or targets are a dict, a loss whose name is in it gets only that entry.
    """

    def __init__(self, losses: Mapping[str, Loss], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.losses, self.weights = dict(losses), dict(weights)
        for name, loss in losses.items():
            if (module := stateful_loss(loss)) is not None:
                self.add_module(name, module)  # by name, so that its parameters are trained and saved
        self.last_count: Tensor | float | None = None
        self.counts_differ: Tensor | bool = False
        """Whether the losses are averaged over different numbers, so that no single count is right for their sum."""
        self._parts = dict[str, Tensor]()

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        values, counts = dict[str, Tensor](), list[tuple[Tensor | float | None, int]]()
        for name, loss in self.losses.items():
            part = _part(targets, name)
            try:
                values[name] = loss(_part(outputs, name), part)
            except (AttributeError, TypeError) as error:
                if not isinstance(outputs, Mapping) or name in outputs:
                    raise
                raise ConfigError(
                    f'the loss "{name}" gets the whole dict of outputs, since it has no entry of this name, only '
                    f"{', '.join(map(str, outputs))}: {format_error_with_source(error)}"
                ) from error
            check_loss(values[name], f'the loss "{name}" returned a value')
            counts.append((take_count(loss), part.numel() if isinstance(part, Tensor) else 0))
        self.last_count, differ = _common(counts, targets)
        self.counts_differ = self.counts_differ | differ
        self._parts = {
            name: with_count(value.detach(), count)
            for (name, value), (count, _) in zip(values.items(), counts, strict=True)
        }
        total: Tensor = sum(self.weights[name] * value for name, value in values.items())  # type: ignore[assignment]
        total.parts_differ = differ  # type: ignore[attr-defined]  # for the mean over several batches
        return with_count(total, self.last_count)

    def train(self, mode: bool = True) -> Self:
        for module in filter(None, map(loss_module, self.losses.values())):
            module.train(mode)
        return super().train(mode)

    def take_parts(self) -> dict[str, Tensor]:
        """The values of the losses in the last call, returned once."""
        parts, self._parts = self._parts, {}
        return parts


def _common(
    counts: Sequence[tuple[Tensor | float | None, int]], targets: Any
) -> tuple[Tensor | float | None, Tensor | bool]:
    """What the losses were averaged over, None for samples, and whether that differs between them.

    counts: of each loss, with the number of its targets. Which of the three follows from the losses alone, not from the
    batch: all processes must take the same one, and batches are compared by it.
    """
    counted = [(count, number) for count, number in counts if count is not None]
    if not counted:
        return None, False
    # if every target counts, all means are over the samples alike
    complete = functools.reduce(operator.and_, [count == number for count, number in counted])
    if len(counted) < len(counts):
        return len(next(tensors(targets))), complete ^ True
    own = [count for count, _ in counted]
    alike = functools.reduce(operator.and_, [count == own[0] for count in own])
    return sum(own) / len(own), (complete | alike) ^ True


def _part(nest: Any, name: str) -> Any:
    return nest[name] if isinstance(nest, Mapping) and name in nest else nest
