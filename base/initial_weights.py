"""Initial weights of a run from a file named in its config: what is loaded, and everything that does not match."""

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from base.experiment import Experiment
from base.training.parameters import matches, no_match
from base.training.state import fit_buffers
from utils import checkpoint
from utils.checkpoint.weights_file import read_weights
from utils.config import LoadedConfig
from utils.config.located_json import Problem, config_error
from utils.distributed.process_group import ProcessGroup
from utils.errors import CheckpointError
from utils.paths import display_path, project_path
from utils.run_folder import RunFolder
from utils.schema import WeightsConfig
from utils.text import at_most, closest, count, listed
from utils.tree import describe_batch, has_strides
from utils.user_code import format_error_with_source

AT = ("model", "weights")
MOST_SHOWN = 20  # weights that do not match
WRAPPED = ("module.", "_orig_mod.")  # prefixes added by DDP and torch.compile


@dataclass(frozen=True)
class InitialWeights:
    """Weights loaded into a model from a file."""

    file: Path
    taken: dict[str, Any]
    """By the model's names. A resumed run loads these, and does not need the file."""
    left: list[str]
    """Names in the model that keep their own initialisation."""

    def __str__(self) -> str:
        """As in "8 tensors of lenet.pth; not loaded: fc3.weight, fc3.bias"."""
        left = f"; not loaded: {listed(self.left)}" if self.left else ""
        return f"{count(len(self.taken), 'tensor')} of {display_path(self.file)}{left}"


def load_initial_weights(loaded: LoadedConfig, model: nn.Module, process_group: ProcessGroup) -> InitialWeights | None:
    """Load the weights named in the config, in all processes; None if it names none.

    Raises UserError at the line in the config, with all names and shapes that do not match.
    """
    settings = loaded.config.model.weights
    if settings is None:
        return None
    try:
        file, weights = checkpoint.read_together(process_group, lambda: read_weights(project_path(settings.file)))
    except CheckpointError as error:
        raise CheckpointError(str(loaded.error((*AT, "file"), str(error)))) from error
    # not the state's values, which FSDP gathers only in the main process
    named = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    own = {name: named.get(name) for name in model.state_dict()}
    renamed, problems = _renamed(weights, own, settings)
    taken = {name: value for name, value in renamed.items() if not matches(name, settings.skip)}
    left = [name for name in _missing(own, taken) if matches(name, settings.skip)]
    names = {**own, **renamed}
    for index, pattern in enumerate(settings.skip):
        if not any(matches(name, [pattern]) for name in names):
            problems.append(Problem((*AT, "skip", index), no_match(pattern, names, what="parameter or buffer")))
    if not taken:
        problems.append(Problem((*AT, "skip"), f"this leaves no weights of {file} to load"))
    if misfits := dict(_misfits(own, taken, left)):
        lines = [f"  {line}" for line in at_most(MOST_SHOWN, [f"{name}: {how}" for name, how in misfits.items()])]
        # not while prefixes are misspelt: the advice would skip weights that were meant to be loaded
        advice = [] if problems else [_other_prefix(own, taken) or _advice(list(misfits), names)]
        shown = "\n".join([*lines, *advice])
        message = f"the weights in {file} do not match this model, {loaded.config.model.type}:\n{shown}"
        problems.append(Problem((*AT, "file"), message))
    if problems:
        raise config_error(loaded.document, problems)
    load_weights(model, taken, file, partial=True)
    return InitialWeights(file, taken, left)


def load_weights(model: nn.Module, weights: Mapping[str, Any], file: Path, *, partial: bool = False) -> None:
    """Load weights by the model's names. partial: the file may lack some of them, but must not have others.

    file: their origin, for messages. Raises CheckpointError listing what does not match.
    """
    to_fit = weights
    if partial:  # initial weights: buffers that are not sparse keep the model's dtypes
        to_fit = {name: each for name, each in weights.items() if isinstance(each, Tensor) and not has_strides(each)}
    fit_buffers(model, to_fit)
    try:
        result = model.load_state_dict(dict(weights), strict=not partial)
        unexpected = getattr(result, "unexpected_keys", ())  # a model's own method may return anything
    except Exception as error:  # any error: the user's code may get untrusted values
        lines = at_most(MOST_SHOWN, [line.strip() for line in str(error).splitlines()[1:]])
        reasons = "\n".join(lines) or format_error_with_source(error)
        raise CheckpointError(f"the weights in {file} do not match this model:\n{reasons}") from error
    if unexpected:
        raise CheckpointError(f"the weights in {file} do not match this model, which has no {unexpected[0]}")


