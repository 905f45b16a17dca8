"""Metrics of torchmetrics, which need not be means over samples."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from base.metric import entries
from base.training.broadcast import NoBroadcast, check_same_shape
from utils.determinism import fastest_kernels
from utils.device_errors import device_failure
from utils.distributed import current
from utils.errors import ConfigError, UserError
from utils.streams import say_error
from utils.tree import same, to_device
from utils.user_code import format_error_with_source

if TYPE_CHECKING:
    from torchmetrics import Metric


_warned = set[str]()

LOGITS = {"binary_cross_entropy_with_logits", "BCEWithLogitsLoss", "MultiLabelSoftMarginLoss"}
"""Losses whose outputs are logits of independent probabilities."""
PROBABILITIES = {"binary_cross_entropy", "BCELoss"}
"""Losses whose outputs are independent probabilities."""
CLASS_LOGITS = {"cross_entropy", "CrossEntropyLoss"}
"""Losses whose outputs are logits of classes, (B, C, ...)."""


class LibraryMetric:
    """A torchmetrics metric, which need not be a mean over samples.

    It may contain other metrics as submodules; each keeps its own state.

    loss: the name of the loss. If it takes logits, and got the same outputs, torchmetrics' own metrics get the
        probabilities: they treat a batch as logits only if a value is below 0 or above 1, which differs by batch.
    entry: the only entry that the metric gets of outputs and targets that are dicts.
    """

    def __init__(self, name: str, metric: "Metric", loss: str = "", *, entry: str | None = None) -> None:
        self.name = name
        self.metric = metric
        self.loss = loss
        self.entry = entry
        self.parts = _parts(metric)
        self.own = not type(metric).__module__.startswith("torchmetrics.")
        self.leader: LibraryMetric | None = None
        """An earlier metric that adds up the same (``share_updates``)."""
        self.follows = False
        """Whether only the leader is updated, and this metric takes its state when it is read."""
        parts = [] if self.own else self.parts.values()
        classification = [part for part in parts if type(part).__module__.startswith("torchmetrics.classification")]
        independent = any(type(part).__name__.startswith(("Binary", "Multilabel")) for part in classification)
        self._needs_sigmoid = loss in LOGITS and independent
        self._needs_softmax = loss in CLASS_LOGITS and any(map(_takes_class_probabilities, classification))
        self._guesses_logits = loss not in LOGITS | PROBABILITIES and independent
        """Whether torchmetrics alone decides whether a batch has logits."""
        self._guessed = dict[str, Tensor]()
        # torchmetrics counts classes with deterministic kernels in a table of samples by classes, although a count is
        # the same in any order: for a confusion matrix of images, gigabytes
        self.kernels = nullcontext if self.own else fastest_kernels
        if not any(part.metric_state for part in self.parts.values()):
            raise ConfigError(
                f'metrics: "{name}" has no state, so it would be neither reset nor saved; create in __init__ what '
                'update() adds to: self.add_state("hits", default=torch.tensor(0.0), dist_reduce_fx="sum")'
            )

    def update(self, outputs: Any, targets: Any) -> None:
        outputs, targets = entries(self.name, self.entry, outputs, targets)
        logits = getattr(outputs, "given_to_loss", False)
        if logits and self._needs_sigmoid:
            outputs = outputs.sigmoid()
            if targets.is_floating_point():  # some take only integers; 2 is not a class, and is refused
                targets = torch.where(targets == targets.round(), targets, 2).long()
        elif logits and self._needs_softmax:
            outputs = outputs.softmax(1)
        elif self._guesses_logits and isinstance(outputs, Tensor) and outputs.is_floating_point():
            outside = ((outputs < 0) | (outputs > 1)).any()
            for guess, made in (("logits", outside), ("probabilities", ~outside)):
                self._guessed[guess] = self._guessed.get(guess, made) | made  # read only by compute
        try:
            with self.kernels():
                self.metric.update(outputs, targets)
        except Exception as error:
            self._fail(error, "does not accept these outputs and targets")

    def compute(self) -> float:
        self._take_state()
        if self.name not in _warned and self._guessed and all(map(bool, self._guessed.values())):
            _warned.add(self.name)
            say_error(
                f'warning: metrics: "{self.name}" depends on the batch size: torchmetrics treated some batches as '
                "logits and others, with all outputs between 0 and 1, as probabilities; return probabilities in "
                "StepResult (outputs.sigmoid()), or use BCEWithLogitsLoss as the config's loss"
            )
        try:
            with self.kernels():
                value = self.metric.compute()
        except Exception as error:
            self._fail(error, "cannot be computed")
        if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
            return float(value)
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        advice = 'set "average": "macro" if it has this argument, or reduce it to one number in a metric of your own'
        if self.own and current().world_size > 1:
            advice = "reduce it to one number; with several processes, each state needs a dist_reduce_fx in add_state"
        raise ConfigError(f'metrics: "{self.name}" gives {found}, not a single number; {advice}')

    def dry_run(self, outputs: Any, targets: Any, phase: str) -> None:
        """Update and compute a copy on one batch. Raises ConfigError if the result is not a number."""
        copy = deepcopy(self.metric)
        outputs, targets = entries(self.name, self.entry, outputs, targets)
        tried = LibraryMetric(self.name, copy, self.loss)
        tried.reset()
        for part in tried.parts.values():
            part.distributed_available_fn = lambda: False  # other processes may have no samples in this batch
        what = f'the metric "{self.name}"'
        elementwise = type(copy).__module__.startswith("torchmetrics.regression")
        if elementwise and isinstance(outputs, Tensor) and isinstance(targets, Tensor):
            check_same_shape(what, phase, outputs.shape, targets.shape)
        with warnings.catch_warnings(action="ignore"):  # from metrics for which one batch is too small
            with NoBroadcast(what, phase, outputs, targets) if self.own else nullcontext():
                tried.update(outputs, targets)
            try:
                tried.compute()
            except ConfigError:
                tried.update(outputs, targets)  # some need two samples, but the batch may have one
                tried.compute()
            if self.own:
                self._check_reset(tried, outputs, targets)

    def _check_reset(self, tried: "LibraryMetric", outputs: Any, targets: Any) -> None:
        """Raise ConfigError if an attribute grows with each update but is not a state.

        tried: a copy that has been updated once.
        """
        once = _plain_attributes(tried.metric)
        tried.reset()
        tried.update(outputs, targets)
        for name, value in _plain_attributes(tried.metric).items():
            if not same(value, once.get(name)):
                raise ConfigError(
                    f'metrics: "{self.name}": update() changes self.{name}, which is neither reset nor saved; create '
                    f'it with self.add_state("{name}", default=..., dist_reduce_fx="sum")'
                )

    def _fail(self, error: Exception, what: str) -> NoReturn:
        """Raise ConfigError with the name of the metric for an error of a library or the user's code."""
        if isinstance(error, UserError) or current().peer_failure(error) or device_failure(error):
            raise error
        raise ConfigError(
            f'metrics: "{self.name}" {what}: {format_error_with_source(error)}\n'
            "Change its arguments or what the step returns in StepResult, or remove it from the config."
        ) from error

    def reset(self) -> None:
        self._guessed = {}
        self.follows = self.leader is not None
        for part in self.parts.values():
            part.reset()

    def _take_state(self) -> None:
        if self.leader is not None and self.follows:
            self.load_state_dict(self.leader.state_dict())
            self._guessed, self.follows = self.leader._guessed, True

    def state_dict(self) -> dict[str, Any]:
        self._take_state()
        states: dict[str, Any] = {
            name: {"values": dict(part.metric_state), "updates": part.update_count} for name, part in self.parts.items()
        }
        own = states.pop("")
        return {**own, "parts": states} if states else own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError if the state is from another metric. Until the next reset, it follows no other."""
        self.reset()
        self.follows = False
        states = _states(state)
        if states.keys() != self.parts.keys() and (len(states) > 1 or state["updates"]):
            raise ValueError(f"{self.name} is made of other metrics, {', '.join(filter(None, self.parts))}")
        for name, saved in states.items():
            part = self.parts[name]
            if saved["values"].keys() != part.metric_state.keys() or saved["updates"] < 0:
                raise ValueError(f"{name or self.name} keeps {', '.join(part.metric_state)}")
            for key, value in to_device(saved["values"], part.device).items():
                setattr(part, key, value)
            _set_update_count(part, saved["updates"])

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add another process's state. Raises RuntimeError if torchmetrics cannot: see ``full_state_update``."""
        for name, saved in _states(state).items():
            part = self.parts[name]
            if not saved["updates"]:
                continue
            _set_update_count(part, part.update_count + saved["updates"])
            if not saved["values"]:
                continue
            part.merge_state(to_device(saved["values"], part.device))


