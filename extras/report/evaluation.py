"""The report of test.py: everything that an evaluation found, in one folder."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from base.data.batches import BatchRange
from base.experiment import Experiment
from extras.report import figures
from extras.report.classification import Classification, Show
from extras.report.drawing import png
from extras.report.findings import EvaluationStats
from extras.report.markdown import escaped, figure, table
from extras.report.predictions import Predictions
from extras.report.regression import Regression
from logger.writers import EVENTS, EventWriter
from utils.errors import TrainingError, UserError
from utils.run_folder import RunFolder, replace_bytes, replace_text

PICTURES = ("confusion_matrix", "mistakes", "calibration", "scatter", "residuals")


class EvaluationReport(EvaluationStats):
    """Writes what it is shown. Files of an older report that this one does not have are removed."""

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.folder = folder
        self.predictions = Predictions(folder / "predictions.csv", self.processes)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Own the folder; keep the predictions if nothing goes wrong. Raises UserError if it cannot be written.

        Only the main one of several processes does.
        """
        if not self.processes.is_main_process:
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made: {error.strerror}; for another folder: --out") from error
        with RunFolder(self.folder).locked("writes a report into it"), self.predictions:
            yield

    def add_probabilities(self, window: BatchRange, probabilities: Tensor, targets: Tensor, show: Show) -> None:
        super().add_probabilities(window, probabilities, targets, show)
        self.predictions.add_classes(window.start, probabilities, targets, self.class_names())

    def add_numbers(self, window: BatchRange, outputs: Tensor, targets: Tensor) -> None:
        super().add_numbers(window, outputs, targets)
        self.predictions.add_numbers(window.start, outputs, targets)

    def write(self, run: str, about: Mapping[str, Any], values: Mapping[str, float], *, tensorboard: bool) -> None:
        """Everything but the predictions. run: its name; about: what was tested; values: the loss and the metrics.

        Raises TrainingError if a file cannot be written.
        """
        found = {**values, **{name: value for name, value in self._further().items() if name not in values}}
        pictures = self._pictures()
        for name, picture in pictures.items():
            replace_bytes(self.folder / f"{name}.png", png(picture))
        if tensorboard:
            self._write_events(int(about["step"]), found)
        for name in PICTURES:
            if name not in pictures:
                (self.folder / f"{name}.png").unlink(missing_ok=True)
        if not self.predictions.begun:
            self.predictions.path.unlink(missing_ok=True)
        text = "\n\n".join([f"# Test of {escaped(run)}", *self._sections(about, found, list(pictures))])
        replace_text(self.folder / "report.md", text + "\n")
        clean = {name: value if math.isfinite(value) else None for name, value in found.items()}
        replace_text(self.folder / "metrics.json", json.dumps({**about, **clean}, indent=2) + "\n")

    def _further(self) -> dict[str, float]:
        """Values beside those that the config asks for."""
        if self.classification is not None:
            return {"expected_calibration_error": self.classification.calibration_error()}
        return {"r2": self.regression.residuals().r2} if self.regression is not None else {}

    def _pictures(self) -> dict[str, Figure]:
        drawn: dict[str, Figure | None] = {}
        if self.classification is not None:
            names = self.class_names()
            drawn["confusion_matrix"] = figures.confusion_matrix(self.classification.confusion, names)
            drawn["mistakes"] = figures.mistakes_grid(self.classification.mistakes, names)
            drawn["calibration"] = figures.reliability(self.classification)
        elif self.regression is not None:
            drawn = {"scatter": figures.scatter(self.regression), "residuals": figures.residuals(self.regression)}
        return {name: picture for name, picture in drawn.items() if picture is not None}

    def _sections(self, about: Mapping[str, Any], found: Mapping[str, float], pictures: list[str]) -> Iterator[str]:
        yield (
            f"{about['checkpoint']}: epoch {about['epoch']}, step {about['step']:,}; {about['samples']:,} test samples."
        )
        yield table(["metric", "value"], [[escaped(name), figure(value)] for name, value in found.items()])
        if self.classification is not None:
            yield from _classes(self.classification, [escaped(name) for name in self.class_names()], pictures)
        elif self.regression is not None:
            yield from _numbers(self.regression)
        else:
            yield "The task is neither a classification nor a regression: there is nothing more to show."
        if self.predictions.begun:
            yield "Every sample: [predictions.csv](predictions.csv)."

    def _write_events(self, step: int, found: Mapping[str, float]) -> None:
        """One point a value, in place of an older report's. TensorBoard shows the folder as a run of its own."""
        for path in self.folder.iterdir():
            if EVENTS.fullmatch(path.name) and not path.stat().st_size:
                path.unlink()  # emptied by the report before the last one
        events = EventWriter(self.folder)
        events.resume({}, step=0)
        events.scalars(step, {f"{name}/test": value for name, value in found.items()})
        events.flush()
        try:
            events.sync()
        except OSError as error:
            raise TrainingError(f"{self.folder} cannot be written: {error.strerror}") from error


def _classes(found: Classification, names: list[str], pictures: list[str]) -> Iterator[str]:
    """names: escaped."""
    scores = found.scores()
    there = scores.support > 0
    columns = [scores.precision, scores.recall, scores.f1]
    rows = [
        [name, *(figure(value, ".3f") for value in values), f"{count:,}"]
        for name, *values, count in zip(names, *columns, scores.support, strict=True)
    ]
    means = [float(np.nan_to_num(column[there]).mean()) if there.any() else math.nan for column in columns]
    rows.append(["mean of the classes", *(figure(value, ".3f") for value in means), f"{found.samples:,}"])
    yield "## Classes"
    yield table(["class", "precision", "recall", "F1", "support"], rows)
    yield "![confusion matrix](confusion_matrix.png)"
    yield from _confusions(found, names)
    yield "## Most confident mistakes"
    if "mistakes" in pictures:
        yield "![mistakes](mistakes.png)"
    elif found.mistakes:
        mistakes = [
            [names[mistake.predicted], names[mistake.true], f"{mistake.probability:.3f}", str(mistake.sample)]
            for mistake in found.mistakes
        ]
        yield table(["predicted", "true", "probability", "sample"], mistakes, left=2)
    else:
        yield "There is none."
    yield "## Calibration"
    yield "![calibration](calibration.png)"


def _confusions(found: Classification, names: list[str], most: int = 5) -> Iterator[str]:
    wrong = found.confusion.copy()
    np.fill_diagonal(wrong, 0)
    rows = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:most]:
        true, predicted = divmod(int(place), found.classes)
        if count := int(wrong[true, predicted]):
            share = count / int(found.confusion[true].sum())
            rows.append([names[true], names[predicted], f"{count:,}", f"{share:.1%}"])
    if rows:
        yield table(["true class", "most often taken for", "samples", "of the class"], rows, left=2)


def _numbers(found: Regression) -> Iterator[str]:
    values = found.residuals()
    said = {
        "mean (bias)": values.mean,
        "standard deviation": values.deviation,
        "root mean square": values.rmse,
        "mean absolute value": values.mae,
        "largest absolute value": values.largest,
    }
    yield "## Residuals: predicted - true"
    yield table([f"of {found.numbers:,} values", ""], [[name, figure(value)] for name, value in said.items()])
    yield "![predicted and true values](scatter.png)"
    yield "![residuals](residuals.png)"
