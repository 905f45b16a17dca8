"""``python train.py --check``: builds everything a run needs and inspects one batch; nothing is written."""

import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.base_trainer import BaseTrainer
from base.build import build_experiment, build_trainer, build_training, with_facts
from base.data.batches import Batches, BatchRange, MicroBatch, StepBatches
from base.data.stream import StreamBatches
from base.experiment import Experiment, Outputs, Training
from base.initial_weights import load_initial_weights
from base.metric import StepResult
from base.outputs import chosen_writers
from base.training.epoch_start import prepare_epoch
from base.training.evaluation import check_returned
from base.training.first_batch import (
    check_backward_was_called,
    check_loss_was_called,
    check_metrics,
    check_step_was_taken,
    checked_step,
)
from base.training.loss import with_count_and_parts
from base.training.metrics import Metrics
from base.training.observer import Observer
from base.training.state import own_parts
from base.training.summary import parameter_groups
from extras.check import data_checks, exactness_checks, model_checks, schedule_checks
from extras.check.check_result import CheckResult
from extras.check.data_checks import tried
from extras.check.first_loss import check_halves, first_loss
from extras.layers import HEADER, Trace, traced
from logger.writers import Writers
from utils.checkpoint import check_parts
from utils.checkpoint.checkpointer import Checkpointer
from utils.config import LoadedConfig
from utils.extras import find_extra
from utils.run_folder import RunFolder
from utils.schema import Config
from utils.streams import is_plain, say, terminal_width
from utils.text import count, listed, table
from utils.tree import copied, map_tensors, same, tensors
from utils.user_code import format_error_with_source

TIMED_STEPS = 10


def preflight(loaded: LoadedConfig) -> int:
    """Print the result of each check; return 0 if none fails, else 1. Raises UserError if something cannot be built."""
    loaded, data = with_facts(loaded)
    # the layers of a compiled model cannot be traced, and compiling takes longer than everything else here
    runtime = loaded.config.runtime.model_copy(update={"compile": False})
    settings = loaded.config.trainer.model_copy(update={"verbosity": 0})
    loaded = replace(loaded, config=loaded.config.model_copy(update={"runtime": runtime, "trainer": settings}))
    experiment = build_experiment(loaded, data)
    weights = load_initial_weights(loaded, experiment.model, experiment.runtime.process_group)
    training = build_training(loaded, experiment)
    trainer = build_trainer(loaded, experiment)
    with tempfile.TemporaryDirectory() as folder:  # to check that their packages are installed
        chosen_writers(loaded, RunFolder(Path(folder)), experiment.console.warn)
    config = loaded.config
    say(f"{config.name}: {config.model.type} on {experiment.runtime.device}, {config.runtime.precision}\n")
    for warning in loaded.warnings():
        say(f"warning: {warning}\n")

    results = []
    width, plain = terminal_width(0), is_plain(sys.stdout)
    trace = Trace()
    from_file = [CheckResult("weights", "ok", weights.description)] if weights else []
    for result in chain(from_file, _Check(config, experiment, training, trainer).results(trace)):
        results.append(result)
        say("\n".join(result.lines(width=width, plain=plain)))

    total = sum(parameter.numel() for parameter in experiment.model.parameters())
    say("", *table([HEADER, *trace.rows, ("", "", "all", f"{total:,}")], right=[3]), "")
    failed, notes = (sum(result.verdict == verdict for result in results) for verdict in ("FAIL", "note"))
    worth = f"; worth a look: {count(notes, 'note')} above" if notes else ""
    say(f"{failed} of {count(len(results), 'check')} failed" if failed else f"all checks passed{worth}")
    return 1 if failed else 0


