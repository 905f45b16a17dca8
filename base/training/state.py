"""A trainer's state: restored from a checkpoint, or as it was before a block.

``trainer`` is a BaseTrainer, whose module imports this one.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.checkpoint.weights_file import AVERAGED
from utils.errors import CheckpointError, UserError
from utils.optimizers import parameters_in
from utils.random import restore_generators, seed_generators
from utils.tree import same
from utils.user_code import format_error_with_source

STANDARD_PARTS = {
    "model", "loss", AVERAGED, "optimizer", "schedule", "runtime", "metrics", "progress", "data",
}  # fmt: skip
BESIDE_PARTS = {"format", "config", "random", "writers"}
# state of torch's optimizers that has the shape of the parameter
LIKE_PARAMETER = {
    "acc_delta", "exp_avg", "exp_avg_sq", "exp_inf", "grad_avg", "max_exp_avg_sq", "momentum_buffer", "square_avg",
    "sum",
}  # fmt: skip


def own_parts(trainer: Any) -> dict[str, Any]:
    """The parts that a subclass adds to ``stateful`` of a BaseTrainer."""
    parts = trainer.stateful() or {}  # if nothing is returned, check_parts says so
    return {name: part for name, part in parts.items() if part_kind(name) not in STANDARD_PARTS}


def load_state(trainer: Any, state: dict[str, Any], source: Path) -> None:
    """Restore all parts and random generators from a checkpoint. Raises CheckpointError if one does not match.

    Changes nothing on disk.
    """
    parts = {"data": trainer.saved_data, **trainer.stateful()}  # first: other parts may depend on the size of the data
    if gone := [name for name in state if name not in parts and part_kind(name) not in STANDARD_PARTS | BESIDE_PARTS]:
        raise _mismatch(gone[0], source, f"{gone[0]}: stateful() of the trainer no longer returns it")

    def restore_random(states: list[Any]) -> None:
        """Each process restores its own generators; a process that had none seeds new ones."""
        rank = trainer.runtime.process_group.rank
        if not isinstance(states, list) or not states:
            raise ValueError("no states of random generators")
        if rank < len(states):
            restore_generators(states[rank])
        else:
            seed_generators(trainer.experiment.seed, "joined", rank, trainer.progress.steps)

    loads = {name: partial(load_part, part) for name, part in parts.items()}
    _load({**loads, "random": restore_random, "writers": trainer.outputs.writers.check}, state, source)


def load_for_evaluation(trainer: Any, state: dict[str, Any], source: Path) -> None:
    """Restore what exists without training: the model and the parts added by a subclass.

    A test then evaluates what the validation did. Raises CheckpointError if one does not match.
    """
    _load({name: partial(load_part, part) for name, part in trainer.stateful().items()}, state, source)


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


def load_part(part: Any, state: Any) -> None:
    """Load the state of a part of a checkpoint: a module, or anything else with ``load_state_dict``."""
    fit_buffers(part, state)
    if isinstance(part, nn.Module):
        _check_dtypes(part, state)
    part.load_state_dict(state)
    if isinstance(part, Optimizer):
        _check_optimizer(part)


def _check_dtypes(module: nn.Module, state: Any) -> None:
    """Raise ValueError if the code now creates a weight in another dtype: torch would convert the saved value."""
    now = module.state_dict()  # its own method may convert them
    for name, value in now.items() if isinstance(state, Mapping) and isinstance(now, Mapping) else ():
        saved = state.get(name)
        if isinstance(value, Tensor) and isinstance(saved, Tensor) and value.dtype != saved.dtype:
            raise ValueError(f"{name} is saved in {saved.dtype}, not in {value.dtype}; --init-from converts it")


def _check_optimizer(optimizer: Optimizer) -> None:
    """Raise ValueError if a loaded argument is not a number, or the state of a parameter has another shape.

    So it has if the code now creates the parameters in another order; a fused kernel would read memory beyond it.
    """
    for group in optimizer.param_groups:
        for key, default in optimizer.defaults.items():
            if type(default) in (int, float) and not isinstance(group.get(key), (int, float, Tensor)):
                raise ValueError(f"{key} should be a number, not {group.get(key)!r}")
    for index, parameter in enumerate(parameters_in(optimizer)):
        values: Any = optimizer.state.get(parameter)
        for key in LIKE_PARAMETER & values.keys() if isinstance(values, dict) else ():  # others keep single tensors
            shape = getattr(values[key], "shape", parameter.shape)
            if shape != parameter.shape:
                raise ValueError(f"{key} of parameter {index} has shape {tuple(shape)}, not {tuple(parameter.shape)}")


def fit_buffers(module: Any, state: Any) -> None:
    """Replace the buffers of a module that could not take their saved values, so that its ``load_state_dict`` can.

    state: what its ``state_dict`` returned. Does nothing for a part of a checkpoint that is not a module.
    """
    if not isinstance(module, nn.Module) or not isinstance(state, Mapping):
        return
    parameters = dict(module.named_parameters(remove_duplicate=False))
    owners = dict(module.named_modules(remove_duplicate=False))
    shared: dict[int, str] = {}
    replaced: dict[str, Tensor] = {}
    for name, value in state.items():
        path, _, leaf = name.rpartition(".")
        owner = owners.get(path)
        # torch returns what is registered, perhaps as None, by __getattr__ alone
        registered = hasattr(owner, leaf) and leaf not in vars(owner) and not hasattr(type(owner), leaf)
        buffer = getattr(owner, leaf) if registered else ""
        if name in parameters or not isinstance(value, Tensor) or not isinstance(buffer, (Tensor, type(None))):
            continue
        first = name if buffer is None else shared.setdefault(id(buffer), name)
        alike = first == name or same(state[first], value)
        fits = buffer is not None and (buffer.shape, buffer.dtype) == (value.shape, value.dtype)
        if not fits or not alike or value.layout is not torch.strided:  # some sparse ones take only as many values
            device = next((each.device for each in (buffer, *parameters.values()) if each is not None), value.device)
            known = replaced.get(first) if alike else None
            replaced[name] = value.detach().to(device).clone() if known is None else known
            setattr(owner, leaf, replaced[name])


def part_name(kind: str, name: str) -> str:
    """The name of a checkpoint part, "optimizer.generator"; of the only optimizer, whose name is "", "optimizer"."""
    return f"{kind}.{name}" if name else kind


def part_kind(part: str) -> str:
    """The kind of a checkpoint part: "optimizer" for "optimizer.generator"."""
    return part.partition(".")[0]
