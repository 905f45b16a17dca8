"""The head of a report: what was tested, and how it performed in training."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from extras.document import Block, Heading, Paragraph, Picture, Source, Table
from extras.letters import shortened
from extras.records import value_text
from extras.report.statistics import Classification, Regression
from utils.paths import path_from
from utils.run_folder import RunFolder
from utils.schema import Component, Config
from utils.text import count, number

CURVES = "curves.png"
MUCH = 10
"""A test loss above this multiple of the training loss is reported as a gap."""


@dataclass(frozen=True)
class Tested:
    """What test.py evaluated."""

    folder: RunFolder
    config: Config
    command: str
    """The command, as it could be typed again."""
    about: Mapping[str, Any]
    """checkpoint, epoch, step and samples."""
    parameters: int
    """Number of trainable parameters."""

    @property
    def name(self) -> str:
        return f"{self.config.name}/{self.folder.path.resolve().name}"

    def epoch(self) -> Mapping[str, Any]:
        """The line of metrics.jsonl written with the checkpoint; empty if it is not from the end of an epoch."""
        step = self.about["step"]
        return next((record for record in self.folder.epochs() if record.get("step") == step), {})


def head(tested: Tested, report: Path) -> Iterator[Block]:
    """report: the folder it will be written to."""
    config, about, environment = tested.config, tested.about, tested.folder.read_environment()
    yield Heading(f"Test of {tested.name}", level=1)
    schedulers = {"".join(map(str, path[1:])): each for path, each in config.schedulers().items()}
    rows = [
        ("note", str(environment.get("note") or "")),
        ("checkpoint", f"{about['checkpoint']}: epoch {about['epoch']}, step {about['step']:,}"),
        ("test data", f"{component(config.data_loader)}: {count(about['samples'], 'sample')}"),
        ("model", f"{component(config.model)}: {tested.parameters:,} trainable parameters"),
        ("loss", _by_name(config.losses)),
        ("optimizer", _by_name(config.optimizers)),
        ("lr_scheduler", _by_name(schedulers)),
        ("trained", f"{_time(environment.get('time'))} on {environment.get('device', 'an unknown device')}"),
        ("commit", _commit(environment)),
        ("tested", f"{datetime.now():%Y-%m-%d %H:%M:%S}"),
        ("command", tested.command),
    ]
    yield Table(["", ""], [row for row in rows if row[1]], texts=(0, 1))
    try:
        text = tested.folder.config.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return
    yield Source("config", text, path_from(report.resolve(), tested.folder.config.resolve()))


def component(item: Component) -> str:
    """A component as a call: LeNet(in_channels=3, kernel_size=5)."""
    given = ", ".join(f"{key}={value_text(value)}" for key, value in item.args.items())
    return f"{item.type}({shortened(given, 160)})" if given else item.type


def digits(value: float | None) -> str:
    """A number in a table; a dash for one that is missing or NaN, such as the precision of a class without samples."""
    return "-" if value is None or math.isnan(value) else number(value)


def in_training(tested: Tested, values: Mapping[str, float], *, sum_loss: bool, curves: bool) -> Iterator[Block]:
    """Each value in training, in validation and in the test. values: those of the test."""
    record = tested.epoch()
    rows = []
    for name, value in values.items():
        before = [record.get(name), record.get(f"val_{name}")]
        if any(item is not None for item in before):
            rows.append([name, *map(digits, [*before, value])])
    if rows or curves:
        yield Heading("Training and test")
    if rows:
        yield Table(["", "training", "validation", "test"], rows)
        sums = " The loss is a sum: over a step in training, over all samples otherwise." if sum_loss else ""
        how = (
            "Training values are means over the epoch, while the weights changed, with augmentation and dropout if any."
        )
        yield Paragraph(how + sums)
    if curves:
        yield Picture("curves of training and validation", CURVES)


def memorised(
    tested: Tested, loss: float, *, sum_loss: bool, found: Regression | Classification | None
) -> Iterator[Block]:
    """A note if a model only learnt its training data: a far larger loss on the test data, where it predicts no better
    than a constant.

    loss: on the test data. sum_loss: it is a sum over the samples. It is then compared per sample with the training
    loss of a whole step, which can only understate the gap.
    """
    training = tested.epoch().get("loss")
    each = loss / max(tested.about["samples"], 1) if sum_loss else loss
    if not isinstance(training, (int, float)) or training < 0 or not MUCH * training < each < math.inf:
        return
    said = f"The training loss is {number(training)} and the test loss {number(each)}"
    if sum_loss:
        said = f"The loss of a whole step was {number(training)} in training, and is {number(each)} per test sample"
    if isinstance(found, Regression) and (r2 := found.residuals().r2) < 0.5:
        same = f"R² is {number(r2)} on the test data, where always predicting the mean of the targets would give 0"
    elif isinstance(found, Classification) and found.near_chance():
        same = f"its accuracy is {found.accuracy():.1%} on the test data, no better than always predicting one class"
    else:
        return
    yield Paragraph(f"The model has memorised its training data. {said}; {same}.", strong=True)


def _by_name(components: Mapping[str, Component]) -> str:
    return "; ".join(f"{name}: {component(each)}" if name else component(each) for name, each in components.items())


def _time(text: object) -> str:
    return str(text or "at an unknown time")[:19].replace("T", " ")


def _commit(state: Mapping[str, Any]) -> str:
    commit = state.get("git_commit")
    changed = " with uncommitted changes" if state.get("git_dirty") else ""
    return f"{commit[:7]}{changed}" if isinstance(commit, str) else ""
