"""Things that silently break exactness: state that changes in training but is in no checkpoint, and data with its own
random generator. docs/exactness.md gives the remedies.
"""

import copy
import functools
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from base.base_trainer import BaseTrainer
from base.data.batches import Batches, BatchRange
from base.metric import StepResult
from base.training.epoch_start import prepare_epoch
from base.training.parameters import loss_module
from base.training.state import own_parts
from extras.check.check_result import CheckResult
from utils.errors import UserError
from utils.text import listed
from utils.tree import Keys, copied, fields, has_strides, same, size_of, tensors
from utils.user_code import format_error_with_source

SAMPLES = 8
REPEATED = 3
"""Steps that are taken again from a restored state."""
LARGE = 2**30
"""Bytes of a state of which no copies are made."""
_NOT_STEPPED = ("metrics", "writers", "config", "data")
ADVICE = 'see "What breaks it" in docs/exactness.md'


def exactness_note(text: str, cause: str) -> CheckResult:
    """A note, whose cause ends with where to read on."""
    return CheckResult("exactness", "note", text, f"{cause}; {ADVICE}")


class _Plain(BaseTrainer):
    """Shows which attributes every trainer has."""

    def train_step(self, batch: Any) -> StepResult:
        raise NotImplementedError

    eval_step = train_step


class Kept:
    """Copies of a trainer's state outside its checkpoints, to compare after some steps.

    unbegun: its attributes before the first ``begin_epoch``.
    """

    def __init__(self, trainer: BaseTrainer, unbegun: Mapping[str, Any]) -> None:
        self.trainer, self.unbegun = trainer, unbegun
        self.own = vars(_Plain(trainer.experiment, trainer.settings)).keys() | {
            "training", "outputs", "log", "train_step", "eval_step",
        }  # fmt: skip
        self.attributes = {name: _content(value) for name, value in self._attributes().items()}
        self.begun = [name for name, value in self._attributes().items() if value is not unbegun.get(name, unbegun)]
        self.modules = {"model": trainer.experiment.model, "loss": loss_module(trainer.experiment.criterion)}
        parts = {f"part {name}": part for name, part in own_parts(trainer).items() if isinstance(part, nn.Module)}
        self.modules |= {what: part for what, part in parts.items() if part not in self.modules.values()}
        self.unsaved = {what: copied(_unsaved(module)) for what, module in self.modules.items()}
        self.noted: list[str] = []
        """Attributes that have a note."""

    def results(self) -> Iterator[CheckResult]:
        """A note for each kind of state that has changed, or is trained, but is in no checkpoint."""
        yield from self.of_modules()
        # a module that is trained counts as changed
        before = {name: each for name, each in self.attributes.items() if not _trains(vars(self.trainer).get(name))}
        self.noted = self._unsaved_changes(before)
        if self.noted:
            names = ", ".join(self.noted)
            text = f"attributes of the trainer that change in training but are in no checkpoint: {names}"
            yield exactness_note(text, "state that stateful() does not return")

    def of_modules(self) -> Iterator[CheckResult]:
        """A note for each module with values that have changed since the last call, but are in no checkpoint."""
        for what, module in self.modules.items():
            before, self.unsaved[what] = self.unsaved[what], copied(_unsaved(module))
            changed = [
                name
                for name, value in self.unsaved[what].items()
                # a tensor that has come since then may be there to be shown
                if not (isinstance(value, Tensor) and name not in before) and not same(before.get(name), value)
            ]
            if changed:
                text = f"values of the {what} that change but are in no checkpoint: {', '.join(changed)}"
                cause = "register_buffer(..., persistent=False), or self.NAME = a tensor or a number"
                yield exactness_note(text, f"{cause}; a persistent buffer is saved")

    def of_begin_epoch(self) -> Iterator[CheckResult]:
        """A note if what ``begin_epoch`` sets follows from earlier calls, which a resumed run does not repeat."""
        trainer, saved = self.trainer, _Saved(self.trainer)
        attributes = vars(trainer)
        names = [name for name in self.begun if name in attributes and not saved.has(attributes[name])]
        if not names:
            return
        before, differ = {name: attributes[name] for name in names}, names

        def second_epoch() -> dict[str, Any]:
            prepare_epoch(trainer, 1, again=True)
            return {name: _content(attributes.get(name)) for name in names}

        try:
            following = second_epoch()
            for name in names:
                attributes.pop(name)
            attributes.update({name: self.unbegun[name] for name in names if name in self.unbegun})
            resumed = second_epoch()
            differ = [name for name in names if not same(following[name], resumed[name])]
        except UserError:  # it needs what an earlier call has set
            pass
        finally:
            attributes.update(before)
        if differ:
            self.noted += differ
            text = f"attributes that begin_epoch sets from those of earlier epochs: {', '.join(differ)}"
            cause = "a run that resumes later does not have these; let them follow from the epoch alone"
            yield exactness_note(text, cause)

    def of_weights(self, load: Callable[[], Any]) -> Iterator[CheckResult]:
        """Notes if ``begin_epoch`` computes something else when it is called again after some steps, as it is by a run
        that resumes within the epoch. load: returns some training samples.
        """
        trainer = self.trainer
        samples = load()
        before, contents = dict(vars(trainer)), {name: _content(value) for name, value in self._attributes().items()}
        try:
            prepare_epoch(trainer, 0, again=True)
            differ = [name for name in self._unsaved_changes(contents) if name not in self.noted]
        except UserError:  # it fails in a run too, which calls it twice
            return
        finally:
            vars(trainer).update(before)
        cause = "a run that resumes within the epoch computes this from later weights"
        if differ:
            text = f"attributes that begin_epoch computes from the weights or other state: {', '.join(differ)}"
            yield exactness_note(text, cause)
        if not same(samples, load()):
            yield exactness_note("begin_epoch computes the training samples from the weights or other state", cause)
        yield from self.of_modules()

    def _unsaved_changes(self, before: Mapping[str, Any]) -> list[str]:
        """The attributes whose content is another than before, and in no checkpoint."""
        saved = _Saved(self.trainer)
        return [
            name
            for name, value in self._attributes().items()
            if not same(before.get(name), _content(value)) and not saved.has(value)
        ]

    def _attributes(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.trainer).items() if name not in self.own}


