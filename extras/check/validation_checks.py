"""Checks of what otherwise first runs after an epoch: a trainer's own validation, and the start of the next epoch."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import torch

from base.base_trainer import BaseTrainer
from base.data.batches import Batches
from base.data.stream import StreamBatches
from base.training.epoch_start import prepare_epoch
from base.training.evaluation import check_returned
from extras.check.check_result import CheckResult
from extras.check.exactness_checks import exactness_note
from utils.random import generator_states
from utils.schema import validation_names
from utils.text import listed
from utils.tree import same
from utils.user_code import format_error, format_error_with_source, user_line


def own_validation(trainer: BaseTrainer) -> list[str]:
    """Which of ``validate`` and ``evaluate`` the trainer defines itself."""
    names = ("validate", "evaluate")
    return [name for name in names if getattr(type(trainer), name) is not getattr(BaseTrainer, name)]


def check_own_validation(trainer: BaseTrainer) -> Iterator[CheckResult]:
    """Try a validation of the trainer's own on the first batches; silent if it passes, or if there is none."""
    names, training = own_validation(trainer), trainer.training
    if not names or (not training.validation and "validate" not in names):
        return
    first = {name: _first_batches(batches) for name, batches in training.validation.items()}
    before = generator_states()
    try:
        trainer.training = replace(training, validation=first)
        values = check_returned(trainer, "validate", trainer.validate())
        if (trainer.settings.monitored_name or "").startswith("val_"):
            trainer.monitored({f"val_{name}": value for name, value in values.items()})
    except Exception as error:  # of the user's code
        yield CheckResult("validation", "FAIL", format_error_with_source(error))
        return
    finally:
        trainer.training = training
    drawn = [name for name, state in generator_states().items() if not same(state, before[name])]
    if drawn:
        text = f"{' and '.join(names)} draws random numbers of {listed(drawn)}, as the training after it does"
        yield exactness_note(text, "draws outside self.evaluating(), which seeds the generators")


def check_second_epoch(trainer: BaseTrainer) -> Iterator[CheckResult]:
    """Try ``begin_epoch`` and ``sample_weights`` of a second epoch; silent if they pass. Last: they may change data."""
    trainer.progress.epoch_steps = 0  # those of the other checks
    try:
        prepare_epoch(trainer, 1, again=True)
    except Exception as error:
        cause = error.__cause__ or error
        if user_line(cause):  # the user's code may count on what a whole first epoch has set
            advice = "a mistake in begin_epoch, unless it uses what only a finished epoch has set"
            yield CheckResult("second epoch", "note", format_error_with_source(cause), advice)
        else:
            yield CheckResult("second epoch", "FAIL", format_error(error))


def check_monitor(trainer: BaseTrainer, logged: Mapping[str, Collection[str]]) -> Iterator[CheckResult]:
    """A note if ``trainer.monitor`` names a value that steps may log, but those of its phase do not; silent otherwise.

    logged: the names of the values in the first batch of "training" and "validation", if it passed.
    """
    name = trainer.settings.monitored_name
    phase, step = ("validation", "eval_step") if name.startswith("val_") else ("training", "train_step")
    for log in trainer.train_metrics.logs:
        names = [log, *validation_names(log, trainer.training.validation)]
        if name in names and log not in logged.get(phase, [log]):
            text = f"trainer.monitor: {step} does not log {log} in its first batch, so {name} may have no value"
            yield CheckResult("monitor", "note", text, f'a step without StepResult(..., log={{"{log}": value}})')


def _first_batches(batches: Batches) -> Batches:
    """The first two; all of a stream."""
    if isinstance(batches, StreamBatches):
        return batches
    indices = torch.arange(len(batches.source)) if batches.indices is None else batches.indices
    return Batches(batches.source, batch_size=batches.batch_size, indices=indices[: 2 * batches.batch_size])
