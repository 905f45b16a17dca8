"""What a resumed run would do differently from one that was not stopped. docs/exactness.md gives the remedies."""

import copy
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from base.base_trainer import BaseTrainer
from base.data.batches import Batches, BatchRange
from base.data.own_generators import GENERATORS, kind_of
from base.data.stream import StreamBatches
from base.training.epoch_start import prepare_epoch
from base.training.loss import loss_module
from base.training.state import own_parts
from extras.check.check_result import CheckResult
from utils.text import listed
from utils.tree import Keys, copied, fields, same, size_of
from utils.user_code import format_error_with_source, user_line

SAMPLES = 8
READ = 100
"""Samples of a stream before its state is taken: Hugging Face can restore a buffer that has given only a few."""
REPEATED = 3
"""Steps that are taken again from a restored state."""
LARGE = 2**30
"""Bytes of a state of which no copies are made."""
SMALL = 2**24
"""Bytes up to which a tensor of a data loader is compared: labels or weights, but not all images."""
_NOT_STEPPED = ("metrics", "writers", "config", "data")
ADVICE = 'see "What breaks it" in docs/exactness.md'


class Fresh:
    """What a trainer has beside its checkpoints when a run starts or resumes. To be created before its first epoch.

    of_base: names of the attributes that are not the subclass's own.
    """

    def __init__(self, trainer: BaseTrainer, of_base: Collection[str]) -> None:
        self.trainer = trainer
        self._of_base = {*of_base, "base_attributes"}
        self._attributes = self._own()
        self._values = [(each, _value(each)) for each in self._watched().values()]
        roots = {"model": trainer.experiment.model, "loss": loss_module(trainer.experiment.criterion)}
        self._plain = {
            f"{what}.{name}": (owner, name.rpartition(".")[2], copied(value))
            for what, root in {**own_parts(trainer.stateful()), **roots}.items()
            if isinstance(root, nn.Module)
            for name, owner, value in _unsaved(root)
        }

    def restore(self) -> None:
        """Undo all changes but those inside objects that cannot load a state."""
        attributes = vars(self.trainer)
        for each, value in self._values:
            _set_value(each, value)
        for name in self._own():
            del attributes[name]
        attributes.update(self._attributes)
        for owner, name, value in self._plain.values():
            setattr(owner, name, copied(value))

    def contents(self) -> dict[str, Any]:
        """Copies of all values in the trainer's own attributes, and of the unsaved ones in modules, by name."""
        watched = {name: copied(dict(_leaves(value))) for name, value in self._watched().items()}
        return watched | {what: copied(getattr(owner, name)) for what, (owner, name, _) in self._plain.items()}

    def _watched(self) -> dict[str, Any]:
        """The trainer's own attributes, and the small tensors of the data loader, as labels that it changes."""
        data = vars(self.trainer.experiment.data).items()
        small = {name: value for name, value in data if isinstance(value, Tensor) and size_of(value) <= SMALL}
        return self._own() | {f"data_loader.{name}": value for name, value in small.items()}

    def _own(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.trainer).items() if name not in self._of_base}


def check_resume(fresh: Fresh, batches: Batches, take_step: Callable[[], None]) -> Iterator[CheckResult]:
    """Begin a second epoch, and let the trainer repeat some of its steps as a run that resumes there would.

    Changes the trainer and its data. Skipped if copies of the state would be large.
    """
    trainer = fresh.trainer
    trainer.progress.epoch_steps = 0  # those of the other checks
    try:
        prepare_epoch(trainer, 1)
    except Exception as error:
        yield _second_epoch(error.__cause__ or error)
        return
    if size_of(trainer.state_dict()) > LARGE:
        return
    try:
        _steps(trainer, take_step)
        state, contents, samples = copied(trainer.state_dict()), fresh.contents(), _first_samples(batches)
        uninterrupted = _steps(trainer, take_step)
    except Exception:  # more steps than the trainer has a schedule for, say
        return
    fresh.restore()
    try:
        trainer.load_state_dict(copied(state), Path("the state before"))  # parts may keep what they load
        prepare_epoch(trainer, 1)
        trainer.load_state_dict(state, Path("the state before"))  # as a resume does
    except Exception as error:  # of the user's parts
        cause = "a load_state_dict() that does not take what state_dict() returns, or a begin_epoch() that needs more"
        text = f"a run cannot resume: {format_error_with_source(error)}"
        yield CheckResult("exactness", "FAIL", text, f"{cause}; {ADVICE}")
        return
    notes = [*_changed(fresh, contents), *_changed_samples(batches, samples), *_changed_stream(batches)]
    yield from notes or _repeated(trainer, take_step, uninterrupted)


def _changed(fresh: Fresh, contents: dict[str, Any]) -> Iterator[CheckResult]:
    """contents: of the trainer where the run was stopped."""
    now = fresh.contents()
    if differ := [name for name, value in contents.items() if not same(value, now.get(name, {}))]:
        cause = "state outside stateful(), a plain attribute of a module, or what begin_epoch computes from its like"
        yield _note(f"values that a resumed run would not have: {', '.join(differ)}", cause)


def _changed_samples(batches: Batches, samples: Any) -> Iterator[CheckResult]:
    if not same(samples, _first_samples(batches)):
        cause = (
            "a data set that changes what it stores, as begin_epoch() may, a random generator that is not found, or a "
            "stream that is shuffled by the time"
        )
        yield _note("the same samples, loaded twice with the same seed, differ", cause)


