"""What changes from epoch to epoch, before the first step of each."""

from collections.abc import Mapping

from torch import Tensor

from base.training.parameters import Parameters
from base.training.trainer_interface import TrainerInterface
from utils.device_errors import device_failure
from utils.errors import ConfigError, Stopped, UserError
from utils.optimizers import laid_out_like, start_state
from utils.random import isolated
from utils.text import listed
from utils.tree import describe_batch, has_strides
from utils.user_code import format_error, user_line


def begins_epochs(trainer: TrainerInterface) -> bool:
    """Whether a trainer or one of its data loaders defines ``begin_epoch``."""
    own = type(trainer).begin_epoch is not TrainerInterface.begin_epoch
    return own or any(loader.defines("begin_epoch") for loader in trainer.training.loaders)


def prepare_epoch(trainer: TrainerInterface, epochs: int) -> None:
    """Apply what changes from epoch to epoch to a trainer. epochs: number of finished epochs."""
    trainer.model.train()  # before the trainer's begin_epoch, which may put a module into evaluation mode
    strategy = trainer.runtime.strategy
    with strategy.sharded_between_calls(trainer.model):
        if begins_epochs(trainer):
            _begin_epoch(trainer, epochs)
    trainer.saved_data.check_lengths()
    if not trainer.progress.epoch_steps:
        trainer.training.batches.begin_epoch(trainer.runtime.process_group)
    if not trainer.model.training:  # the whole model, as to show samples
        trainer.model.train()
    trainer.training.frozen.apply(epochs)
    strategy.begin_epoch(trainer.model, several_optimizers=trainer.training.several)
    for each in trainer.training.optimizers.values():
        start_state(each.optimizer)


def _begin_epoch(trainer: TrainerInterface, epochs: int) -> None:
    """Call ``begin_epoch`` of the data loaders and the trainer."""
    changing = [loader for loader in trainer.training.loaders if loader.defines("begin_epoch")]
    before = {name: parameter.data for name, parameter in _known_parameters(trainer).items()}
    try:
        for loader in changing:
            with isolated(trainer.experiment.seed, "epoch", epochs):
                loader.begin_epoch(epochs + 1)
        if changing:
            trainer.training.close_workers()  # new worker processes get the data set as it is now
        with isolated(trainer.experiment.seed, "epoch", epochs):  # as before a test, without the loaders' draws
            trainer.begin_epoch(epochs + 1)
        trainer.training.close_workers(streams=False)  # which would be read again up to here
    except Exception as error:  # of the user's code, such as one that samples from the model
        line = user_line(error)
        if trainer.has_started or isinstance(error, (UserError, Stopped)) or not line or device_failure(error):
            raise
        raise UserError(f"begin_epoch failed before the first step: {format_error(error)}\n{line}") from error
    finally:  # says more than the error of a state that does not fit new parameters
        _check_parameters(trainer, before)


def _known_parameters(trainer: TrainerInterface) -> Parameters:
    """The parameters that a resumed run has. None with FSDP, which replaces parameters itself."""
    return {} if trainer.runtime.sharded else trainer.training.frozen.parameters


def _check_parameters(trainer: TrainerInterface, before: Mapping[str, Tensor]) -> None:
    """Raise ConfigError if ``begin_epoch`` gave the model parameters that no resumed run would have.

    Lays out in memory as before what it assigned to ``.data``: a fused kernel would apply the optimizer's state, laid
    out as before, to other weights. before: the values, by name.
    """
    known = _known_parameters(trainer)
    for name, value in before.items():
        now, data = known[name], known[name].data
        if (data.shape, data.dtype) != (value.shape, value.dtype):
            raise ConfigError(
                f"begin_epoch changed {name} from {describe_batch(value)} to {describe_batch(data)}, which no resumed "
                "run would have; create it so in the model's constructor"
            )
        if has_strides(value) and data.stride() != value.stride():
            now.data = laid_out_like(data, value)
    named = trainer.model.named_parameters() if known else ()
    new = [n for n, each in named if known.get(n) is not each and (each.requires_grad or n not in known)]
    if new:
        raise ConfigError(
            f"begin_epoch gave the model new parameters, or old ones new names, which no resumed run would have: "
            f"{listed(new)}. Create them in the model's constructor (prune.identity does for torch's pruning) and use "
            "them from this epoch on (docs/training.md: What depends on the epoch), or start a new run with --init-from"
        )
