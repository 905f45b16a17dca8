"""What TensorBoard shows of a run beside the curves that the loop itself writes. docs/tensorboard.md lists it all."""

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from base.base_trainer import BaseTrainer
from base.data.batches import BatchRange
from base.metric import StepResult
from base.training.observer import Observer
from extras.report.findings import EvaluationStats
from extras.tensorboard import anatomy, measures, overview, pictures, summaries
from logger.writers import EventWriter
from utils.schema import Config

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

    from extras.tensorboard.profile import StepProfile


class Board(Observer):
    """Writes into TensorBoard's event files. text: the config as it stands in the run's folder."""

    findings: EvaluationStats

    def __init__(self, config: Config, events: EventWriter, text: str) -> None:
        self.config, self.events, self.text = config, events, text
        self._about: list[dict[str, Any]] = []
        self._profile: StepProfile | None = None

    def begin(self, trainer: BaseTrainer) -> None:
        self.findings = EvaluationStats(trainer.experiment)
        batch = anatomy.first_batch(trainer, pictures.GRID)
        model, graph = anatomy.look(trainer, batch)
        self._about = [
            {"summary": summaries.text("config", f"```json\n{self.text}```")},
            {"summary": summaries.text("model", model)},
            {"summary": overview.layout(self.config, trainer.training)},
            {"summary": overview.hyperparameters(self.config, time.time())},
            *([] if graph is None else [{"graph_def": graph}]),
        ]
        self.events.describe(*self._about)
        if trainer.progress.steps == 0:
            if self.config.trainer.pictures_every != 0:
                self._draw(trainer, pictures.training(trainer.experiment.data, batch))
            self._write(0, measures.weights(trainer.experiment.model))
        if (steps := self.config.trainer.profile_steps) is not None:
            from extras.tensorboard.profile import StepProfile

            self._profile = StepProfile(steps, self.events.folder, trainer.console)
            self._profile.begin(trainer)

    def log_interval(self, trainer: BaseTrainer) -> None:
        progress = trainer.progress
        self.events.scalars(progress.steps, measures.gradient_norm(trainer))
        if progress.epoch_steps + self.config.trainer.log_every_steps > trainer.steps_per_epoch():  # the epoch's last
            self._write(progress.steps, measures.gradients(trainer.experiment.model))

    def begin_evaluation(self, samples: int) -> None:
        self.findings.begin_evaluation(samples)

    def evaluated(self, window: BatchRange, batch: Any, result: StepResult) -> None:
        self.findings.evaluated(window, batch, result)

    def end_evaluation(self) -> None:
        self.findings.end_evaluation()

    def end_epoch(self, trainer: BaseTrainer, values: dict[str, float]) -> None:
        progress, settings = trainer.progress, self.config.trainer
        scalars = measures.memory(trainer.runtime.device)
        if settings.monitor and progress.best_epoch == progress.epochs:
            scalars |= overview.best(values)
        self.events.scalars(progress.steps, scalars)
        self._write(progress.steps, measures.weights(trainer.experiment.model))
        self._write(progress.steps, pictures.precision_recall(self.findings))
        every = settings.pictures_every
        if every != 0 and (trainer.finished() or (every and progress.epochs % every == 0)):
            self._draw(trainer, self._found(trainer))

    def end(self, trainer: BaseTrainer) -> None:
        if self._profile is not None:
            self._profile.end(trainer.progress.steps)
        self.events.describe(*self._about, {"summary": summaries.finished(time.time())})

    def _found(self, trainer: BaseTrainer) -> "Iterator[Summary]":
        if trainer.training.validation is not None:
            yield from pictures.evaluation(self.findings)
        else:
            yield from pictures.evaluation(anatomy.found_in_training(trainer), "training")

    def _draw(self, trainer: BaseTrainer, made: "Iterable[Summary]") -> None:
        try:
            self._write(trainer.progress.steps, made)
        except Exception as error:  # a library that is missing, a broken font: no reason to lose an epoch
            trainer.console.warn(f"TensorBoard's pictures could not be drawn: {error}")

    def _write(self, step: int, made: "Iterable[Summary]") -> None:
        for summary in made:
            self.events.event(step, summary=summary)
