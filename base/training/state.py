"""A trainer's state: restored from a checkpoint, restored after a dry run, and checks that a saved one matches the run.

``trainer`` is a BaseTrainer, whose module imports this one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from base.training.parameters import loss_module
from utils import checkpoint
from utils.checkpoint.weights_file import AVERAGED
from utils.errors import CheckpointError, UserError
from utils.optimizers import is_own, parameters_in
from utils.random import generator_states, isolated, restore_generators, seed_generators
from utils.text import dotted
from utils.tree import Keys, copied, same
from utils.user_code import format_error_with_source

# layouts of sparse tensors that torch copies only into tensors with as many values
COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
# our own parts, whose values keep their type; a user's part may change it
CHECKED_PARTS = ("data", "schedule", "runtime", "metrics")
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

    Values are checked too, as a checksum proves nothing: anybody can compute it. Changes nothing on disk.
    """
    parts = {"data": trainer.saved_data, **trainer.stateful()}  # first: other parts may depend on the size of the data
    checkpoint.saved_progress(state, source)
    if gone := [name for name in state if name not in parts and part_kind(name) not in STANDARD_PARTS | BESIDE_PARTS]:
        raise _mismatch(gone[0], source, f"{gone[0]}: stateful() of the trainer no longer returns it")

    def restore_random(states: list[Any]) -> None:
        """Each process restores its own generators; a process that had none seeds new ones."""
        _check(states, [generator_states()], ("random",))
        if not states:
            raise _Unlike(("random",), "empty")
        rank = trainer.runtime.process_group.rank
        if rank < len(states):
            restore_generators(states[rank])
        else:
            seed_generators(trainer.experiment.seed, "joined", rank, trainer.progress.steps)

    loads = {name: partial(_load_checked, name, part) for name, part in parts.items()}
    _load({**loads, "random": restore_random, "writers": trainer.outputs.writers.check}, state, source)
    trainer.saved_data.check_position(trainer.progress.samples)
    if warning := trainer.saved_data.changed_facts(state["data"]):
        trainer.console.warn(warning)


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
            why = str(error) if isinstance(error, _Unlike) else format_error_with_source(error)
            raise _mismatch(name, source, why) from error


def _mismatch(part: str, source: Path, why: str) -> CheckpointError:
    return CheckpointError(f"the part {part} in {source} does not match this run's config and code: {why}")


def load_part(part: Any, state: Any) -> None:
    """Load the state of a part of a checkpoint: a module, or anything else with ``load_state_dict``."""
    fit_buffers(part, state)
    part.load_state_dict(state)


def fit_buffers(module: Any, state: Any) -> None:
    """Replace the buffers of a module that could not take their saved values, so that its ``load_state_dict`` can.

    state: what its ``state_dict`` returned. Does nothing for a part of a checkpoint that is not a module.
    """
    if not isinstance(module, nn.Module) or not isinstance(state, Mapping):
        return
    parameters = dict(module.named_parameters(remove_duplicate=False))
    shared: dict[int, str] = {}
    replaced: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or name in parameters:
            continue
        owner = _owner(module, name)
        if owner is None:
            continue
        leaf = name.rpartition(".")[2]
        buffer = getattr(owner, leaf)
        fits = isinstance(buffer, Tensor) and (buffer.shape, buffer.dtype) == (value.shape, value.dtype)
        if fits and value.layout in COMPRESSED:
            fits = buffer.layout == value.layout and buffer.values().shape == value.values().shape
        first = name if buffer is None else shared.setdefault(id(buffer), name)
        alike = first == name or same(state[first], value)
        if not fits or not alike:
            device = next((each.device for each in (buffer, *parameters.values()) if each is not None), value.device)
            known = replaced.get(first) if alike else None
            replaced[name] = value.detach().to(device).clone() if known is None else known
            setattr(owner, leaf, replaced[name])


def _owner(module: nn.Module, name: str) -> nn.Module | None:
    """The module that has registered a buffer, perhaps as None; None if no module has."""
    path, _, leaf = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return None
    # torch returns what is registered by __getattr__ alone
    registered = hasattr(owner, leaf) and leaf not in vars(owner) and not hasattr(type(owner), leaf)
    return owner if registered and isinstance(getattr(owner, leaf), (Tensor, type(None))) else None


# ------------------------------------------------------------------ dry runs, whose effects are undone


