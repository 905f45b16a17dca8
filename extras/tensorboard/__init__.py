"""What TensorBoard shows besides the curves written by the training loop. docs/tensorboard.md lists everything.

make_observer returns the observer that train.py attaches to a run, curves_address the page that it names at its end.

board            the observer in the process that writes event files: when what is written, by
model_summary    the table of layers, and the graph
histograms       weights, gradients and memory
pictures         training images; confusion matrix, mistakes and precision-recall curves, from extras/report
hyperparameters  the page of runs, and the overview of curves
profile          a trace of some optimizer steps
"""

import json
from collections.abc import Collection
from urllib.parse import quote

from base.experiment import Experiment
from base.training.observer import Observer, all_of
from extras.tensorboard.board import Board, may_be_drawn
from logger.writers import EventWriter, Writer
from utils.extras import find_extra
from utils.schema import Config

__all__ = ["curves_address", "make_observer"]


def make_observer(config: Config, experiment: Experiment, events: Writer | None, text: str) -> Observer:
    """The observer of a run. events: None except in the main process; the others only take part in its sums.

    text: the config as in the run's folder.
    """
    report = find_extra("report")
    warn = experiment.console.warn
    stats = report.EvaluationStats(experiment, warn=warn, wanted=may_be_drawn) if report else None
    if stats is None and config.trainer.pictures_every != 0 and isinstance(events, EventWriter):
        experiment.console.info("TensorBoard gets no pictures of evaluations: extras/report is not in this project")
    board = Board(config, events, text, stats) if isinstance(events, EventWriter) else None
    return all_of([*filter(None, [stats, board])])


def curves_address(monitor: str | None, logged: Collection[str]) -> str:
    """URL of the curves page: unsmoothed, with the monitored value (or else the loss) pinned, training and validation.

    monitor: as in the config. logged: names of the values of an epoch. The port is TensorBoard's default.
    """
    name = monitor.split()[1].removeprefix("val_") if monitor else "loss"
    phases = {"train": name, "valid": f"val_{name}"}
    tags = [f"{name}/{phase}" for phase, value in phases.items() if value in logged]
    cards = json.dumps([{"plugin": "scalars", "tag": tag} for tag in tags], separators=(",", ":"))
    return f"http://localhost:6006/?smoothing=0&pinnedCards={quote(cards, safe=':,')}#timeseries"
