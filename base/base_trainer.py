"""The training loop: epochs, optimizer steps, the best epoch, saving.

The mathematics is in trainer/; training/ has the validation (evaluation.py) and what a checkpoint holds (saving.py).
"""

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from base.data.batches import BatchRange, MicroBatch, StepBatches
from base.data.workers import naming_dead_worker
from base.experiment import Outputs, Training
from base.metric import check_loss
from base.training.epoch_start import prepare_epoch
from base.training.evaluation import EvaluationLoop, check_returned
from base.training.first_batch import (
    FORWARD_ERRORS,
    check_backward_was_called,
    check_epoch_was_counted,
    check_loss_was_called,
    check_no_gradients,
    check_step_was_taken,
    checked_step,
    forward_error,
)
from base.training.loss import with_count_and_parts
from base.training.loss_checks import check_losses
from base.training.metrics import StepLoss
from base.training.optimizing import OpenStep, SeveralOptimizers, closure_step, unnamed_optimizer
from base.training.saved_data import SavedData
from base.training.saving import Checkpointed
from base.training.schedule import gradient_norm
from base.training.state import own_parts
from base.training.training_log import TrainingLog
from utils.errors import ConfigError, Stopped, TrainingError
from utils.optimizers import check_gradients, load_exactly
from utils.schema import validation_names


