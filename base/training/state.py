"""The parts of a checkpoint: their names, and how the state of one is loaded."""

import contextlib
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.checkpoint.weights_file import AVERAGED
from utils.errors import UserError
from utils.optimizers import parameters_in
from utils.text import listed
from utils.tree import same

STANDARD_PARTS = {
    "model", "loss", AVERAGED, "optimizer", "schedule", "runtime", "metrics", "progress", "data",
}  # fmt: skip
# state of torch's optimizers that has the shape of the parameter
LIKE_PARAMETER = {
    "acc_delta", "exp_avg", "exp_avg_sq", "exp_inf", "grad_avg", "max_exp_avg_sq", "momentum_buffer", "square_avg",
    "sum",
}  # fmt: skip


def own_parts(stateful: Mapping[str, Any]) -> dict[str, Any]:
    """The parts among those of a trainer that a subclass has added."""
    return {name: part for name, part in (stateful or {}).items() if part_kind(name) not in STANDARD_PARTS}


def load_part(part: Any, state: Any, *, in_order: bool = False) -> None:
    """Load the state of a part of a checkpoint: a module, or anything else with ``load_state_dict``.

    in_order: raise ValueError if the parameters of a module are now created in another order.
    """
    fit_buffers(part, state)
    if isinstance(part, nn.Module):
        now = part.state_dict()  # its own method may convert, sort or nest them
        if isinstance(state, Mapping) and isinstance(now, Mapping):
            _check_dtypes(now, state)
            if in_order:
                _check_order(part, now, state)
    part.load_state_dict(state)
    if isinstance(part, Optimizer):
        _check_optimizer(part)


def _check_dtypes(now: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Raise ValueError if the code now creates a weight in another dtype: torch would convert the saved value."""
    for name, value in now.items():
        saved = state.get(name)
        if isinstance(value, Tensor) and isinstance(saved, Tensor) and value.dtype != saved.dtype:
            raise ValueError(f"{name} is saved in {saved.dtype}, not in {value.dtype}; --init-from converts it")


def _check_order(module: nn.Module, now: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Raise ValueError if the code now creates parameters of one shape in another order.

    An optimizer assigns its state by that order, and so would assign it to the wrong parameters. If other parameters
    are between them, as after one was registered again in training, ``_check_optimizer`` finds what does not match.
    """
    both = [name for name, _ in module.named_parameters() if name in now and isinstance(state.get(name), Tensor)]
    shapes = {name: tuple(state[name].shape) for name in both}
    orders = [sorted(filter(shapes.__contains__, each), key=shapes.__getitem__, reverse=True) for each in (state, now)]
    for before, after in zip(*orders, strict=True):
        if before != after:
            raise ValueError(
                f"the parameter {before} is now created after {after}, and was created before it, so it would get "
                "the state that the optimizer has for another one; create them in the same order as before"
            )


def _check_optimizer(optimizer: Optimizer) -> None:
    """Raise ValueError if a loaded argument is not a number, or the state of a parameter has another shape.

    This happens if the code now creates the parameters in another order; a fused kernel would read memory beyond it.
    """
    for group in optimizer.param_groups:
        for key, default in optimizer.defaults.items():
            if type(default) in (int, float) and not isinstance(group.get(key), (int, float, Tensor)):
                raise ValueError(f"{key} should be a number, not {group.get(key)!r}")
    for index, parameter in enumerate(parameters_in(optimizer)):
        values: Any = optimizer.state.get(parameter)
        if not isinstance(values, dict):  # of the user's optimizer, which may keep a single tensor
            continue
        for key in LIKE_PARAMETER & values.keys():
            shape = getattr(values[key], "shape", parameter.shape)
            if shape != parameter.shape:
                raise ValueError(f"{key} of parameter {index} has shape {tuple(shape)}, not {tuple(parameter.shape)}")


def fit_buffers(module: Any, state: Any) -> None:
    """Replace the buffers of a module that could not take their saved values, so that its ``load_state_dict`` can.

    state: what its ``state_dict`` returned. Does nothing for a part of a checkpoint that is not a module.
    """
    if not isinstance(module, nn.Module) or not isinstance(state, Mapping):
        return
    owners = dict(module.named_modules(remove_duplicate=False))
    shared: dict[int, str] = {}
    replaced: dict[str, Tensor] = {}
    for name, value in state.items():
        path, _, leaf = name.rpartition(".")
        owner = owners.get(path)
        if owner is None or leaf not in owner._buffers or not isinstance(value, Tensor):
            continue
        buffer = owner._buffers[leaf]
        first = name if buffer is None else shared.setdefault(id(buffer), name)
        alike = first == name or same(state[first], value)
        fits = buffer is not None and (buffer.shape, buffer.dtype) == (value.shape, value.dtype)
        if not fits or not alike or value.layout is not torch.strided:  # some sparse ones take only as many values
            device = next((each.device for each in (buffer, *module.parameters()) if each is not None), value.device)
            known = replaced.get(first) if alike else None
            replaced[name] = value.detach().to(device).clone() if known is None else known
            setattr(owner, leaf, replaced[name])


def registered_names(part: Any) -> set[str]:
    """The names of a module's parts, parameters, and buffers, also of those that are None; empty for any other part."""
    modules = part.named_modules(remove_duplicate=False) if isinstance(part, nn.Module) else ()
    held = [(path, {**module._parameters, **module._buffers, **module._modules}) for path, module in modules]
    return {f"{path}.{name}" if path else name for path, names in held for name in names}


def check_registered(name: str, part: Any, state: Any, before: Set[str]) -> None:
    """Raise UserError if a module has registered what a new one, which has only the names ``before``, cannot load.

    name: of the part. state: its own.
    """
    saved = [f"{key}." for key in state] if isinstance(part, nn.Module) and isinstance(state, Mapping) else []
    new = [each for each in sorted(registered_names(part) - before) if any(key.startswith(f"{each}.") for key in saved)]
    if not new:
        return
    held = [each for module in part.modules() for each in (module._parameters, module._buffers, module._modules)]
    contents = [{**each} for each in held]
    try:
        for each in new:
            path, _, leaf = each.rpartition(".")
            with contextlib.suppress(AttributeError):  # gone with its module, or under another name
                delattr(part.get_submodule(path), leaf)
        part.load_state_dict(state)
    except Exception as error:  # of torch or the user's code
        if lost := [each for each in new if f"{each}." in saved and each not in registered_names(part)]:
            raise UserError(
                f"no checkpoint of this run could be loaded: its first step has registered {listed(lost)} in the part "
                f"{name}. Register them in the constructor, or buffers with persistent=False"
            ) from error
    finally:  # the values of its own may be shared, or belong to an optimizer
        for each, content in zip(held, contents, strict=True):
            each.clear()
            each.update(content)


def part_name(kind: str, name: str) -> str:
    """The name of a checkpoint part, "optimizer.generator"; of the only optimizer, whose name is "", "optimizer"."""
    return f"{kind}.{name}" if name else kind


def part_kind(part: str) -> str:
    """The kind of a checkpoint part: "optimizer" for "optimizer.generator"."""
    return part.partition(".")[0]