def _takes_class_probabilities(part: "Metric") -> bool:
    """Whether this is a classification metric of torchmetrics that needs probabilities."""
    name = type(part).__name__
    return name.startswith("Multiclass") and (hasattr(part, "thresholds") or hasattr(part, "n_bins") or "Hinge" in name)


def share_updates(metrics: Sequence[LibraryMetric]) -> None:
    """Of metrics with the same state, such as precision and recall of the same classes, update only the first.

    torchmetrics' MetricCollection also shares between metrics whose states agree after the first batch by chance.
    """
    leaders = list[LibraryMetric]()
    for metric in metrics:
        metric.leader = next((leader for leader in leaders if _add_up_the_same(leader, metric)), None)
        metric.follows = metric.leader is not None
        if metric.leader is None:
            leaders.append(metric)


def _add_up_the_same(one: LibraryMetric, other: LibraryMetric) -> bool:
    """Whether two metrics of torchmetrics run the same code on the same outputs and arguments when they are updated.

    That code does not read what only one of them has, such as the F score's beta.
    """
    if any(each.own or len(each.parts) > 1 for each in (one, other)):
        return False
    if type(one.metric).update is not type(other.metric).update:
        return False
    common = vars(one.metric).keys() & vars(other.metric).keys()
    return same(_read_by_update(one, common), _read_by_update(other, common))