class _Check:
    """One batch, and the checks on it."""

    def __init__(self, config: Config, experiment: Experiment, training: Training, trainer: BaseTrainer) -> None:
        self.config, self.experiment, self.training, self.trainer = config, experiment, training, trainer
        self.model, self.runtime = experiment.model, experiment.runtime
        self.first = next(training.batches.ranges())
        self.fetching = 0.0
        """Seconds to load a batch."""
        self.metrics_failed = False
        self.schedules = [*schedule_checks.check_schedules(training)]  # of the run's length, which is longer
        constant = {name: schedule_checks.unscheduled(optimizer) for name, optimizer in training.optimizers.items()}
        nowhere = Checkpointer(Path(os.devnull), keep_last=None, warn=experiment.console.warn, main=False)
        of_subclass = vars(trainer).keys() - trainer.base_attributes.keys()
        trainer.begin(replace(training, optimizers=constant), Outputs(Writers({}), nowhere, Observer()))
        check_parts(trainer.stateful(), required=BaseTrainer.stateful(trainer), owner=trainer)
        self.fresh = exactness_checks.Fresh(trainer, vars(trainer).keys() - of_subclass)
        prepare_epoch(trainer, 0)
        # metrics are checked separately
        metrics = trainer.train_metrics
        trainer.train_metrics = Metrics(
            {}, {}, sum_loss=experiment.sum_loss, definitions=metrics.definitions, logs=metrics.logs
        )
        training.batches.checked = True  # its problems are reported here

    def results(self, trace: Trace) -> Iterator[CheckResult]:
        """Run the checks in order; stops after a step that fails."""
        try:
            self.batch = self._first_batch()
        except Exception as error:  # the user's data set, which may raise anything
            cause = "a data set or transform that does not match the samples"
            yield CheckResult("batch", "FAIL", format_error_with_source(error), cause)
            return
        yield from data_checks.check_batch(self.batch, supervised=self.trainer.supervised)
        batch = self._copied()
        try:
            evaluated = self._evaluated(batch, trace)
            with traced(self.model, trace) if evaluated is None else nullcontext():
                trained = self._first_train()
        except Exception as error:
            yield data_checks.explain(error, trace.outputs, self.batch)
            return
        result = trained if evaluated is None else evaluated
        measure = self._train if evaluated is None else self._evaluate
        yield from self._likely_mistakes(batch, trained)
        yield first_loss(result, self.config, self.experiment)
        metrics = [*self._metrics(result, self.first.size, "training")]
        yield from metrics
        self.metrics_failed = any(each.verdict == "FAIL" for each in metrics)
        for name, text in parameter_groups(self.training):
            yield CheckResult(name, "ok", text)
        yield self._lenient(model_checks.check_independence(self.model, trace, self.first.size))
        yield self._lenient(model_checks.check_gradients(self.model, self.training.optimizers.values()))
        weighted = self.config.trainer.accumulate_steps > 1
        yield from tried("loss", partial(check_loss_was_called, self.trainer))
        yield from tried("gradients", partial(check_backward_was_called, self.trainer, weighted=weighted))
        if evaluated and self.trainer.supervised and not self.experiment.sum_loss and not self.runtime.dtype:
            yield from check_halves(self._copied(), self.first.size, self._loss_and_count)
        yield from self._smallest_batch()
        yield from self._validation()
        cause = "state of the trainer or the model that another batch has changed"
        yield from tried("repetition", partial(self._costs, result, measure), cause=cause, lenient=True)
        yield from tried("test data", self._test_data, lenient=True)  # not earlier: a run does not read them
        yield from exactness_checks.check_resume(self.fresh, self.training.batches, self._take_step)
        yield from self.schedules

    def _first_batch(self) -> Any:
        batches, workers = self.training.batches.one_pass(), self.training.batches.num_workers
        start = time.perf_counter()
        batch = next(batches).data
        arrivals = [time.perf_counter() - start]
        for _ in islice(batches, max(TIMED_STEPS, workers)):
            arrivals.append(time.perf_counter() - start)
        self.fetching = model_checks.loading_time(arrivals, workers)
        self.training.batches.close()
        return self.runtime.to_device(batch)

    def _evaluated(self, batch: Any, trace: Trace) -> StepResult | None:
        """The result of ``eval_step``; None if it does not take the batch or call the model, or has no loss, as that of
        a detector. The losses of ``train_step`` are compared then.
        """
        with suppress(Exception), traced(self.model, trace):
            result = self._evaluate(batch, first="training")
            if trace.outputs is not None and math.isfinite(float(result.loss)):
                return result
        trace.layers.clear()
        trace.outputs = None
        return None

    def _evaluate(self, batch: Any = None, *, first: str = "") -> StepResult:
        """batch: by default a copy of the first. first: the phase whose first batch this is, which is then checked."""
        with self._evaluating():
            result = self._step("eval_step", first)(self._copied() if batch is None else batch)
        return result._replace(loss=result.loss.detach())  # it has a graph inside torch.enable_grad()

    def _loss_and_count(self, batch: Any) -> tuple[float, float]:
        """The loss of a batch in evaluation, and what it is averaged over."""
        with self._evaluating():
            result = with_count_and_parts(self.trainer.eval_step(batch), self.trainer.criterion)
        return float(result.loss), float(len(next(tensors(batch))) if result.count is None else result.count)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """As in a validation, but with the weights themselves: averaged ones hardly move in so few steps."""
        averaged = self.trainer.averaged_weights
        with self.trainer.evaluating(), averaged.swapped() if averaged else nullcontext():
            yield

    def _step(self, name: str, first: str) -> Callable[[Any], StepResult]:
        step: Callable[[Any], StepResult] = getattr(self.trainer, name)
        return checked_step(self.trainer, step, self.trainer.train_metrics, first) if first else step

    def _copied(self) -> Any:
        """The batch, which a step may change."""
        return map_tensors(Tensor.clone, self.batch)

    def _train(self, *, first: str = "") -> StepResult:
        """Compute the gradients of the batch in training, as in the first step of a run."""
        self.model.train()
        self.model.zero_grad()
        result = self._step("train_step", first)(self._copied())
        return result._replace(loss=result.loss.detach())

    def _first_train(self) -> StepResult:
        """The first training step, with checks of the loss in it."""
        if type(self.trainer).optimizer_step is not BaseTrainer.optimizer_step:
            self._take_step()  # train_step may use what it sets
        return self._train(first="training")

    def _likely_mistakes(self, batch: Any, result: StepResult) -> Iterator[CheckResult]:
        """batch: a copy of the first one that was evaluated. result: of the training step."""
        if not all(map(same, tensors(batch), tensors(self.batch))):
            text = "the model, the loss or eval_step changes the batch in place"
            yield CheckResult("batch", "note", text, "x += 1 or x.relu_(); data in memory would change: x = x.clone()")
        if advice := find_extra("advice"):
            counted = with_count_and_parts(result, self.trainer.criterion)
            for warning in advice.first_batch_warnings(self.trainer, counted):
                yield CheckResult("first batch", "note", warning)

    def _lenient(self, result: CheckResult) -> CheckResult:
        """Turn a failure into a note if a trainer that is not supervised may intend it."""
        if self.trainer.supervised or result.verdict != "FAIL" or "not finite" in result.text:
            return result
        return replace(result, verdict="note")

    def _metrics(self, result: StepResult, samples: int, phase: str) -> Iterator[CheckResult]:
        metrics = self.experiment.make_metrics(training=phase == "training")

        def compute() -> Iterator[CheckResult]:
            check_metrics(metrics, result, phase)
            metrics.update(result, samples=samples, share=1.0)
            values = metrics.compute()
            if len(values) > 1 and phase == "training":
                shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "loss")
                yield CheckResult("metrics", "ok", f"untrained: {shown}")

        return tried("metrics", compute, cause="a metric for outputs or targets of a different shape")

    def _memorising(self, result: StepResult, measure: Callable[[], StepResult]) -> CheckResult:
        # a trainer's own loss may not go far below its start, as one with a term for unlabelled samples
        own_loss = not self.config.losses or measure == self._train
        smooth = any(loss.args.get("label_smoothing") for loss in self.config.losses.values())
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        frozen = len(parameters) < len(list(self.model.parameters())) or bool(self.training.frozen.config)
        numbers = sum(tensor.numel() for tensor in tensors(result.targets))
        few = sum(parameter.numel() for parameter in parameters) < numbers
        must_learn = not (own_loss or smooth or frozen or few)
        return model_checks.check_memorising(self.model, self._train, measure, must_learn=must_learn)

    def _costs(self, result: StepResult, measure: Callable[[], StepResult]) -> Iterator[CheckResult]:
        """Memorise the batch, and take a few steps with the config's optimizer: change of the loss, time and memory.

        measure: the step whose losses are compared.
        """
        if self.trainer.supervised:
            yield self._memorising(result, measure)
        start = float(measure().loss)
        seconds = []
        for _ in range(TIMED_STEPS):
            began = time.perf_counter()
            self._take_step()
            if self.runtime.device.type != "cpu":
                torch.accelerator.synchronize()
            seconds.append(time.perf_counter() - began)
        yield model_checks.check_optimizer(self.config, start, float(measure().loss), TIMED_STEPS)
        fetching = self.fetching * self.config.trainer.accumulate_steps
        yield model_checks.check_time(self.config, self.training, statistics.median(seconds), fetching)
        states = [state for each in self.training.optimizers.values() for state in each.optimizer.state.values()]
        yield model_checks.check_memory(self.model, states)

    def _take_step(self) -> None:
        """An optimizer step with as many micro-batches as configured; always the same batch here."""
        self.model.train()
        count, first = self.config.trainer.accumulate_steps, self.first
        batches = (MicroBatch(first, first.size, self._copied()) for _ in range(count))
        step = StepBatches(batches, [first] * count, count * first.size, self.training.batches.after(first))
        check_step_was_taken(self.trainer, self.trainer.optimizer_step(step), step)

    def _smallest_batch(self) -> Iterator[CheckResult]:
        """Take a training step with as few samples as the last batch has."""
        batches = self.training.batches
        size, stop = batches.last_batch_size(), batches.samples_per_pass
        if size == self.first.size:
            return

        def train() -> Iterator[CheckResult]:
            [micro_batch] = batches.load([BatchRange(0, stop - size, stop)])
            self.model.train()
            self.trainer.train_step(self.runtime.to_device(micro_batch.data))
            yield CheckResult("last batch", "ok", f"the last batch of an epoch has {count(size, 'sample')}")

        cause = "BatchNorm on a single sample, or code that expects full batches"
        yield from tried("last batch", train, cause=f"{cause}; data_loader.args.drop_last=true leaves it out")
        batches.close()

    def _validation(self) -> Iterator[CheckResult]:
        """Try the first validation batches, or a validation of the trainer's own on them; silent if it passes."""
        before = copied(self._fixed())
        own = _own_validation(self.trainer)
        if own:
            self.model.train()  # as it is after the steps of an epoch
            yield from tried("validation", partial(_try_own_validation, self.trainer))
        sets = () if "evaluate" in own else self.training.validation.values()  # it may not call eval_step
        for batches in sets:
            cause = "validation data of a different kind than the training data"
            yield from tried("validation", partial(self._check_validation, batches), cause=cause)
            batches.close()
        after = self._fixed()
        # a buffer that has grown is a table, such as one of positions
        kept = [name for name, each in before.items() if _shape(each) == _shape(after.get(name))]
        if changed := [name for name in kept if not same(before[name], after[name])]:
            cause = "a model that learns in forward(), from validation and test data too: update it if self.training"
            yield CheckResult("evaluation", "note", f"a validation changes {listed(changed)}", cause)

    def _check_validation(self, batches: Batches) -> Iterator[CheckResult]:
        micro_batch = next(batches.one_pass())
        result = self._evaluate(self.runtime.to_device(micro_batch.data), first="validation")
        if not self.metrics_failed:
            yield from self._metrics(result, micro_batch.size, "validation")

    def _fixed(self) -> dict[str, Any]:
        """What no validation should change: the tensors of the model, and the state of each part of the trainer.

        Without the parts if the trainer has a ``validate``, which may choose values for tests, such as thresholds.
        """
        state = self.trainer.state_dict()
        model = {f"model.{name}": each for name, each in state["model"].items() if isinstance(each, Tensor)}
        parts = () if "validate" in _own_validation(self.trainer) else own_parts(self.trainer.stateful())
        return model | {name: state[name] for name in parts}

    def _test_data(self) -> None:
        if self.experiment.data.defines("test_data"):
            self.experiment.data.test()


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


