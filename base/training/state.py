"""What a checkpoint has of a trainer, and how a trainer takes it back.

The functions take a BaseTrainer, whose module imports this one.
"""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.training.saved_state import check_state
from utils import checkpoint
from utils.errors import CheckpointError, UserError
from utils.random import generator_states, restore_generators, seed_generators
from utils.tree import map_tensors
from utils.user_code import format_error_with_source

OWN_PARTS = {"data", "model", "loss", "averaged_weights", "optimizer", "schedule", "runtime", "metrics", "progress"}


def state_of(trainer: Any) -> dict[str, Any]:
    """The state of every part, by name, of the random generators and the logs, and what of the config cannot change.

    Tensors and plain values; raises UserError if there is anything else.
    """
    state = {name: part.state_dict() for name, part in trainer.stateful().items()}
    state["random"] = trainer.runtime.process_group.gather(generator_states())
    state["writers"] = trainer.outputs.writers.state_dict()
    return checkpoint.plain({**state, "config": trainer.experiment.fixed})


def parts_that_differ(trainer: Any) -> list[str]:
    """The parts that a subclass has added whose state is not the same in all processes."""
    if trainer.runtime.process_group.world_size == 1:
        return []
    added = {name: part for name, part in trainer.stateful().items() if name.partition(".")[0] not in OWN_PARTS}
    digests = {name: _digest(checkpoint.plain({name: part.state_dict()})) for name, part in added.items()}
    everyone = trainer.runtime.process_group.all_gather(digests)
    return [name for name in digests if any(other[name] != digests[name] for other in everyone)]


def _digest(state: Any) -> str:
    """The same for equal states."""

    def content(tensor: Tensor) -> str:
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        return blake2b(data.numpy().tobytes()).hexdigest()

    return blake2b(repr(map_tensors(content, state)).encode()).hexdigest()


def load_state(trainer: Any, state: dict[str, Any], source: Path) -> None:
    """Take the parts and the random generators from a checkpoint. Raises CheckpointError if a part does not fit."""
    parts = trainer.stateful()
    check_state(state, parts, [generator_states()], source)
    trainer.outputs.writers.check(state["writers"])

    def restore_random(states: list[Any]) -> None:
        """Each process resumes its own generators; one that had none before seeds new ones."""
        rank = trainer.runtime.process_group.rank
        if rank < len(states):
            restore_generators(states[rank])
        else:
            seed_generators(trainer.experiment.seed, "joined", rank, trainer.progress.steps)

    loads = {name: part.load_state_dict for name, part in parts.items() if name in state}
    _load({**loads, "random": restore_random}, state, source)


def load_for_evaluation(trainer: Any, state: dict[str, Any], source: Path) -> None:
    """Take from a checkpoint what is there without training: the model and the parts that a subclass has added, so that
    a test evaluates what the validation did. Raises CheckpointError if one does not fit.
    """
    _load({name: part.load_state_dict for name, part in trainer.stateful().items()}, state, source)


def _load(loads: Mapping[str, Callable[[Any], Any]], state: Mapping[str, Any], source: Path) -> None:
    for name, load in loads.items():
        try:
            load(state[name])
        except UserError:
            raise
        except Exception as error:  # of any kind: torch's and the user's code got untrusted values
            what = format_error_with_source(error)
            raise CheckpointError(f"the {name} in {source} does not fit the config of this run: {what}") from error
