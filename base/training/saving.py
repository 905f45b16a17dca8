"""What a checkpoint holds, how one is written, and how one is loaded."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from base.training.loss import stateful_loss
from base.training.loss_checks import check_losses
from base.training.state import STANDARD_PARTS, check_registered, load_part, part_kind, registered_names
from base.training.trainer_interface import TrainerInterface
from utils import checkpoint
from utils.checkpoint.weights_file import AVERAGED
from utils.distributed.process_group import LostError
from utils.errors import CheckpointError, Stopped, UserError
from utils.optimizers import check_layouts
from utils.random import generator_states, restore_generators, seed_generators
from utils.user_code import format_error_with_source

BESIDE_PARTS = {"format", "config", "random", "writers"}
"""What a checkpoint holds besides the parts of ``stateful``."""


class Checkpointed(TrainerInterface):
    """The part of ``BaseTrainer`` that is saved and restored."""

    def stateful(self) -> dict[str, Any]:
        loss = stateful_loss(self.experiment.criterion)
        parts: dict[str, Any] = {"model": self.experiment.model}
        parts |= {name: part for name, part in (("loss", loss), (AVERAGED, self.averaged_weights)) if part}
        if not hasattr(self, "training"):
            return parts
        return {
            "data": self.saved_data,
            **parts,
            **self.training.stateful(),
            "runtime": self.runtime,
            "metrics": self.train_metrics,
            "progress": self.progress,
        }

    def check_stateful(self) -> None:
        """Raise UserError if ``stateful`` of a subclass returns what no run could load. Called before training."""
        parts = self.stateful()
        checkpoint.check_parts(parts, required=Checkpointed.stateful(self), owner=self)
        self._names_at_start = {name: registered_names(part) for name, part in parts.items()}

    # ------------------------------------------------------------------ writing one

    def start(self) -> None:
        """Called after the first step of this process, or before it saves: the run now has this process's config."""
        self.has_started = True
        self.observer.first_step(self)
        state = self.state_dict()  # raises UserError if this state, now with the optimizer's, could not be loaded
        for name, part in self.stateful().items():
            if name in self._names_at_start:
                check_registered(name, part, state[name], self._names_at_start[name])
        for each in self.training.optimizers.values():
            check_layouts(each.optimizer, self.training.frozen.parameters)
        self.outputs.on_first_step()

    def save(self) -> None:
        """Write a checkpoint, unless the newest one already has this state and was written."""
        progress = self.progress.state_dict()
        checkpointer = self.outputs.checkpointer
        if progress == self._saved_progress and self.runtime.process_group.broadcast_object(checkpointer.wait):
            return
        check_losses(self)
        if not self.has_started:
            self.start()
        checkpointer.save(self.progress.steps, self.state_dict(), best_step=self.progress.best_step)
        self._saved_progress = progress

    @contextmanager
    def saving_on_failure(self) -> Iterator[None]:
        """Save if a validation inside the block fails, so that a resumed run repeats only the validation.

        With several processes, only if it fails in all of them, since all must save.
        """
        try:
            yield
        except Exception as error:
            process_group = self.runtime.process_group
            if not isinstance(error, (Stopped, LostError)) and process_group.all_failed():
                with suppress(Exception):  # the device itself may have failed; the first error counts
                    self.save()
                    if process_group.broadcast_object(self.outputs.checkpointer.wait):
                        steps = self.progress.steps
                        self.console.warn(f"step {steps:,} is saved; -r starts with the validation after it")
            raise

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint: tensors and plain values. Raises UserError if there is anything else."""
        state = {name: _state_of(part, name) for name, part in self.stateful().items()}
        state["random"] = self.runtime.process_group.gather(generator_states())
        state["writers"] = self.outputs.writers.state_dict()
        return checkpoint.plain({**state, "config": self.experiment.saved_config})

    # ------------------------------------------------------------------ loading one

    def load_state_dict(self, state: dict[str, Any], source: Path) -> None:
        """Restore all parts and random generators from a checkpoint. Raises CheckpointError if one does not match.

        Changes nothing on disk.
        """
        parts = {"data": self.saved_data, **self.stateful()}  # first: other parts may depend on the size of the data
        for name in state:
            if name not in parts and part_kind(name) not in STANDARD_PARTS | BESIDE_PARTS:
                raise _mismatch(name, source, f"{name}: stateful() of the trainer no longer returns it")
        loads = {name: partial(load_part, part, in_order=True) for name, part in parts.items()}
        _load({**loads, "random": self._restore_random, "writers": self.outputs.writers.check}, state, source)
        self._saved_progress = self.progress.state_dict()

    def _restore_random(self, states: Any) -> None:
        """Each process restores its own generators; a process that had none seeds new ones."""
        rank = self.runtime.process_group.rank
        if not isinstance(states, list) or not states:
            raise ValueError("no states of random generators")
        if rank < len(states):
            restore_generators(states[rank])
        else:
            seed_generators(self.experiment.seed, "joined", rank, self.progress.steps)

    def load_for_evaluation(self, state: Mapping[str, Any], source: Path) -> None:
        """Restore what exists without training: the model and the parts added by a subclass.

        A test then evaluates what the validation did. Raises CheckpointError if one does not match.
        """
        _load({name: partial(load_part, part) for name, part in self.stateful().items()}, state, source)


def _state_of(part: Any, name: str) -> Any:
    """The ``state_dict`` of a part. Raises UserError if it fails, for example for LambdaLR with a builtin function."""
    try:
        return part.state_dict()
    except (AttributeError, TypeError, ValueError, LookupError) as error:  # others are of the device or a process
        raise UserError(f"{name} cannot be saved: {format_error_with_source(error)}") from error


def _load(loads: Mapping[str, Callable[[Any], Any]], state: Mapping[str, Any], source: Path) -> None:
    for name, load in loads.items():
        if name not in state:
            raise CheckpointError(f"{source} has no part {name}, which stateful() of the trainer returns")
        try:
            load(state[name])
        except UserError:
            raise
        except Exception as error:  # any error: torch's and the user's code got untrusted values
            raise _mismatch(name, source, format_error_with_source(error)) from error


def _mismatch(part: str, source: Path, why: str) -> CheckpointError:
    return CheckpointError(f"the part {part} in {source} does not match this run's config and code: {why}")