class Evaluated:
    """Which weights and buffers of a model an evaluation changes, as if it learned from validation data."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.changed: list[str] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Compare the model before and after the block, unless copies would be large."""
        state = {name: value for name, value in self.model.state_dict().items() if isinstance(value, Tensor)}
        before = {} if size_of(state) > LARGE else copied(state)
        yield
        after = self.model.state_dict()
        for name, value in before.items():
            grown = name not in after or after[name].shape != value.shape  # such as a table of positions
            if not grown and name not in self.changed and not same(value, after[name].detach()):
                self.changed.append(name)

    def results(self) -> Iterator[CheckResult]:
        if self.changed:
            text = f"eval_step changes the model: {listed(self.changed)}"
            cause = "a model that learns in forward(), from validation and test data too: update it if self.training"
            yield CheckResult("evaluation", "note", text, cause)


def check_exactness(kept: Kept, batches: Batches) -> Iterator[CheckResult]:
    """Notes on what a resumed run would do differently from an uninterrupted one."""
    yield from kept.results()
    yield from kept.of_begin_epoch()
    load = functools.partial(_first_samples, batches)
    try:
        repeatable = same(load(), load())
    except Exception:  # a data set that can only be read in worker processes
        return
    if not repeatable:
        cause = "a data set with its own random generator, or that changes its stored data in place"
        yield exactness_note("the same samples, loaded twice with the same seed, differ", cause)
    else:
        yield from kept.of_weights(load)


def check_repetition(trainer: BaseTrainer, take_step: Callable[[], None]) -> Iterator[CheckResult]:
    """A note if some steps, repeated from the trainer's restored state, end in another state.

    It finds what the attributes do not show: state inside objects that are not in the checkpoint, and parts that do not
    load what they save. Skipped where kernels may differ by themselves, and if copies of the state would be large.
    """
    exact = torch.get_deterministic_debug_mode() >= (1 if trainer.runtime.on_cpu else 2)
    start = trainer.state_dict()
    if not exact or size_of(start) > LARGE:
        return
    start = copied(start)

    def steps() -> dict[str, Any]:
        for _ in range(REPEATED):
            take_step()
        stepped: dict[str, Any] = copied(trainer.state_dict())
        return {name: part for name, part in stepped.items() if name not in _NOT_STEPPED}

    try:
        one = steps()
    except Exception:  # more steps than the trainer has a schedule for, say
        return
    try:
        trainer.load_state_dict(start, Path("the state before"))
    except Exception as error:  # from the user's parts
        cause = f"a load_state_dict() that does not take what state_dict() returns; {ADVICE}"
        text = f"the state cannot be loaded again: {format_error_with_source(error)}"
        yield CheckResult("exactness", "FAIL", text, cause)
        return
    cause = "state outside stateful(), a part that does not load it, or one that depends on the time"
    try:
        other = steps()
    except Exception as error:  # as where something has been used up
        text = f"{REPEATED} steps, repeated from the restored state, fail: {format_error_with_source(error)}"
        yield exactness_note(text, cause)
        return
    if differ := [name for name in one if not same(one[name], other[name])]:
        text = f"{REPEATED} steps, repeated from the restored state, end with a different {listed(differ)}"
        yield exactness_note(text, cause)