def load_initial_weights_again(folder: RunFolder, experiment: Experiment) -> None:
    """Load the weights that a run began with, if from a file, as the trainer's constructor may copy the model."""
    if folder.initial.exists():
        state = checkpoint.read_together(experiment.runtime.process_group, lambda: checkpoint.read(folder.initial))
        load_weights(experiment.model, state["model"], folder.initial, partial=True)


# ------------------------------------------------------------------ names


def _renamed(
    weights: Mapping[str, Any], own: Mapping[str, Any], settings: WeightsConfig
) -> tuple[dict[str, Any], list[Problem]]:
    """The weights renamed by the config, without torch's wrapper prefixes; and problems with "rename"."""
    for wrapper in (*WRAPPED, *WRAPPED):  # in either order
        names = [*own, *settings.rename]
        if all(name.startswith(wrapper) for name in weights) and not any(name.startswith(wrapper) for name in names):
            weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
    renamed, problems, prefixes = dict[str, Any](), list[Problem](), dict[str, str | None]()
    for name, value in weights.items():
        prefix = max((each for each in settings.rename if name.startswith(each)), key=len, default=None)
        now = name if prefix is None else settings.rename[prefix] + name[len(prefix) :]
        if now in renamed:
            blamed = prefix if prefix is not None else prefixes[now]
            problems.append(Problem((*AT, "rename", blamed or ""), f'two weights would be called "{now}"'))
        renamed[now], prefixes[now] = value, prefix
    for old in settings.rename:
        if old not in prefixes.values():
            known = list(dict.fromkeys(prefix for name in weights for prefix in _prefixes(name)))
            close = closest(old, known)
            meant = f'did you mean "{close}"?' if close else f"expected one of: {listed(known)}"
            message = f'no name in the file starts with "{old}"; {meant}'
            problems.append(Problem((*AT, "rename", old), message))
    return renamed, problems


def _prefixes(name: str) -> list[str]:
    """The prefixes of a name: "a." and "a.b." for "a.b.weight"."""
    parts = name.split(".")[:-1]
    return [".".join(parts[: length + 1]) + "." for length in range(len(parts))]


# ------------------------------------------------------------------ mismatches


def _missing(own: Mapping[str, Tensor | None], taken: Mapping[str, Any]) -> list[str]:
    """The model's names without weights. For a tensor with two names, one is enough."""
    given = {id(tensor) for name, tensor in own.items() if name in taken and tensor is not None}
    return [name for name, tensor in own.items() if name not in taken and (tensor is None or id(tensor) not in given)]


def _misfits(own: Mapping[str, Tensor | None], taken: Mapping[str, Any], left: list[str]) -> Iterator[tuple[str, str]]:
    """Each name that does not match, and why."""
    for name in _missing(own, taken):
        if name not in left:
            yield name, f"not in the file; the model has {_described(own[name])}"
    for name, value in taken.items():
        if name not in own:
            yield name, f"not in the model; the file has {_described(value)}"
        elif own[name] is not None and not _fits(value, own[name]):
            yield name, f"the file has {_described(value)}, the model {_described(own[name])}"


def _fits(value: Any, own: Any) -> bool:
    if not isinstance(value, Tensor) or value.shape != own.shape:
        return False
    return (value.is_floating_point(), value.is_complex()) == (own.is_floating_point(), own.is_complex())


def _described(value: Any) -> str:
    return "its own state" if value is None else describe_batch(value)


def _other_prefix(own: Mapping[str, Any], taken: Mapping[str, Any]) -> str:
    """Advice if the names differ by a prefix, which a file of Lightning adds, say; else empty."""
    missing, extra = own.keys() - taken.keys(), taken.keys() - own.keys()
    for old in dict.fromkeys(prefix for name in extra for prefix in _prefixes(name)):
        if missing and missing <= {name.removeprefix(old) for name in extra if name.startswith(old)}:
            return f'The names match without a prefix: "rename": {{"{old}": ""}}'
    for new in dict.fromkeys(prefix for name in missing for prefix in _prefixes(name)):
        if extra and extra <= {name.removeprefix(new) for name in missing if name.startswith(new)}:
            return f'The names match with a prefix: "rename": {{"": "{new}"}}'
    return ""


def _advice(misfits: list[str], names: Mapping[str, Any]) -> str:
    """The skip patterns for these mismatches: of whole modules if nothing in them matches."""
    patterns = dict[str, None]()
    fitting = names.keys() - {*misfits}
    for name in misfits:
        whole = next((p for p in _prefixes(name) if not any(other.startswith(p) for other in fitting)), None)
        patterns[f"{glob.escape(whole)}*" if whole else glob.escape(name)] = None
    quoted = ", ".join(f'"{pattern}"' for pattern in patterns)
    return f'To leave out these weights: "skip": [{quoted}]; "rename" changes prefixes of its names'