@contextmanager
def untouched(trainer: Any, *key: int | str) -> Iterator[None]:
    """Inside the block, a BaseTrainer's steps may be tried, without gradients and without compiling the model.

    Afterwards the random generators, the modes and buffers of model and loss, and the parts that a subclass adds to
    ``stateful`` are as they were. key: what the random numbers inside the block depend on.
    """
    parts = own_parts(trainer)
    roots = [trainer.experiment.model, loss_module(trainer.experiment.criterion), *parts.values()]
    modules = [module for root in roots if isinstance(root, nn.Module) for module in root.modules()]
    modes = [(module, module.training) for module in modules]
    buffers = [(module, {name: (each, each.clone()) for name, each in _buffers(module)}) for module in modules]
    eager: Any = nullcontext()
    if trainer.runtime.settings.compile:
        eager = torch.compiler.set_stance("force_eager")  # compiling would take longer than the step
    with kept(parts), isolated(trainer.experiment.seed, *key), torch.no_grad(), eager:
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for module, before in buffers:
                for name in {name for name, _ in _buffers(module)} - before.keys():  # registered as None
                    setattr(module, name, None)
                for name, (buffer, values) in before.items():
                    setattr(module, name, buffer.copy_(values))  # the module may have replaced it


@contextmanager
def kept(parts: dict[str, Any]) -> Iterator[None]:
    """Inside the block, these parts of a checkpoint may change; afterwards they are as they were."""
    states = copied(_states(parts))
    try:
        yield
    finally:
        for name, state in _states(parts).items():
            if not same(state, states[name]):
                load_part(parts[name], states[name])


