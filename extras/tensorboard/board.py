"""Writes everything but the curves to TensorBoard's event files."""

import contextlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tensorboard.compat.proto.summary_pb2 import Summary

from base.base_trainer import BaseTrainer
from base.data.stream import StreamBatches
from base.training.observer import Observer
from extras.tensorboard import histograms, hyperparameters, model_summary, pictures
from extras.tensorboard.profile import StepProfile
from logger.writers import EventWriter, text
from utils.errors import DataError
from utils.run_folder import RunFolder
from utils.schema import Config, TrainerConfig
from utils.text import one_line
from utils.user_code import format_error

if TYPE_CHECKING:
    from extras.report import EvaluationStats


# methods of a trainer that decide which epoch is the last
DECIDE = ("finished", "stopped_early", "end_epoch")


def may_be_drawn(trainer: BaseTrainer) -> bool:
    """Whether the evaluation that begins may be drawn: after its epoch, or if that turns out to be the last."""
    if not trainer.training.validation:
        return True  # samples of the training, which are evaluated only to be drawn
    settings, progress = trainer.settings, trainer.progress
    decides = any(getattr(type(trainer), name) is not getattr(BaseTrainer, name) for name in DECIDE)
    early = settings.early_stop is not None and progress.stale_epochs + 1 >= settings.early_stop
    last = decides or early or progress.epochs + 1 >= settings.epochs
    return not progress.validating and are_due(settings, progress.epochs + 1, finished=last)


def are_due(settings: TrainerConfig, epochs: int, *, finished: bool) -> bool:
    """Whether pictures are drawn after so many epochs. finished: whether they are all."""
    every = settings.pictures_every
    return every != 0 and (finished or (every is not None and epochs % every == 0))


class Board(Observer):
    """text: the config as in the run's folder. stats: observes the evaluations; None without extras/report."""

    def __init__(self, config: Config, events: EventWriter, text: str, stats: "EvaluationStats | None") -> None:
        self.config = config
        self.events = events
        self.text = text
        self.stats = stats
        self._about: list[dict[str, Any]] = []
        self._profile: StepProfile | None = None

    def begin(self, trainer: BaseTrainer) -> None:
        table, graph = model_summary.model_summary(trainer)
        note = one_line(str(RunFolder(self.events.folder).read_environment().get("note") or ""))
        self._about = [
            *([{"summary": text("note", f"    {note}")}] if note else []),  # indented: not parsed as Markdown
            {"summary": text("config", f"```json\n{self.text}```")},
            {"summary": text("model", table)},
            {"summary": hyperparameters.layout(self.config, trainer.training)},
            {"summary": hyperparameters.started(json.loads(self.text))},
            *([] if graph is None else [{"graph_def": graph}]),
        ]
        self._describe()
        hyperparameters.write_columns(self.events, self.config, trainer.training)
        if trainer.progress.steps == 0:
            if self.config.trainer.pictures_every != 0:
                batch = model_summary.first_batch(trainer, pictures.GRID)
                self._draw(trainer, pictures.training(trainer.experiment.data, batch))
            self._write(0, histograms.weights(trainer.experiment.model))
        if (steps := self.config.trainer.profile_steps) is not None:
            self._profile = StepProfile(steps, self.events.folder, trainer)

    def log_interval(self, trainer: BaseTrainer) -> None:
        progress = trainer.progress
        if progress.epoch_steps + self.config.trainer.log_every_steps > trainer.steps_per_epoch():  # the epoch's last
            self._write(progress.steps, histograms.gradients(trainer.experiment.model))

    def end_epoch(self, trainer: BaseTrainer, values: dict[str, float]) -> None:
        progress = trainer.progress
        settings = self.config.trainer
        scalars = histograms.memory(trainer.runtime.device)
        if settings.monitor and progress.best_epoch == progress.epochs:
            scalars |= _best(values)
        self.events.scalars(progress.steps, scalars)
        self._write(progress.steps, histograms.weights(trainer.experiment.model))
        if self.stats is not None and are_due(settings, progress.epochs, finished=trainer.finished()):
            self._draw_evaluation(trainer, self.stats)

    def end(self, trainer: BaseTrainer) -> None:
        if self._profile is not None:
            self._profile.end()
        self._describe({"summary": hyperparameters.finished()})
        hyperparameters.write_columns(self.events, self.config, trainer.training)

    def _describe(self, *more: dict[str, Any]) -> None:
        """Replace the description of the whole run. A full disk does not stop the run.

        It has its own file, since TensorBoard keeps the first description it reads.
        """
        with contextlib.suppress(OSError):
            self.events.replace("description", *self._about, *more)

    def _draw_evaluation(self, trainer: BaseTrainer, stats: "EvaluationStats") -> None:
        batches = trainer.training.batches
        if trainer.training.validation:
            self._draw(trainer, pictures.precision_recall(stats))
            self._draw(trainer, pictures.evaluation(stats))
        elif type(trainer).validate is not BaseTrainer.validate:  # its eval_step may do nothing
            return
        elif trainer.runtime.process_group.world_size == 1 and not isinstance(batches, StreamBatches):
            self._draw(trainer, model_summary.evaluated_training_samples(trainer, stats))

    def _draw(self, trainer: BaseTrainer, drawn: Iterable[Summary]) -> None:
        try:
            self._write(trainer.progress.steps, drawn)
        except Exception as error:  # a missing library or a broken font must not cost an epoch
            if isinstance(error, DataError) and not trainer.progress.steps:
                raise  # from the user's code, before anything is lost
            if isinstance(error, NotImplementedError) and not str(error):
                return  # the eval_step of a trainer that evaluates nothing
            what = "TensorBoard's pictures could not be drawn"
            trainer.console.warn(f"{what}: {str(error) or format_error(error)}", once=what)

    def _write(self, step: int, written: Iterable[Summary]) -> None:
        for summary in written:
            self.events.event(step, summary=summary)


def _best(values: dict[str, float]) -> dict[str, float]:
    """The values of an epoch if it is the best so far; training values only without validation.

    They are written only then, so that the last ones, which the hyperparameter page shows, are the run's best.
    """
    chosen = {name: value for name, value in values.items() if name.startswith("val_")} or values
    return {f"best/{name.removeprefix('val_')}": value for name, value in chosen.items()}