def _read_by_update(metric: LibraryMetric, names: Collection[str]) -> dict[str, Any]:
    """What determines an update: how the outputs are prepared, and the values of these attributes of the metric."""
    prepared = (metric.entry, metric._needs_sigmoid, metric._guesses_logits, metric._needs_softmax)
    attributes = {name: getattr(metric.metric, name) for name in names}
    return {"outputs": prepared} | {name: value for name, value in attributes.items() if not callable(value)}


def _plain_attributes(metric: "Metric") -> dict[str, Any]:
    """Copies of a metric's numbers, tensors, lists and dicts, other than its states and torchmetrics' own."""
    kinds = (int, float, Tensor, list, dict)
    attributes = {name: value for name, value in vars(metric).items() if isinstance(value, kinds) and name[0] != "_"}
    return {name: deepcopy(value) for name, value in attributes.items() if name not in metric.metric_state}


def _states(state: Mapping[str, Any]) -> dict[str, Any]:
    """A saved state by part; "parts" is missing if there is only one."""
    return {"": state, **state.get("parts", {})}


def _parts(metric: "Metric") -> dict[str, "Metric"]:
    """The metric, as "", and the metrics that it is made of, by their name as a submodule."""
    from torchmetrics import Metric

    others = {name: part for name, part in metric.named_modules() if name and isinstance(part, Metric)}
    return {"": metric, **others}


def _set_update_count(metric: "Metric", count: int) -> None:
    # torchmetrics counts updates to warn if there were none, and has no public way to restore the count
    metric._update_count = count
