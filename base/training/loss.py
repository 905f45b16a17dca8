"""The losses of a config, each of which knows what it is averaged over: samples, class weights, tokens or pixels."""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from base.metric import StepResult, check_loss, outputs_and_targets, with_count
from base.training.broadcast import NoBroadcast, eager, name_of
from base.training.library_metric import CLASS_LOGITS, LOGITS
from base.training.metrics import HALF, divisor, is_read_at_once, to_scalar
from utils.errors import ConfigError
from utils.tree import tensors

OWN_MEAN = (
    "{} may average over weighted or ignored targets in its own way; add a method count(outputs, targets) that "
    "returns over how many, as in: return len(targets)"
)
Loss = Callable[..., Tensor]
"""(outputs, targets) -> shape ()."""

Count = Callable[[Tensor, Tensor], Tensor | float | None]
"""(outputs, targets) -> what the loss is averaged over, shape (); None: samples."""

# older versions of torch have no LinearCrossEntropyLoss
_NAMES = ("CrossEntropyLoss", "NLLLoss", "LinearCrossEntropyLoss")
CLASS_LOSSES: Any = tuple(getattr(nn, name) for name in _NAMES if hasattr(nn, name))


def with_count_and_parts(result: StepResult, loss: Loss, *, earlier_count: Tensor | float | None = None) -> StepResult:
    """Add to the result of a step what the loss was averaged over and, in its log, the losses by name it is a sum of.

    loss: the trainer's; clears what its last call stored. earlier_count: what ``take_count`` returned within the step.
    """
    # in this order: what the step returns, what was noted on the loss that it returns, what the config's loss noted in
    # its last call, as for a loss computed from it, and what was taken from it when an optimizer stepped on it
    count: Any = take_count(loss, result.loss)  # in any case: it clears what the loss stored
    if result.count is not None:
        count = to_scalar(result.count) if isinstance(result.count, Tensor) else float(result.count)
    elif count is None:
        count = earlier_count
    if take_parts := getattr(type(loss), "take_parts", None):  # losses by name
        return result._replace(count=count, log={**take_parts(loss), **result.log})
    if count is result.count:
        return result
    return StepResult(result.loss, result.outputs, result.targets, result.log, count)


def take_count(loss: Loss, *values: Tensor) -> Tensor | float | None:
    """What some values of a loss were averaged over; None: samples. Clears what the loss's last call stored.

    Values computed from the loss's, such as weighted ones, were averaged over what its last value was.
    """
    count: Tensor | float | None = getattr(loss, "last_count", None)
    if count is not None:
        loss.last_count = None  # type: ignore[attr-defined]
    for value in values:
        count = getattr(value, "averaged_over", count)
    return count


@dataclass(eq=False, repr=False)
class CountedLoss:
    """A loss of the config. It records what its last value was averaged over, and marks the outputs that it got.

    loss: the mean. count: what a batch is averaged over; None: samples. total: the same loss as a sum, which divided by
    the count is 0 instead of NaN if nothing counts; None: uses ``loss`` as it is, unless the host knows that nothing
    counts. own_mean: whether it may also be the mean over all targets, of which none then may be ignored.
    """

    loss: Loss
    _count: Count | None = None
    total: Loss | None = None
    own_mean: bool = False

    def __post_init__(self) -> None:
        self.func = getattr(self.loss, "func", self.loss)
        self.name = name_of(self.loss)
        self._takes_logits = self.name in LOGITS | CLASS_LOGITS
        self.last_count: Tensor | float | None = None
        self.called = False
        self.phase_to_check = ""
        """The phase whose first batch is next, in which it must not broadcast."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.called = True
        if torch.compiler.is_compiling() or not self.phase_to_check or is_compiled(self.func):
            return self._value(*args, **kwargs)
        what, batch = f"the loss {self.name}", outputs_and_targets(args, kwargs)
        if self.own_mean and isinstance(batch[1], Tensor) and bool((batch[1] == -100).any()):
            raise ConfigError(f"loss: {OWN_MEAN.format(self.name)}")
        with eager(), NoBroadcast(what, self.phase_to_check, *batch):
            return self._value(*args, **kwargs)

    def _value(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._count is None and not self._takes_logits:
            return self.loss(*args, **kwargs)
        outputs, targets = outputs_and_targets(args, kwargs)
        if isinstance(outputs, Tensor):
            outputs.given_to_loss = True  # type: ignore[attr-defined]  # for LibraryMetric
        if self._count is None:
            return self.loss(*args, **kwargs)
        # if nothing counts, the mean and its gradients may be 0 / 0; they become 0
        loss: Any
        if self.total is None:
            count = self._counted(outputs, targets)
            nothing = not isinstance(count, Tensor) and count == 0
            loss = sum(each.sum() for each in tensors(outputs)) * 0.0 if nothing else self.loss(*args, **kwargs)
        elif isinstance(targets, Tensor) and not is_read_at_once(targets):  # the host does not read the count
            loss = self.total(*args, **kwargs)
            count = self._counted(outputs, targets, loss)
            loss = loss / divisor(count)
        else:
            loss = self.loss(*args, **kwargs)
            count = self._counted(outputs, targets, loss)
            if not isinstance(count, Tensor) and count == 0:
                loss = self.total(*args, **kwargs)
        return with_count(loss, count) if isinstance(loss, Tensor) else loss  # train_step may still make it one

    def _counted(self, outputs: Any, targets: Any, loss: Any = None) -> Any:
        """What a batch is averaged over, noted for ``take_count``. loss: torch's for it, which may know."""
        assert self._count is not None
        count: Any = torch_divisor(loss)
        if count is None:
            count = self._count(outputs, targets)
        if count is not None:
            self.last_count = count = to_scalar(count)
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__.get("loss"), name)


