"""What TensorBoard shows beside the curves that the training loop writes. docs/tensorboard.md lists it all.

make_observer gives what train.py attaches to a run: in the process that writes the event files a Board, which calls
  model_summary  the table of layers and, by graph, the graph
  histograms     weights, gradients and memory
  pictures       training images; confusion matrix, mistakes and precision-recall curves, by extras/report
  profile        a trace of some optimizer steps
and writes all of it as summaries makes it.
"""

from base.experiment import Experiment
from base.training.observer import Observer
from extras.tensorboard.board import Board
from logger.writers import EventWriter, Writer
from utils.extras import find_extra
from utils.schema import Config

__all__ = ["make_observer"]


def make_observer(config: Config, experiment: Experiment, events: Writer | None, text: str) -> Observer:
    """What observes a run. events: None in all processes but the main one, which take part in its sums alone.

    text: the config as it is in the run's folder.
    """
    report = find_extra("report")
    stats = report.EvaluationStats(experiment) if report else None
    if not isinstance(events, EventWriter):
        return stats or Observer()
    if stats is None and config.trainer.pictures_every != 0:
        experiment.console.info("TensorBoard gets no pictures of evaluations: extras/report is not in this project")
    return Board(config, events, text, stats)
