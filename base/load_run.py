"""The trained model of another run, such as a teacher."""

from pathlib import Path

from torch import nn

from base.construct import arguments_of, call
from utils.checkpoint.weights_file import read_weights
from utils.config import load_config
from utils.errors import CheckpointError
from utils.paths import project_path
from utils.random import isolated
from utils.registry import MODELS
from utils.run_folder import RunFolder
from utils.user_code import format_error_with_source


def load_run(run: str | Path) -> nn.Module:
    """The model of a run folder, or of a checkpoint in one, with the weights that its test evaluates.

    It is on the CPU, in evaluation mode, and does not require gradients. Building it draws no random numbers from those
    of the training. A relative path begins at the project's folder. Raises CheckpointError if the run is missing or
    damaged, or if its model has another shape today.
    """
    path = project_path(str(run))
    folder, _ = RunFolder.of(path)
    loaded = load_config(folder.config, dry_run=False)
    component = loaded.config.model
    with isolated(loaded.config.seed, "model"):
        args = arguments_of(loaded, MODELS, component.type, component.args, ("model", "args"))
        model = call(loaded, ("model", "args"), component.type, lambda: MODELS[component.type](**args), nn.Module)
    file, weights = read_weights(path)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        message = f"the weights of {file} do not fit {component.type}: {format_error_with_source(error)}"
        raise CheckpointError(message) from error
    return model.eval().requires_grad_(False)