def is_compiled(loss: Any) -> bool:
    """Whether torch's compiler runs a loss. A first batch that ran it as written would not be exact on resume."""
    calls = [loss, *([loss.forward, loss._compiled_call_impl] if isinstance(loss, nn.Module) else [])]
    return any(hasattr(call, "_torchdynamo_orig_callable") for call in calls)


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
        return CountedLoss(loss, functools.partial(count_targets, weight=loss.weight, ignore=ignore), _total(loss))
    if isinstance(loss, functools.partial) and loss.func.__module__ in ("model.loss", F.__name__):
        given = loss.keywords
        if loss.func.__name__ in ("cross_entropy", "nll_loss") and given.get("reduction", "mean") == "mean":
            weight, ignore = given.get("weight"), given.get("ignore_index", -100)
            return CountedLoss(loss, functools.partial(count_targets, weight=weight, ignore=ignore), _total(loss))
    return CountedLoss(loss)


def _total(loss: Any) -> Loss:
    """The sum of a loss over all targets.

    torch's own sum over pixels or tokens, outputs of shape (B, C, ...), adds in no fixed order on a GPU.
    """
    total: Loss = _with_reduction(loss, "sum")
    each: Loss = _with_reduction(loss, "none")

    def summed(*args: Any, **kwargs: Any) -> Tensor:
        outputs, _ = outputs_and_targets(args, kwargs)
        return total(*args, **kwargs) if outputs.dim() <= 2 else each(*args, **kwargs).sum()

    return summed


def torch_divisor(loss: Any) -> Tensor | None:
    """What ``torch.nn.functional.nll_loss`` divides its mean by, shape (), which it keeps for the backward pass.

    None if the loss is not its result, or has no gradient, or the dtype would round the count. A sum has it too, except
    on MPS. Also None inside ``saved_tensors_hooks``: reading what is kept would call the hook that gets it back, which
    may serve once only, as in offloading, or compute the block again, as in gradient checkpointing.
    """
    if torch.compiler.is_compiling():  # which has no nodes yet
        return None
    node = None if not isinstance(loss, Tensor) or loss.is_mps else loss.grad_fn
    if node is None or not node.name().startswith("NllLoss"):
        return None
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return None
    total: Tensor | None = getattr(node, "_saved_total_weight", None)
    return None if total is None or total.dtype in HALF else total


def _with_reduction(loss: Any, reduction: str) -> Any:
    if isinstance(loss, functools.partial):
        return functools.partial(loss, reduction=reduction)
    changed = copy.copy(loss)
    changed.reduction = reduction
    return changed


def count_targets(outputs: Tensor, targets: Tensor, *, weight: Tensor | None, ignore: int) -> Tensor | float:
    """The divisor of ``torch.nn.functional.cross_entropy``: the sum of the weights of all targets not ignored.

    outputs: (B, C, ...); targets: class indices, integers of shape (B, ...), or probabilities in the shape of outputs,
    which all count.
    """
    if targets.is_floating_point():
        return targets.numel() // targets.shape[1] if targets.dim() > 1 else len(targets)
    kept = targets != ignore
    if weight is None:
        return to_scalar(kept.count_nonzero())
    return to_scalar((weight[torch.where(kept, targets, 0).long()] * kept).sum())


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
        self._parts = {}
        for name, loss in self.losses.items():
            values[name] = loss(part_of(outputs, name), part_of(targets, name))
            check_loss(values[name], f'the loss "{name}" returned a value')
            counts.append(take_count(loss))
            self._parts[name] = with_count(values[name].detach(), counts[-1])
        # the parts may be averaged over different numbers; whether the sum is over samples must not depend on the batch
        self.last_count = None if any(count is None for count in counts) else sum(counts) / len(counts)
        total: Tensor = sum(self.weights[name] * value for name, value in values.items())  # type: ignore[assignment]
        return with_count(total, self.last_count)

    def take_parts(self) -> dict[str, Tensor]:
        """The values of the losses in the last call, returned once."""
        parts, self._parts = self._parts, {}
        return parts


def part_of(nest: Any, name: str) -> Any:
    """What the loss of a name gets of outputs or targets."""
    return nest[name] if isinstance(nest, Mapping) and name in nest else nest


def losses_in(criterion: Any) -> list[CountedLoss]:
    """The losses of the config in a loss or a sum of losses by name."""
    return [criterion] if isinstance(criterion, CountedLoss) else [*getattr(criterion, "losses", {}).values()]


def loss_module(loss: Any) -> nn.Module | None:
    """A loss as a module; None for a function."""
    module = loss.loss if isinstance(loss, CountedLoss) else loss
    return module if isinstance(module, nn.Module) else None


def stateful_loss(loss: Any) -> nn.Module | None:
    """A loss that may have its own state, perhaps only later, as a module; None if it is torch's or a function."""
    module = loss_module(loss)
    return None if module is None or type(module).__module__.startswith("torch.nn.") else module


def no_loss(*_: Any) -> Tensor:
    """Replaces a loss that the config does not have."""
    raise ConfigError('the trainer calls self.criterion, but the config has no loss; set the key "loss"')
