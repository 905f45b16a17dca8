"""The training loop: epochs, optimizer steps, validation, judging, saving. The mathematics is in trainer/trainer.py."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.data.batches import Batches, StepBatches
from base.data.sources import as_tensor
from base.experiment import Experiment, Outputs, Training
from base.metric import StepResult
from base.training.accumulation import grouped
from base.training.first_batch import MISFITS, doubts, misfit, not_finite
from base.training.observer import Observer
from base.training.progress import Progress
from base.training.training_log import TrainingLog
from utils.errors import CheckpointError, ConfigError, Stopped, TrainingError
from utils.random import generator_states, isolated, restore_generators, seed_generators
from utils.schema import TrainerConfig


class BaseTrainer(ABC):
    """Trains, validates and tests. A subclass gives ``train_step`` and ``eval_step``."""

    training: Training
    outputs: Outputs
    report: TrainingLog

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        self.experiment = experiment
        self.settings = settings
        self.model = experiment.model
        self.criterion = experiment.criterion
        self.runtime = experiment.runtime
        self.console = experiment.console
        self.train_metrics = experiment.make_metrics()
        self.progress = Progress()
        self._unchecked: list[Tensor | float] = []
        self._checked = self.progress
        self._saved: dict[str, Any] = {}
        self._fits = False

    @abstractmethod
    def train_step(self, batch: Any, weight: float) -> StepResult:
        """Forward and backward pass of one batch; gradients are added up. weight: its share of the optimizer step."""

    @abstractmethod
    def eval_step(self, batch: Any) -> StepResult:
        """Forward pass of one batch, without gradients."""

    # ------------------------------------------------------------------ the loop

    def begin(self, training: Training, outputs: Outputs) -> None:
        """Take what training needs; before ``load_state_dict`` and ``train``."""
        self.training, self.outputs = training, outputs
        self.model = self.runtime.wrap_ddp(self.experiment.model)
        held_out = training.validation.num_samples if training.validation else 0
        self.report = TrainingLog(
            self.console, outputs.writers, self.settings, self.runtime.processes, validation_samples=held_out
        )

    def train(self) -> None:
        """Train to the end, from wherever the run stands.

        Raises Stopped after saving if a signal came, TrainingError if the loss is not finite or the end was not saved.
        """
        try:
            self.outputs.observer.begin(self)
            while not self.finished():
                self.train_epoch()
                self.end_epoch(self.validate())
            self.outputs.observer.end(self)
        except Stopped as stopped:
            self.save()
            if not self.outputs.checkpointer.wait():
                raise TrainingError(f"{stopped}, but {self.outputs.checkpointer.failure}") from stopped
            raise
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                f"a process that prepares batches has ended, for want of memory perhaps: {error}"
            ) from error
        finally:
            for batches in filter(None, (self.training.batches, self.training.validation)):
                batches.close()
            self.outputs.writers.flush()
            saved = self.outputs.checkpointer.wait()
        if not saved:
            raise TrainingError(f"the run ended, but {self.outputs.checkpointer.failure}")

    def finished(self) -> bool:
        return self.stopped_early() or self.progress.epochs >= self.settings.epochs

    def stopped_early(self) -> bool:
        patience = self.settings.early_stop
        return patience is not None and self.progress.stale_epochs >= patience

    def train_epoch(self) -> None:
        """The optimizer steps that are left of this epoch."""
        self.model.train()
        self._checked = replace(self.progress)
        self.report.begin_epoch(self.progress, self.steps_per_epoch())
        try:
            for step in self.groups():
                self.experiment.signals.check()
                loss = self.take_step(step)
                self.report.step(loss, step.samples)
                if self.progress.steps % self.settings.log_every_steps == 0:
                    self.log_window(loss)
                if self.settings.save_every_steps and self.progress.steps % self.settings.save_every_steps == 0:
                    self.save()
        finally:
            self.report.end_training()

    def groups(self) -> Iterator[StepBatches]:
        """The batches of each optimizer step that is left of this epoch."""
        return self.training.batches.load_steps(grouped(self.training.batches, self.progress, self.settings))

    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return self.settings.steps_per_epoch or self.training.batches.optimizer_steps(self.settings.accumulate_steps)

    def take_step(self, group: StepBatches) -> Tensor | float:
        """One optimizer step. Returns this process's part of its loss, as ``keep`` gives it."""
        samples = group.samples
        training, progress, sum_loss = self.training, self.progress, self.experiment.sum_loss
        results: list[StepResult] = []

        def evaluate() -> Tensor:
            results.clear()
            total = None
            for micro_batch in self.runtime.exchanging(group.micro_batches):
                weight = 1.0 if sum_loss else micro_batch.size / samples
                result = self.train_step(self.runtime.to_device(micro_batch.data), weight)
                results.append(result)
                part = result.loss if weight == 1.0 else weight * result.loss
                total = part if total is None else total + part
            assert total is not None
            return total

        try:
            moved = self.runtime.optimizer_step(
                training.optimizer, evaluate, clip_grad_norm=self.settings.clip_grad_norm
            )
            loss: Any = None
            for result, micro_batch in zip(results, group.micro_batches, strict=True):
                size = micro_batch.size
                part = self.train_metrics.update(result, samples=size, share=size / samples)
                loss = part if loss is None else loss + part
        except MISFITS as error:
            raise (
                error if self._fits else misfit(error, group.micro_batches[0].data, self.experiment.data.class_names)
            ) from error
        if not self._fits:
            self._begin_well(results[0])
        training.schedule.after_step(moved=moved)
        progress.step(group.position, steps_per_epoch=self.settings.steps_per_epoch)
        self._unchecked.append(loss)
        return loss  # type: ignore[no-any-return]

    def _begin_well(self, result: StepResult) -> None:
        self._fits = True
        for warning in doubts(result, self.criterion, self.experiment.data.class_names):
            self.console.warn(warning)

    def log_window(self, loss: Tensor | float) -> None:
        """A point of the curves within the epoch."""
        self.check_finite()
        self.report.window(self.progress, loss, self.train_metrics.close_window(), self.training.schedule.used())
        self.outputs.observer.window(self)

    def validate(self) -> dict[str, float]:
        """The loss and the metrics on the held-out samples; empty if there are none."""
        if self.training.validation is None:
            return {}
        return self.evaluate(self.training.validation, self.outputs.observer)

    def evaluate(self, batches: Batches, view: Observer) -> dict[str, float]:
        """The loss and the metrics over all samples of some batches, each counted once."""
        metrics = self.experiment.make_metrics()
        view.begin_evaluation(batches.num_samples)
        self.model.eval()
        # whatever a model draws in evaluation is drawn aside, so that training goes on as if there had been none
        key = self.runtime.processes.key
        with isolated(self.experiment.seed, "evaluation", *key), torch.inference_mode():
            for micro_batch in self.console.followed("evaluating", batches.one_pass(), len(batches)):
                size, batch = micro_batch.size, micro_batch.data
                self.experiment.signals.check()
                try:
                    result = self.eval_step(self.runtime.to_device(batch))
                    metrics.update(result, samples=size, share=size / batches.num_samples)
                except MISFITS as error:
                    raise error if self._fits else misfit(error, batch, self.experiment.data.class_names) from error
                self._fits = True
                view.evaluated(batches.part(micro_batch.range), batch, result)
        view.end_evaluation()
        return metrics.compute()

    def end_epoch(self, validation: dict[str, float]) -> None:
        """Judge the epoch, move the schedule, log and save."""
        progress = self.progress
        self.check_finite()
        progress.epochs += 1
        values = self.train_metrics.compute() | {f"val_{name}": value for name, value in validation.items()}
        monitored = self.monitored(values)
        lower_is_better = (self.settings.monitor or "").startswith("min")
        best = monitored is not None and progress.judge(monitored, lower_is_better=lower_is_better)
        self.report.epoch(progress, values, self.training.schedule.used(), best=best)
        self.training.schedule.after_epoch(monitored)
        self.outputs.observer.epoch(self, values)
        self.train_metrics.reset()
        progress.epoch_steps, progress.trained = 0, False
        if best or self.finished() or progress.epochs % self.settings.save_period == 0:
            self.save()

    def monitored(self, values: dict[str, float]) -> float | None:
        """The value that ``trainer.monitor`` names; None if it names none."""
        if self.settings.monitor is None:
            return None
        name = self.settings.monitor.split()[1]
        if name not in values:
            raise ConfigError(f"trainer.monitor: there is no {name}; there are: {', '.join(values)}")
        return values[name]

    # ------------------------------------------------------------------ what may go wrong

    def check_finite(self) -> None:
        """Raise TrainingError if a loss since the last check was not finite."""
        finite, unchecked, before = self.train_metrics.finite(), self._unchecked, self._checked
        self._unchecked, self._checked = [], replace(self.progress)
        if finite:
            return
        losses = self.runtime.processes.all_reduce_sum([float(loss) for loss in unchecked])
        batches = self.training.batches
        steps = zip(losses, grouped(batches, before, self.settings), strict=False)  # there may be steps still to come
        for number, (loss, group) in enumerate(steps, start=1):
            if not math.isfinite(loss):
                indices = torch.cat([as_tensor(batches.sample_indices(window)) for window in group])
                step, epoch = before.steps + number, self.progress.epochs + 1
                raise not_finite(loss, step, epoch, indices, self.outputs.checkpointer.folder)

    # ------------------------------------------------------------------ state

    def save(self) -> None:
        """Write a checkpoint, unless the newest one is of this very moment and stands."""
        moment = self.progress.state_dict()
        if moment == self._saved and self.runtime.processes.broadcast_object(self.outputs.checkpointer.wait):
            return
        self.check_finite()
        self.outputs.checkpointer.save(self.progress.steps, self.state_dict(), best_step=self.progress.best_step)
        self._saved = moment

    def state_dict(self) -> dict[str, Any]:
        """The state of every part, by name: tensors and plain values."""
        state = {name: part.state_dict() for name, part in self.parts().items()}
        random = self.runtime.processes.gather(generator_states())
        return {**state, "random": random, "writers": self.outputs.writers.state_dict()}

    def load_state_dict(self, state: dict[str, Any], source: Path) -> None:
        """Go on from a checkpoint: parts, random generators, and what was logged or saved after it is taken back."""
        loads = {name: part.load_state_dict for name, part in self.parts().items()}
        for name, load in {**loads, "random": self._restore_random}.items():
            try:
                load(state[name])
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"the {name} in {source} does not fit the config of this run: {error}") from error
        # in this order: while later checkpoints are there to go on from, their logs must be too
        self.outputs.checkpointer.resume(source, self.progress.steps, best_step=self.progress.best_step)
        self.outputs.writers.resume(state["writers"], step=self.progress.steps)
        self._saved = self.progress.state_dict()

    def _restore_random(self, states: list[Any]) -> None:
        """Each process goes on with its own generators; one that had none begins new ones."""
        rank = self.runtime.processes.rank
        if rank < len(states):
            restore_generators(states[rank])
        else:
            seed_generators(self.experiment.seed, "joined", rank, self.progress.steps)

    def parts(self) -> dict[str, Any]:
        """Every part that has a state, under the name it has in a checkpoint. A subclass may add its own."""
        return {
            "model": self.experiment.model,
            "optimizer": self.training.optimizer,
            "schedule": self.training.schedule,
            "runtime": self.runtime,
            "metrics": self.train_metrics,
            "progress": self.progress,
        }