def _first_samples(batches: Batches) -> Any:
    """The first samples, loaded in this process."""
    alone = copy.copy(batches)
    alone.num_workers = 0
    [micro_batch] = alone.load([BatchRange(0, 0, min(SAMPLES, batches.samples_per_pass))])
    return _content(micro_batch.data)


class _Saved:
    """What a checkpoint of a trainer would contain."""

    def __init__(self, trainer: BaseTrainer) -> None:
        self.parts = list(trainer.stateful().values())
        states = [part.state_dict() for part in self.parts]
        buffers = [part.buffers() for part in self.parts if isinstance(part, nn.Module)]
        self.pointers = set(map(_address, itertools.chain(tensors(states), *buffers)))
        further = [state for name, state in zip(trainer.stateful(), states, strict=True) if name not in _PARTS]
        leaves = [leaf for _, leaf in _leaves(further) if leaf is not None]
        self.tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.values = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]

    def has(self, value: Any) -> bool:
        """Whether a part contains this value, or an equal one."""
        if any(value is part for part in self.parts):
            return True
        if isinstance(value, nn.Module):
            return all(self._has_tensor(tensor) for tensor in (*value.parameters(), *value.buffers()))
        return all(self._has_leaf(leaf) for _, leaf in _leaves(value) if leaf is not None)

    def _has_leaf(self, leaf: Any) -> bool:
        if isinstance(leaf, Tensor):
            return self._has_tensor(leaf)
        # a NumPy generator's integers of 128 bits can only be saved as text
        return leaf in self.values or str(leaf) in self.values

    def _has_tensor(self, tensor: Tensor) -> bool:
        if not tensor.numel() or _address(tensor) in self.pointers:
            return True
        return any(same(tensor, other) for other in self.tensors)


def _address(tensor: Tensor) -> int:
    """What tells a tensor from others: where its values are, unless it is sparse or nested."""
    return tensor.data_ptr() if has_strides(tensor) else id(tensor)


# attributes of BaseTrainer, rather than of a trainer's own class
_PARTS = {"model", "optimizer", "schedule", "runtime", "metrics", "progress"}


def _trains(value: Any) -> bool:
    """Whether a value is a module that may be trained, now or in a later step."""
    return isinstance(value, nn.Module) and any(parameter.requires_grad for parameter in value.parameters())


def _content(value: Any) -> dict[Keys, Any]:
    """Copies of all tensors and plain values in an object, by their path; None for anything else."""
    found: dict[Keys, Any] = copied(dict(_leaves(value)))
    return found


def _leaves(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """The same one by one, without copies."""
    value = _state(value)
    value = fields(value) or value
    if isinstance(value, (dict, list, tuple, deque)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, (*keys, key))
    elif isinstance(value, Tensor):
        yield keys, value.detach()
    else:
        yield keys, value if isinstance(value, (int, float, str, bool)) else None


def _state(value: Any) -> Any:
    """The state of a module, array, generator or any other object that has one; anything else unchanged."""
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value) if value.dtype.kind in "biufc" else None
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, random.Random):
        return value.getstate()
    state = None if isinstance(value, type) else getattr(value, "state_dict", None)
    return state() if callable(state) else value


def _unsaved(module: nn.Module | None) -> dict[str, Any]:
    """The buffers, plain tensors and numbers of a module, by name, that are not in its state; none for a function.

    Not those in modules of torch, and in those that save more than their tensors.
    """
    if module is None:
        return {}
    saved = module.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in module.named_buffers() if name not in saved}
    plain = {
        f"{path}.{name}".lstrip("."): value
        for path, each in module.named_modules()
        if not type(each).__module__.startswith("torch.") and type(each).get_extra_state is nn.Module.get_extra_state
        for name, value in vars(each).items()
        if type(value) in (int, float, Tensor)
    }
    return buffers | plain