def _changed_stream(batches: Batches) -> Iterator[CheckResult]:
    """Whether a stream that has a state gives other samples after it is restored."""
    if not isinstance(batches, StreamBatches):
        return
    alone = copy.copy(batches)
    alone.num_workers, alone.source = 0, copy.copy(batches.source)
    following = BatchRange(0, READ, READ + SAMPLES)
    try:
        steps = alone.load_steps([[BatchRange(0, 0, READ)], [following]])
        list(next(steps).micro_batches)
        if (state := alone.state_dict()) is None:
            return
        [expected] = next(steps).micro_batches
        alone.load_state_dict(state)
        [found] = alone.load([following])
    except Exception:  # a stream that is shorter, say
        return
    if not same(dict(_leaves(expected.data)), dict(_leaves(found.data))):
        cause = "a state_dict() that lacks something, such as the buffer of a shuffle"
        yield _note("a stream continues from its state with other samples", cause)


def _repeated(
    trainer: BaseTrainer, take_step: Callable[[], None], uninterrupted: dict[str, Any]
) -> Iterator[CheckResult]:
    """Whether the same steps change the same parts in the same way; skipped where kernels may differ by themselves."""
    if torch.get_deterministic_debug_mode() < (1 if trainer.runtime.on_cpu else 2):
        return
    cause = "state outside stateful(), a part that does not load it, or one that depends on the time"
    try:
        resumed = _steps(trainer, take_step)
    except Exception as error:  # as where something has been used up
        reason = format_error_with_source(error)
        yield _note(f"{REPEATED} steps, repeated from the restored state, fail: {reason}", cause)
        return
    if differ := [name for name, part in uninterrupted.items() if not same(part, resumed[name])]:
        yield _note(f"{REPEATED} steps, repeated from the restored state, end with a different {listed(differ)}", cause)


def _note(text: str, cause: str) -> CheckResult:
    return CheckResult("exactness", "note", text, f"{cause}; {ADVICE}")


def _second_epoch(error: BaseException) -> CheckResult:
    """An error in ``begin_epoch``; a note if it is the user's code, which may count on a whole first epoch."""
    advice = "a mistake in begin_epoch, unless it uses what only a finished epoch has set"
    if not user_line(error):
        return CheckResult("second epoch", "FAIL", format_error_with_source(error))
    return CheckResult("second epoch", "note", format_error_with_source(error), advice)


def _steps(trainer: BaseTrainer, take_step: Callable[[], None]) -> dict[str, Any]:
    """Take some steps; returns copies of the parts that they change."""
    for _ in range(REPEATED):
        take_step()
    state: dict[str, Any] = copied(trainer.state_dict())
    return {name: part for name, part in state.items() if name not in _NOT_STEPPED}


def _first_samples(batches: Batches) -> Any:
    """The first samples, loaded in this process; None if that needs a worker process."""
    alone = copy.copy(batches)
    alone.num_workers = 0
    try:
        [micro_batch] = alone.load([BatchRange(0, 0, min(SAMPLES, batches.samples_per_pass))])
        return copied(dict(_leaves(micro_batch.data)))
    except Exception:
        return None


def _unsaved(root: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    """The buffers, plain tensors and numbers of a module that are not in its state: name, owner and value.

    Not those in modules of torch, and in those that save more than their tensors.
    """
    saved = root.state_dict(keep_vars=True)
    for path, owner in root.named_modules():
        values = dict(owner.named_buffers(recurse=False))
        if not type(owner).__module__.startswith("torch.") and type(owner).get_extra_state is nn.Module.get_extra_state:
            values |= {name: value for name, value in vars(owner).items() if type(value) in (int, float, Tensor)}
        for name, value in values.items():
            if (full := f"{path}.{name}".lstrip(".")) not in saved:
                yield full, owner, value


def _leaves(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """All tensors and plain values in an object, by their path."""
    value = _state(value)
    value = fields(value) or value
    if isinstance(value, (dict, list, tuple, deque)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, (*keys, key))
    elif isinstance(value, Tensor):
        yield keys, value.detach()
    elif isinstance(value, (int, float, str, bool)):
        yield keys, value


def _value(thing: Any) -> Any:
    """A copy of a tensor, or of the state of an object that can load one; None for other or large objects."""
    if not isinstance(thing, Tensor):
        loads = callable(getattr(thing, "load_state_dict", None)) and not isinstance(thing, type)
        thing = thing.state_dict() if loads else None
    return copied(thing) if size_of(thing) <= LARGE else None


def _set_value(thing: Any, value: Any) -> None:
    """Restore what ``_value`` returned, in place, unless it no longer fits, as a buffer that was None at first."""
    with suppress(Exception):  # of the user's code
        if isinstance(thing, Tensor) and value is not None:
            thing.data.copy_(value)
        elif value is not None:
            thing.load_state_dict(copied(value))


def _state(value: Any) -> Any:
    """The state of a module, array, generator or any other object that has one; anything else unchanged."""
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value) if value.dtype.kind in "biufc" else None
    if isinstance(value, GENERATORS):
        return _state(kind_of(value).state(value))
    state = None if isinstance(value, type) else getattr(value, "state_dict", None)
    return state() if callable(state) else value
