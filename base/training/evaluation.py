"""The loop of validation and test."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from base.data.batches import Batches
from base.data.workers import naming_dead_worker
from base.metric import single_number
from base.training.first_batch import FORWARD_ERRORS, checked_step, forward_error
from base.training.loss import loss_module, with_count_and_parts
from base.training.metrics import Metrics
from base.training.observer import Observer
from base.training.state import own_parts
from base.training.trainer_interface import TrainerInterface
from utils.errors import ConfigError
from utils.random import isolated


class EvaluationLoop(TrainerInterface):
    """The part of ``BaseTrainer`` that validates and tests."""

    def validate(self) -> dict[str, float]:
        """The loss and metrics on the validation data; empty if there is none.

        With several data sets, returns each value for every set, as in day_loss, and over all of them. The observer
        sees the first set.
        """
        sets = self.training.validation
        if not sets:
            return {}
        if "" in sets:
            return check_returned(self, "evaluate", self.evaluate(sets[""], self.observer))
        values, over_all = dict[str, float](), self.experiment.make_metrics()
        for name, batches in sets.items():
            returned = self.evaluate(batches, Observer() if values else self.observer, also=over_all)
            of_set = check_returned(self, "evaluate", returned)
            values |= {f"{name}_{key}": value for key, value in of_set.items()}
        return over_all.compute() | values

    @naming_dead_worker()
    def evaluate(self, batches: Batches, observer: Observer, *, also: Metrics | None = None) -> dict[str, float]:
        """The loss and metrics over all samples of some batches, each counted once.

        also: metrics to which the same batches are added, for values over several validation sets.
        """
        metrics = self.experiment.make_metrics()
        observer.begin_evaluation(batches.num_samples)
        with self.evaluating():
            for micro_batch in self.console.track("evaluating", batches.one_pass(), len(batches)):
                if self.progress.epoch_steps:  # not in begin_epoch, whose effects would be saved
                    self.experiment.signals.check()
                batch_range, size, data = micro_batch.range, micro_batch.size, micro_batch.data
                step = self.eval_step if batches.checked else checked_step(self, self.eval_step, metrics, "evaluation")
                try:
                    result = with_count_and_parts(step(self.runtime.to_device(data)), self.criterion)
                    metrics.update(result, samples=size, share=size / batches.num_samples)
                    if also:
                        also.update(result, samples=size, share=size / self.training.validation_samples)
                except FORWARD_ERRORS as error:
                    raise forward_error(self, error, batches, micro_batch, "evaluation") from error
                batches.checked = True
                observer.evaluated(batches.part(batch_range), data, result)
                del result  # its outputs would take memory while the next batch's are computed
        observer.end_evaluation()
        return metrics.compute()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside the block, the model has the weights to evaluate, without gradients.

        It, the loss and the modules that a subclass adds to ``stateful`` are in evaluation mode.
        """
        parts = [self.model, loss_module(self.experiment.criterion), *own_parts(self.stateful()).values()]
        modules = [part for part in parts if isinstance(part, nn.Module)]
        modes = {each: each.training for module in modules for each in module.modules()}
        for module in modules:
            module.eval()
        # random numbers drawn in evaluation do not affect training
        key = self.runtime.process_group.key
        averaged = self.averaged_weights.swapped() if self.averaged_weights else nullcontext()
        try:
            # not in inference mode: a table that a model extends and keeps must work in training too
            with (
                averaged,
                isolated(self.experiment.seed, "evaluation", *key),
                torch.no_grad(),
                same_statistics(self.model),
            ):
                yield
        finally:
            for module in modules:
                module.train(modes[module])  # a model's own method may do more than set the mode
            for each, training in modes.items():
                each.training = training
            self.runtime.strategy.reshard(self.model)  # end_epoch may change them


@contextmanager
def same_statistics(model: nn.Module) -> Iterator[None]:
    """Raise ConfigError if a BatchNorm updates its running statistics inside the block."""
    counters = ((name, getattr(module, "num_batches_tracked", None)) for name, module in model.named_modules())
    counts = [(name, each, each.clone()) for name, each in counters if isinstance(each, Tensor)]
    yield
    for name, tracked, before in counts:
        if not torch.equal(tracked, before):
            raise ConfigError(
                f"evaluation changed the running statistics of {name}: in training mode, it learns from validation "
                "data; leave the model in evaluation mode in eval_step, with NaN as the loss if it has none there"
            )


def check_returned(trainer: TrainerInterface, method: str, values: Any) -> dict[str, float]:
    """What ``validate`` or ``evaluate`` of a trainer returned, as floats, without what was not measured this time.

    All processes get the main process's values, with a warning if others returned different ones. Raises ConfigError if
    it is not a dict of numbers by name.
    """
    returned = f"{type(trainer).__name__}.{method} returned"
    if not isinstance(values, dict):
        raise ConfigError(f"{returned} {values!r:.100}; expected a dict of numbers by name, as from super().{method}")
    measured = {str(name): value for name, value in values.items() if value is not None}
    numbers = {name: float(single_number(value, f'{returned} "{name}"')) for name, value in measured.items()}
    # all processes decide by the same ones whether to save or to stop
    everyone = trainer.runtime.process_group.all_gather(numbers)
    for name, value in everyone[0].items():
        found = torch.tensor([one.get(name, value) for one in everyone], dtype=torch.float64)
        if not torch.allclose(found, found[:1], rtol=1e-3, equal_nan=True):
            trainer.experiment.console.warn(
                f'{returned} another "{name}" in each process: {", ".join(f"{each:.4g}" for each in found.tolist())}; '
                "the first is used. Each process has only its own samples: combine all values, for example with "
                "self.runtime.process_group.all_gather",
                once=f"{method} {name}",
            )
    return everyone[0]