def _states(parts: dict[str, Any]) -> dict[str, Any]:
    """The states of some parts, as a checkpoint would return them."""
    return checkpoint.plain({name: part.state_dict() for name, part in parts.items()})


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers of a module, without those of the modules in it."""
    return module.named_buffers(recurse=False, remove_duplicate=False)


# ------------------------------------------------------------------ checks of a saved state


def _load_checked(name: str, part: Any, saved: Any) -> None:
    """Load a part of a checkpoint. Raises _Unlike first for values that it would not refuse."""
    kind = part_kind(name)
    if kind in CHECKED_PARTS:
        own = part.state_dict()
        if kind == "metrics":
            own = _loaded_metrics(saved, own)
        elif kind == "schedule" and isinstance(saved, Mapping) and saved.get("made_from") != own["made_from"]:
            own |= {"scheduler": None, "made_from": {}}  # a different schedule, recomputed on resume
        _check(saved, own, (name,))
    if isinstance(part, Optimizer):
        _check_optimizer(saved, part, name)
    if isinstance(part, nn.Module):
        _check_dtypes(saved, part, name)
    load_part(part, saved)


def _loaded_metrics(saved: Any, own: dict[str, Any]) -> dict[str, Any]:
    """The state of those metrics that a saved state is loaded into: not of those that are defined otherwise now."""
    before = saved.get("definitions") if isinstance(saved, Mapping) else None
    if not isinstance(before, Mapping):
        return own
    changed = {name for name, definition in own["definitions"].items() if before.get(name) != definition}
    unchanged = [{name: state for name, state in part.items() if name not in changed} for part in own["processes"]]
    return {"processes": unchanged, "definitions": {}}


def part_name(kind: str, name: str) -> str:
    """The name of a checkpoint part, "optimizer.generator"; of the only optimizer, whose name is "", "optimizer"."""
    return f"{kind}.{name}" if name else kind


def part_kind(part: str) -> str:
    """The kind of a checkpoint part: "optimizer" for "optimizer.generator"."""
    return part.partition(".")[0]


class _Unlike(ValueError):  # noqa: N818  (becomes a CheckpointError with the path of the file)
    """A value, named by its keys, that cannot belong to this run."""

    def __init__(self, keys: Keys, message: str) -> None:
        super().__init__(f"{dotted(keys)}: {message}")


def _check(saved: Any, own: Any, keys: Keys) -> None:
    """Raise _Unlike if a value has another type than ours, or is an integer too large for a tensor."""
    if own is None or (saved is None and isinstance(own, Mapping)):  # a schedule that was added or removed
        return
    name, fits = next((name, fits) for kinds, name, fits in KINDS if isinstance(own, kinds))
    if not fits(saved, own, keys):
        raise _Unlike(keys, f"should be {name}, got {_described(saved)}")
    if isinstance(own, Mapping):
        for key, value in own.items():
            if key in saved:
                _check(saved[key], value, (*keys, key))
    elif isinstance(own, (list, tuple)) and own:
        for index, value in enumerate(saved):
            like = own[min(index, len(own) - 1)]
            _check(value, like, (*keys, index))
            if part_kind(str(keys[0])) == "schedule" and isinstance(like, Mapping) and value.keys() != like.keys():
                raise _Unlike((*keys, index), f"should have the keys {', '.join(map(str, like))}")


def _is_number(saved: Any, own: Any, keys: Keys) -> bool:
    if isinstance(saved, Tensor):
        return part_kind(str(keys[0])) == "optimizer" and saved.dim() == 0  # a learning rate may be a tensor
    return isinstance(saved, float) or (type(saved) is int and abs(saved) < 2**63)


def _is_tensor(saved: Any, own: Tensor, keys: Keys) -> bool:
    # a state of a metric that begins as a number may get its shape from the first batch
    grows = keys[0] == "metrics" and own.dim() == 0
    alike = isinstance(saved, Tensor) and (saved.shape == own.shape or grows)
    return alike or (own.dim() == 0 and _is_number(saved, own, keys))


KINDS: list[tuple[Any, str, Callable[[Any, Any, Keys], bool]]] = [
    (bool, "true or false", lambda saved, own, keys: isinstance(saved, bool)),
    ((int, float), "a number", _is_number),
    (str, "text", lambda saved, own, keys: isinstance(saved, str)),
    (Tensor, "a tensor of the same shape", _is_tensor),
    (Mapping, "a dict", lambda saved, own, keys: isinstance(saved, Mapping)),
    ((list, tuple), "a list", lambda saved, own, keys: isinstance(saved, (list, tuple))),
    (object, "something else", lambda saved, own, keys: True),
]


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{value!r:.40}" if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__


def _check_dtypes(saved: Any, module: nn.Module, name: str) -> None:
    """Raise _Unlike if a parameter has another dtype than when it was saved: torch would convert its value."""
    now_saved = module.state_dict()  # its own method may convert them
    for key, _ in module.named_parameters():
        before, after = (each.get(key) if isinstance(each, Mapping) else None for each in (saved, now_saved))
        if isinstance(before, Tensor) and isinstance(after, Tensor) and before.dtype != after.dtype:
            saved_as, now = (str(each.dtype).removeprefix("torch.") for each in (before, after))
            raise _Unlike(
                (name, key),
                f"saved in {saved_as}, but the code now creates it in {now}. Undo that change, or start a new run from "
                "these weights with --init-from, which converts them",
            )


def _check_optimizer(saved: Any, optimizer: Optimizer, name: str) -> None:
    _check(saved, {"state": {}, "param_groups": [{}]}, (name,))
    own = optimizer.state_dict()["param_groups"]
    for index, (group, values) in enumerate(zip(saved.get("param_groups", []), own, strict=False)):
        keys: Keys = (name, "param_groups", index)
        if missing := optimizer.defaults.keys() - group.keys():
            raise _Unlike(keys, f"missing {', '.join(sorted(missing))}")
        for key in values.keys() & group.keys():
            if not (key in ("foreach", "fused") and group[key] is None):  # torch chooses, possibly differently before
                _check(group[key], values[key], (*keys, key))
            if isinstance(values[key], (list, tuple)) and len(group[key]) != len(values[key]):
                raise _Unlike((*keys, key), f"should have {len(values[key])} values")
        if group["params"] != values["params"]:
            raise _Unlike((*keys, "params"), "the parameters do not match")

    parameters = parameters_in(optimizer)
    own_form = is_own(optimizer)  # may share values, or keep single tensors
    for index, values in saved.get("state", {}).items():
        keys = (name, "state", index)
        if own_form and (isinstance(index, str) or not isinstance(values, Mapping)):
            continue
        if type(index) is not int or not 0 <= index < len(parameters):
            raise _Unlike(keys, f"should have {len(parameters)} parameters")
        if not isinstance(values, Mapping):
            raise _Unlike(keys, f"should be a dict, got {_described(values)}")
        if "step" in values and not (isinstance(values["step"], Tensor) and values["step"].numel() == 1):
            _check(values["step"], 0, (*keys, "step"))
        for key in sorted(LIKE_PARAMETER & values.keys()):
            shape = getattr(values[key], "shape", None)
            optional = key == "momentum_buffer" and values[key] is None
            if not optional and shape != parameters[index].shape:
                raise _Unlike((*keys, key), f"should have shape {tuple(parameters[index].shape)}")
