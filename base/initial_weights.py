"""Initial weights of a run from a file named in its config: what is loaded, and everything that does not match."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from base.experiment import Experiment
from base.training.parameters import matches, no_match
from base.training.state import fit_buffers
from utils import checkpoint
from utils.checkpoint.weights_file import read_weights
from utils.config import LoadedConfig, located
from utils.config.located_json import config_error
from utils.distributed.process_group import ProcessGroup
from utils.errors import CheckpointError, Problem, errors_at
from utils.paths import display_path, project_path
from utils.run_folder import RunFolder
from utils.schema import WeightsConfig
from utils.text import at_most, count, hint, listed
from utils.user_code import format_error_with_source

AT = ("model", "weights")
MOST_SHOWN = 20  # weights that do not match
ADVICE = 'To leave weights out: "skip": ["fc.*"]; to change the prefixes of names: "rename": {"model.": ""}'
WRAPPED = ("module.", "_orig_mod.")  # prefixes added by DDP and torch.compile


@dataclass(frozen=True)
class InitialWeights:
    """Weights loaded into a model from a file."""

    taken: dict[str, Any]
    """By the model's names. A resumed run loads these, and does not need the file."""
    description: str
    """As in "8 tensors of lenet.pth; not loaded: fc3.weight, fc3.bias"."""


@located
def load_initial_weights(loaded: LoadedConfig, model: nn.Module, process_group: ProcessGroup) -> InitialWeights | None:
    """Load the weights named in the config, in all processes; None if it names none.

    Raises UserError at the line in the config, with all names and shapes that do not match.
    """
    settings = loaded.config.model.weights
    if settings is None:
        return None
    with errors_at((*AT, "file")):
        file, weights = checkpoint.read_together(process_group, lambda: read_weights(project_path(settings.file)))
    # not the state's values, which FSDP gathers only in the main process
    named = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    model_tensors = {name: named.get(name, value) for name, value in model.state_dict().items()}
    renamed, problems = _renamed(weights, model_tensors, settings)
    taken = {name: value for name, value in renamed.items() if not matches(name, settings.skip)}
    names = {**model_tensors, **renamed}
    for index, pattern in enumerate(settings.skip):
        if not any(matches(name, [pattern]) for name in names):
            problems.append(Problem((*AT, "skip", index), no_match(pattern, names, what="parameter or buffer")))
    if not taken:
        problems.append(Problem((*AT, "skip"), f"this leaves no weights of {file} to load"))
    if problems:
        raise config_error(loaded.document, problems)
    # for a tensor with two names, one is enough
    loaded_ids = {id(model_tensors[name]) for name in taken if name in model_tensors}
    not_loaded = [name for name, value in model_tensors.items() if id(value) not in loaded_ids]
    missing = {name for name in not_loaded if not matches(name, settings.skip)}
    state = {name: value for name, value in model_tensors.items() if name not in missing} | taken
    with errors_at((*AT, "file"), advice=f"\n{ADVICE}"):
        _load(model, state, file)
    rest = f"; not loaded: {listed(not_loaded)}" if not_loaded else ""
    return InitialWeights(taken, f"{count(len(taken), 'tensor')} of {display_path(file)}{rest}")


def load_weights(model: nn.Module, weights: Mapping[str, Any], file: Path) -> None:
    """Load weights by the model's names. Raises CheckpointError listing what does not match.

    file: their origin, for messages.
    """
    fit_buffers(model, weights)
    _load(model, weights, file)


def _load(model: nn.Module, weights: Mapping[str, Any], file: Path, *, strict: bool = True) -> None:
    try:
        model.load_state_dict(dict(weights), strict=strict)
    except Exception as error:  # any error: the user's code may get untrusted values
        lines = at_most(MOST_SHOWN, [line.strip() for line in str(error).splitlines()[1:]])
        reasons = "\n".join(lines) or format_error_with_source(error)
        raise CheckpointError(f"the weights in {file} do not match this model:\n{reasons}") from error


def load_initial_weights_again(folder: RunFolder, experiment: Experiment) -> None:
    """Load the weights that a run began with, if from a file, as the trainer's constructor may copy the model."""
    if folder.initial.exists():
        state = checkpoint.read_together(experiment.runtime.process_group, lambda: checkpoint.read(folder.initial))
        _load(experiment.model, state["model"], folder.initial, strict=False)  # it lacks those left out


def _renamed(
    weights: Mapping[str, Any], own: Mapping[str, Any], settings: WeightsConfig
) -> tuple[dict[str, Any], list[Problem]]:
    """The weights renamed by the config, without torch's wrapper prefixes; and problems with "rename"."""
    for wrapper in (*WRAPPED, *WRAPPED):  # in either order
        names = [*own, *settings.rename]
        if all(name.startswith(wrapper) for name in weights) and not any(name.startswith(wrapper) for name in names):
            weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
    renamed, problems, used = dict[str, Any](), list[Problem](), set[str | None]()
    for name, value in weights.items():
        prefix = max((each for each in settings.rename if name.startswith(each)), key=len, default=None)
        now = name if prefix is None else settings.rename[prefix] + name[len(prefix) :]
        if now in renamed:
            problems.append(Problem((*AT, "rename"), f'two weights would be called "{now}"'))
        renamed[now] = value
        used.add(prefix)
    for old in [each for each in settings.rename if each not in used]:
        known = dict.fromkeys(f"{name.partition('.')[0]}." for name in weights)
        message = f'no name in the file starts with "{old}"; {hint(old, known)}'
        problems.append(Problem((*AT, "rename", old), message))
    return renamed, problems