class BaseTrainer(EvaluationLoop, Checkpointed):
    """Trains, validates and tests a model. Subclasses define ``train_step`` and ``eval_step``.

    training/trainer_interface.py has its attributes.
    """

    # ------------------------------------------------------------------ the loop

    def begin(self, training: Training, outputs: Outputs) -> None:
        """Set what training needs. Must precede ``load_state_dict`` and ``train``."""
        self.training = training
        self.outputs = outputs
        self.observer = outputs.observer
        if training.several:
            if type(self).compute_gradients is not BaseTrainer.compute_gradients:
                raise ConfigError(
                    f"{type(self).__name__}.compute_gradients is not called, since the config has several optimizers, "
                    "each with its own gradients; to clip them, give each optimizer clip_grad_norm or clip_grad_value"
                )
            self.several_optimizers = SeveralOptimizers(training, self.runtime, supervised=self.supervised)
        self.saved_data = SavedData(training, self.experiment.data, seed=self.experiment.seed)
        self.saved_data.check_processes(self.runtime.process_group)
        for part in own_parts(self.stateful()).values():
            if isinstance(part, Optimizer):  # torch would cast its state to the dtype of the weights
                load_exactly(part)
        self.log = TrainingLog(self.console, outputs.writers, self.settings, self.runtime.process_group)

    @naming_dead_worker()
    def train(self) -> None:
        """Train to the end, from wherever the run is.

        Raises Stopped after saving if a signal came, and TrainingError if the loss is not finite or the last checkpoint
        could not be saved.
        """
        checkpointer = self.outputs.checkpointer
        try:
            self.check_stateful()
            self.begin_next_epoch()
            self.state_dict()  # raises now if it could not be loaded
            self.observer.begin(self)
            while not self.finished():
                with self.shown.to(self.outputs.writers):
                    self.train_epoch()
                    validation = self.validated()
                self.end_epoch(validation)
                check_epoch_was_counted(self)
                self.begin_next_epoch()
            self.observer.end(self)
        except Stopped as stopped:
            self.save()
            if not checkpointer.wait():
                raise TrainingError(f"{stopped}, but {checkpointer.failure}") from stopped
            raise
        finally:
            self.training.close_workers()
            self.outputs.writers.close(finished=self.finished())
            saved = checkpointer.wait()
        if not saved:
            raise TrainingError(f"the run ended, but {checkpointer.failure}")

    def finished(self) -> bool:
        """Whether training has ended. A subclass may add a rule, which depends only on what a checkpoint has."""
        return self.stopped_early() or self.progress.epochs >= self.settings.epochs

    def stopped_early(self) -> bool:
        patience = self.settings.early_stop
        return patience is not None and self.progress.stale_epochs >= patience

    def begin_next_epoch(self) -> None:
        """Prepare the next epoch, if any; not one within which the run resumed, for which ``load_checkpoint`` has."""
        if not self.finished() and not self.progress.epoch_steps:
            self.experiment.signals.check()
            with self.shown.to(self.outputs.writers):
                prepare_epoch(self, self.progress.epochs)

    def train_epoch(self) -> None:
        """The remaining optimizer steps of this epoch."""
        settings, progress = self.settings, self.progress
        for loader in self.training.loaders:
            if loader.device_cache:
                loader.device_cache.refresh()
        self.log.begin_epoch(progress, self.steps_per_epoch())
        try:
            if progress.validating:  # when the run was stopped
                self.validate_within_epoch()
            for step in self.training.batches.load_steps(self.remaining_steps()):
                if progress.epoch_steps:  # before the first step, begin_epoch has changed what would be saved
                    self.experiment.signals.check()
                loss = self.optimizer_step(step)
                if not self.has_started:
                    check_step_was_taken(self, loss, step)
                    self.start()
                self.log.step(loss, step.samples)
                if progress.steps % settings.log_every_steps == 0:
                    self.log_interval()
                if settings.validate_every_steps and progress.steps % settings.validate_every_steps == 0:
                    self.validate_within_epoch()
                if settings.save_every_steps and progress.steps % settings.save_every_steps == 0:
                    self.save()
            self.log.wait()
        finally:
            self.log.end_training()

    def validated(self) -> dict[str, float]:
        """What ``validate`` returns, checked. If it fails, saves first: a resumed run then repeats only that."""
        with self.saving_on_failure():
            return check_returned(self, "validate", self.validate())

    def steps_per_epoch(self) -> int:
        return self.settings.steps_per_epoch or self.training.batches.optimizer_steps(self.settings.accumulate_steps)

    def remaining_steps(self) -> Iterator[list[BatchRange]]:
        """The batches of each optimizer step that remains in this epoch."""
        settings, progress, batches = self.settings, self.progress, self.training.batches
        if progress.trained:
            return
        ranges = batches.ranges(progress.position)
        if settings.steps_per_epoch is None:
            current = batches.next_start(progress.position).passes
            ranges = itertools.takewhile(lambda batch_range: batch_range.passes == current, ranges)
        else:
            left = settings.steps_per_epoch - progress.epoch_steps
            ranges = itertools.islice(ranges, left * settings.accumulate_steps)
        while step := list(itertools.islice(ranges, settings.accumulate_steps)):
            yield step

    def optimizer_step(self, step: StepBatches) -> Tensor | float:
        """Take one optimizer step. Returns this process's part of its loss, from ``to_scalar``."""
        if self.several_optimizers:
            loss = self.several_step(step, self.several_optimizers)
        elif self.training.needs_closure:
            loss = closure_step(self, step)
        else:
            loss = self.compute_gradients(step)
            if not self.has_started:
                check_gradients(self.training.optimizer, self.training.frozen.parameters)
            schedule = self.training.scheduled.schedule
            stepped = self.runtime.step(self.training.optimizer, wait=schedule.per_step)
            schedule.after_step(stepped=stepped)

        self.runtime.strategy.broadcast_buffers(self.model)
        if self.averaged_weights:
            self.averaged_weights.update()
        self.progress.step(step.position, steps_per_epoch=self.settings.steps_per_epoch)
        self.unchecked_losses.append((loss, step.ranges))
        return loss

    def compute_gradients(self, step: StepBatches, *, measure: bool = True) -> Tensor | float:
        """Compute the clipped gradients of a step. Returns this process's part of its loss.

        measure: whether its batches count in the metrics.
        """
        runtime, scheduled = self.runtime, self.training.scheduled
        strategy = runtime.strategy
        step_loss = self.open_loss = self.new_step_loss(step)
        runtime.zero_grad(scheduled.optimizer)
        for number, micro_batch in enumerate(step.micro_batches, start=1):
            strategy.sync_gradients(number == len(step.ranges))  # processes reduce gradients only in the last
            self.run_micro_batch(micro_batch, step_loss, measure=measure)
        self.open_loss = None
        strategy.average_gradients(self.training.loss_parameters)
        runtime.unscale(scheduled.optimizer)
        loss = step_loss.finish(scheduled.parameters, runtime.process_group)
        self.gradient_norm = scheduled.clip_gradients(measure=self.logs_this_step())
        return loss

    def several_step(self, batches: StepBatches, optimizers: SeveralOptimizers) -> Tensor | float:
        """Take a step of several optimizers, which ``train_step`` steps. Returns this process's part of its loss."""
        step = OpenStep(self.new_step_loss(batches), len(batches.ranges), self.criterion, measure=self.logs_this_step())
        with optimizers.taking_step(step):
            for micro_batch in batches.micro_batches:
                step.begin_micro_batch(micro_batch.size)
                self.run_micro_batch(micro_batch, step.loss)
            if not self.has_started:
                optimizers.check_use(type(self).__name__)
        self.gradient_norm = get_total_norm([*step.norms.values()]) if step.norms else None
        return step.loss.finish([], self.runtime.process_group)

    def logs_this_step(self) -> bool:
        """Whether the current step ends a log interval."""
        return (self.progress.steps + 1) % self.settings.log_every_steps == 0

    def new_step_loss(self, step: StepBatches) -> StepLoss:
        """The accumulator for the loss of a step, before its first micro-batch."""
        alone = len(step.ranges) == 1 and self.runtime.process_group.world_size == 1
        return StepLoss(step.samples, alone=alone, sum_loss=self.experiment.sum_loss)

    def run_micro_batch(self, micro_batch: MicroBatch, step_loss: StepLoss, *, measure: bool = True) -> None:
        """Run the forward and backward pass of one micro-batch. Its outputs are freed before the next one."""
        batches, metrics, size = self.training.batches, self.train_metrics, micro_batch.size
        step = self.train_step if batches.checked else checked_step(self, self.train_step, metrics, "training")
        try:
            result = step(self.runtime.to_device(micro_batch.data))
            count = self.several_optimizers.end_train_step() if self.several_optimizers else None
            result = with_count_and_parts(result, self.criterion, earlier_count=count)
            weight = step_loss.add(result.loss, result.count, size)
            if step_loss.waiting:
                self.runtime.backward(step_loss.take_waiting(), weight)
            if measure:
                metrics.update(result, samples=size, share=size / step_loss.samples)
        except FORWARD_ERRORS as error:
            raise forward_error(self, error, batches, micro_batch, "training") from error
        if not batches.checked:
            check_loss_was_called(self)
            check_backward_was_called(self, weighted=not step_loss.alone)
            batches.checked = True
            self.saved_data.first_batch(micro_batch.data, result)
            self.observer.first_batch(self, result)

    # ------------------------------------------------------------------ what train_step calls

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss of shape (), weighted by its fraction of the optimizer step and scaled for fp16.

        With accumulation or several processes, they are computed only when ``train_step`` returns, since the weight
        depends on ``StepResult.count``. Raises ConfigError if the loss is not a tensor with one number.
        """
        check_loss(loss, "self.backward got a loss")
        if not self.called_backward:
            if not self.training.several:
                check_no_gradients(self)
            self.called_backward = True
        open_loss = self.several_optimizers.open_loss() if self.several_optimizers else self.open_loss
        if open_loss is None or open_loss.alone:
            self.runtime.backward(loss)
        else:
            open_loss.waiting.append(loss)

    def optimizing(self, *names: str) -> AbstractContextManager[None]:
        """Let one of several optimizers, or some at once, step on the losses passed to ``backward`` inside the block:

            with self.optimizing("discriminator"):
                self.backward(loss)

        The other optimizers' parameters get no gradients there. With accumulation, it steps at the last micro-batch.
        Without names, all optimizers step; so they do for a supervised trainer that uses no block.
        """
        if self.several_optimizers is not None:
            return self.several_optimizers.optimizing(*names)
        if not hasattr(self, "training"):  # a test, whose eval_step may call train_step
            return nullcontext()
        if names or (self.open_loss and self.open_loss.has_block):
            raise unnamed_optimizer(*names)
        if self.open_loss:
            self.open_loss.has_block = True
        return nullcontext()  # the optimizer steps after train_step

    # ------------------------------------------------------------------ the ends of intervals and epochs

    def log_interval(self) -> None:
        """Log a point of the curves within the epoch."""
        check_losses(self)
        means = self.train_metrics.close_interval()
        norm = gradient_norm(self.training.parameters) if self.gradient_norm is None else self.gradient_norm
        self.log.log_interval(means, self.training.rates(), norm)
        self.observer.log_interval(self)

    def validate_within_epoch(self) -> None:
        """Log a point of the validation curves to the writers. After the last step, the epoch's own follows instead."""
        if not self.progress.trained:
            self.progress.validating = True
            with self.log.paused():
                values = self.validated()
            self.log.validation(values)
            self.progress.validating = False

    def end_epoch(self, validation: dict[str, float]) -> None:
        """Compare the epoch with the best one, step the schedule, log and save."""
        progress, settings = self.progress, self.settings
        check_losses(self)
        with self.saving_on_failure():
            values = self.train_metrics.compute() | {f"val_{name}": value for name, value in validation.items()}
            monitored = self.monitored(values)
        progress.epochs += 1
        best = monitored is not None and progress.update_best(monitored, lower_is_better=settings.lower_is_better)
        self.log.end_epoch(values, self.training.rates(), best=best)
        for optimizer in self.training.optimizers.values():
            optimizer.schedule.after_epoch(monitored)
        self.observer.end_epoch(self, values)
        self.train_metrics.reset()
        progress.epoch_steps, progress.trained = 0, False
        if best or self.finished() or progress.epochs % settings.save_period == 0:
            self.save()

    def monitored(self, values: dict[str, float]) -> float | None:
        """The value named by ``trainer.monitor``; None if nothing is monitored, or if it was not measured this time."""
        name = self.settings.monitored_name
        if not name or name in values:
            return values.get(name)
        optional = [each for log in self.logs for each in (log, *validation_names(log, self.training.validation))]
        if name not in optional or f"val_{name}" in values:
            raise ConfigError(f"trainer.monitor: no step has logged {name}; expected one of: {', '.join(values)}")
        return None
