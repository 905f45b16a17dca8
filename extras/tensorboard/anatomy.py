"""What a model is made of, and what it makes of training samples. They go through it, and leave no trace."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from base.base_model import count_parameters
from base.base_trainer import BaseTrainer
from base.data.batches import BatchRange
from extras.check.layers import Trace, traced
from extras.report.findings import EvaluationStats
from extras.tensorboard.graph import Recorder, recording
from utils.random import isolated

SAMPLES = 1000
"""Training samples that are looked at, where there are none for validation."""


def first_batch(trainer: BaseTrainer, samples: int) -> Any:
    """The first samples of the training, as the model gets them.

    By the workers, where there are any: a data set that opens a file in this process might not survive their start.
    """
    batches = trainer.training.batches
    [micro_batch] = batches.load([BatchRange(0, 0, min(samples, batches.num_samples))])
    return micro_batch.data


def look(trainer: BaseTrainer, batch: Any) -> tuple[str, bytes | None]:
    """The table as Markdown, and the graph as TensorBoard reads it; None if the model does not let itself be watched.

    batch: what the trainer's ``eval_step`` takes. Of each of its tensors, only two samples are used.
    """
    model = trainer.experiment.model
    if trainer.runtime.processes.world_size > 1:  # the model would wait for the others
        return f"{_size(model)}\n\nWith several processes there is neither a table of layers nor a graph.", None
    trace, recorder = Trace(), Recorder(model)
    try:
        with untouched(trainer), traced(model, trace), recording(model, recorder):
            trainer.eval_step(trainer.runtime.to_device(_two(batch)))
    except Exception as error:  # of the user's own code, which gets a batch here that it may not be made for
        return f"{_size(model)}\n\nThere is neither a table of layers nor a graph: {error}", None
    return f"{_size(model)}\n\n{_table(trace.rows)}", recorder.graph().SerializeToString()


def found_in_training(trainer: BaseTrainer) -> EvaluationStats:
    """What the model makes of the first training samples, where there are none for validation."""
    findings, batches = EvaluationStats(trainer.experiment), trainer.training.batches
    if trainer.runtime.processes.world_size > 1:
        return findings
    ranges = list(itertools.islice(batches.ranges(), min(len(batches), -(-SAMPLES // batches.batch_size))))
    findings.begin_evaluation(sum(batch_range.size for batch_range in ranges))
    with untouched(trainer):
        for micro_batch in batches.load(ranges):
            batch = micro_batch.data
            findings.evaluated(micro_batch.range, batch, trainer.eval_step(trainer.runtime.to_device(batch)))
    return findings


@contextmanager
def untouched(trainer: BaseTrainer) -> Iterator[None]:
    """Inside, the model is evaluated, not compiled; afterwards it and the random generators are as they were.

    No inference mode: what a model keeps for later, as a table of positions, must serve in training too.
    """
    model = trainer.experiment.model
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with ExitStack() as stack:
        stack.enter_context(isolated(trainer.experiment.seed, "anatomy"))
        stack.enter_context(torch.no_grad())
        if trainer.runtime.settings.compile:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for buffer, before in buffers:
                buffer.copy_(before)


def _two(value: Any) -> Any:
    """The first two samples of each tensor in a batch."""
    if isinstance(value, Tensor):
        return value[:2] if value.dim() else value
    if isinstance(value, dict):
        return {key: _two(item) for key, item in value.items()}
    return type(value)(map(_two, value)) if type(value) in (list, tuple) else value


def _size(model: nn.Module) -> str:
    return f"{type(model).__name__}: {count_parameters(model):,} parameters to train"


def _table(rows: Sequence[tuple[str, str, str, str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(["| layer | kind | output | parameters |", "|---|---|---|---:|", *lines])