def _own_validation(trainer: BaseTrainer) -> list[str]:
    """Which of ``validate`` and ``evaluate`` the trainer defines itself."""
    names = ("validate", "evaluate")
    return [name for name in names if getattr(type(trainer), name) is not getattr(BaseTrainer, name)]


def _try_own_validation(trainer: BaseTrainer) -> Iterator[CheckResult]:
    """Try a validation of the trainer's own on the first batches. Raises any error of the user's code."""
    training, model = trainer.training, trainer.experiment.model
    first = {name: _first_batches(batches) for name, batches in training.validation.items()}
    modes = set[bool]()
    hooks = [each.register_forward_pre_hook(lambda *_: modes.add(model.training)) for each in model.modules()]
    try:
        trainer.training = replace(training, validation=first)
        values = check_returned(trainer, "validate", trainer.validate())
        name = trainer.settings.monitored_name or ""
        measured = {f"val_{each}": value for each, value in values.items()}
        if name.startswith("val_") and trainer.monitored(measured) is None:
            text = f"{name} of trainer.monitor was not measured, only {listed(list(measured)) or 'nothing'}"
            yield CheckResult("validation", "note", text, "another name in evaluate(), unless later epochs measure it")
    finally:
        trainer.training = training
        for hook in hooks:
            hook.remove()
    if True in modes:
        text = "the model runs in training mode, as with dropout, and not with the averaged weights of trainer.ema"
        yield CheckResult("validation", "note", text, "a call that is not inside self.evaluating()")


def _first_batches(batches: Batches) -> Batches:
    """The first two; all of a stream."""
    if isinstance(batches, StreamBatches):
        return batches
    indices = torch.arange(len(batches.source)) if batches.indices is None else batches.indices
    return Batches(batches.source, batch_size=batches.batch_size, indices=indices[: 2 * batches.batch_size])
