"""The layers of a model, and its results on training samples, computed without side effects."""

import itertools
import warnings
from typing import TYPE_CHECKING, Any

from base.base_trainer import BaseTrainer
from base.data.batches import BatchRange
from base.training.untouched import untouched
from extras.document import markdown_table
from extras.layers import HEADER, Trace, traced
from extras.tensorboard.graph import Recorder, recording

if TYPE_CHECKING:
    from extras.report import EvaluationStats

SAMPLES = 1000
"""Number of training samples to evaluate if there is no validation data."""


def first_batch(trainer: BaseTrainer, samples: int) -> Any:
    """The first training samples, as the model gets them.

    Loaded by the workers, if any: a data set that opens a file in this process might not survive their start.
    """
    batches = trainer.training.batches
    [micro_batch] = batches.load([BatchRange(0, 0, min(samples, batches.num_samples))])
    return micro_batch.data


def model_summary(trainer: BaseTrainer) -> tuple[str, bytes | None]:
    """The table of layers as Markdown, and the graph in TensorBoard's format; None if the model cannot be traced.

    Runs two samples through the model.
    """
    model = trainer.experiment.model
    if trainer.runtime.process_group.world_size > 1:  # the model would wait for the others
        return f"{_size(trainer)}\n\nWith several processes, no table of layers or graph is available.", None
    trace = Trace()
    recorder = Recorder(model)
    try:
        with (
            untouched(trainer, "model summary"),
            traced(model, trace),
            recording(model, recorder),
            warnings.catch_warnings(),
        ):
            model.eval()
            warnings.simplefilter("ignore")  # the first training step will show them
            samples = first_batch(trainer, 2)
            trainer.eval_step(trainer.runtime.to_device(samples))
    except Exception as error:  # from the user's own code, which may not support this batch size
        return f"{_size(trainer)}\n\nNo table of layers or graph: {error}", None
    table = "\n".join(markdown_table(HEADER, trace.rows, right=[3]))
    return f"{_size(trainer)}\n\n{table}", recorder.graph().SerializeToString()


def evaluate_training_samples(trainer: BaseTrainer, stats: "EvaluationStats") -> None:
    """Collect the model's results on the first training samples, in a run without validation."""
    batches = trainer.training.batches
    ranges = list(itertools.islice(batches.ranges(), min(len(batches), -(-SAMPLES // batches.batch_size))))
    stats.begin_evaluation(sum(batch_range.size for batch_range in ranges))
    with untouched(trainer, "model summary"):
        trainer.experiment.model.eval()
        for micro_batch in batches.load(ranges):
            result = trainer.eval_step(trainer.runtime.to_device(micro_batch.data))
            stats.evaluated(micro_batch.range, micro_batch.data, result)


def _size(trainer: BaseTrainer) -> str:
    """Parameters that are frozen in this epoch count: a resumed run writes the same."""
    model, trainable = trainer.experiment.model, trainer.training.frozen.trainable
    parameters = sum(parameter.numel() for name, parameter in model.named_parameters() if name in trainable)
    return f"{type(model).__name__}: {parameters:,} trainable parameters"
