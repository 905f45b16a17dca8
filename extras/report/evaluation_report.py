"""The report of test.py, in one folder: report.md, report.html, their figures and predictions.csv."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from base.data.batches import BatchRange
from base.experiment import Experiment
from extras.document import Block, Heading, Paragraph, Picture, Table, as_html, as_markdown
from extras.report.description import CURVES, Tested, digits, head, in_training, memorised
from extras.report.evaluation_stats import MOST_CLASSES, EvaluationStats
from extras.report.statistics import Classification, Regression
from extras.spreadsheets import csv_field
from utils.distributed.process_group import ProcessGroup
from utils.errors import DataError
from utils.extras import find_extra
from utils.run_folder import replace_files
from utils.text import count

PREDICTIONS = "predictions.csv"
FILES = (
    "confusion_matrix.png", "mistakes.png", "calibration.png", "scatter.png", "residuals.png", CURVES, PREDICTIONS,
)  # fmt: skip
MOST_COLUMNS = 100
"""With more classes, only the probabilities of the true and the predicted class are written, to limit the file size."""
MOST_CONFUSIONS = 5


class EvaluationReport(EvaluationStats):
    """Writes a report of what it observes. Files of an older report that this one lacks are removed."""

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.folder = folder
        self.sum_loss = experiment.sum_loss
        self.files: Sequence[str] | None = None
        """The names of the test samples, if they have any."""
        self.by_sample = True
        """Whether the outputs have a row for each sample, rather than for each node, say."""
        self.predictions = Predictions(self.processes)

    def begin_evaluation(self, samples: int) -> None:
        super().begin_evaluation(samples)
        names = self.data.test_names()
        self.files = files = None if names is None else [str(name) for name in names]
        if files is not None and len(files) != samples:
            name = type(self.data).__name__
            raise DataError(f"{name}.test_names gives {len(files):,} names for {samples:,} test samples")
        self.predictions.files = files
        self.by_sample = True

    def added(self, batch_range: BatchRange, outputs: Tensor, targets: Tensor) -> None:
        if len(targets) != batch_range.size:
            self.by_sample, self.files = False, None
        if not self.by_sample:
            return
        if self.classification is not None:
            self.predictions.add_classes(batch_range.start, outputs, targets, self.class_names())
        elif self.regression is not None and not self.regression.uneven:
            self.predictions.add_numbers(batch_range.start, outputs, targets)

    def _lists_samples(self) -> bool:
        """Whether there is a table of the samples."""
        return bool(self.predictions.parts) and self.by_sample and bool(self.classification or self.regression)

    def further_values(self) -> dict[str, float]:
        """Values beside those that the config asks for."""
        if self.classification is not None:
            return {"expected_calibration_error": self.classification.calibration_error()}
        return {"r2": self.regression.residuals().r2} if self.regression is not None else {}

    def write(self, tested: Tested, values: Mapping[str, float], beside: Mapping[str, str]) -> None:
        """values: the loss and the metrics on the test data. beside: other files to write, by name.

        Raises TrainingError if a file cannot be written; an older report then remains as it was.
        """
        pictures = self._pictures()
        if curves := self._curves(tested):
            pictures[CURVES] = curves
        blocks = list(self._blocks(tested, values, pictures))
        files: dict[str, str | bytes | Sequence[bytes]] = {**pictures, **beside}
        files |= {"report.md": as_markdown(blocks), "report.html": as_html(blocks, pictures)}
        if self._lists_samples():
            files[PREDICTIONS] = self.predictions.parts
        replace_files(self.folder, files)
        for file in FILES:
            if file not in files:
                (self.folder / file).unlink(missing_ok=True)

    def _curves(self, tested: Tested) -> bytes | None:
        """The picture of the run's curves; None without extras/curves, or if no epoch is finished."""
        extra = find_extra("curves")
        return extra.curves_png(tested.folder, tested.config.trainer.monitor) if extra else None

    def _pictures(self) -> dict[str, bytes]:
        from extras.drawing import png
        from extras.report import figures, thumbnails

        drawn: dict[str, bytes | None] = {}
        if self.classification is not None:
            names, found = self.class_names(), self.mistakes()
            counts = self.classification.confusion
            drawn["confusion_matrix.png"] = thumbnails.confusion_matrix(counts, names, totals=True)
            drawn["mistakes.png"] = thumbnails.mistakes(found, names, self.files, columns=max(4, min(6, len(found))))
            drawn["calibration.png"] = png(figures.reliability(self.classification))
        elif self.regression is not None:
            drawn["scatter.png"] = thumbnails.scatter(self.regression)
            drawn["residuals.png"] = png(figures.residuals(self.regression))
        return {name: picture for name, picture in drawn.items() if picture is not None}

    def _blocks(self, tested: Tested, values: Mapping[str, float], pictures: Collection[str]) -> Iterator[Block]:
        found = self.classification or self.regression
        yield from head(tested, self.folder)
        yield from memorised(tested, values.get("loss", math.nan), sum_loss=self.sum_loss, found=found)
        if self.classification is not None and (only := self.classification.only_prediction()) is not None:
            yield Paragraph(f"The model predicts {self.class_names()[only]} for every sample.", strong=True)
        yield Table(["metric", "value"], [[name, digits(value)] for name, value in values.items()])
        if found is not None and found.not_finite:
            what = count(found.not_finite, "sample" if self.classification is not None else "number")
            are = "is" if found.not_finite == 1 else "are"
            yield Paragraph(f"{what} {are} not finite in the outputs, and left out of what follows.")
        if self.classification is not None:
            sample_name = (self.files.__getitem__ if self.files else str) if self.by_sample else None
            yield from _classes(self.classification, self.class_names(), pictures, sample_name)
        elif self.regression is not None:
            yield from _residuals(self.regression)
        else:
            yield Paragraph(
                f"No figures: they are for classification into up to {MOST_CLASSES:,} classes, and regression."
            )
        yield from in_training(tested, values, sum_loss=self.sum_loss, curves=CURVES in pictures)
        if not self.by_sample:
            yield Paragraph(
                "The rows of the outputs are not samples but, for example, nodes, so the samples are not listed."
            )
        elif self._lists_samples():
            yield Paragraph("Every sample:", link=PREDICTIONS)


class Predictions:
    """A table with one line per sample, as CSV.

    files: the names of the samples, if any.
    processes: each adds its part of the same batch, which may be empty; the main process gets the lines of all.
    """

    def __init__(self, processes: ProcessGroup) -> None:
        self.processes = processes
        self.files: Sequence[str] | None = None
        self.parts: list[bytes] = []
        """The header, and the lines of each batch. Not joined: the table may be large."""

    def add_classes(self, start: int, probabilities: Tensor, targets: Tensor, names: Sequence[str]) -> None:
        """Add classified samples, (B, C) and (B,), from index ``start`` on."""
        few = len(names) <= MOST_COLUMNS
        chosen = [f"p_{name}" for name in names] if few else ["p_true", "p_predicted"]
        safe = [csv_field(name) for name in names]
        predicted, broken = probabilities.argmax(1), probabilities.isnan().any(1).tolist()
        if not few:
            likely = probabilities.amax(1)
            of_true = probabilities.gather(1, targets.clamp(0, len(names) - 1)[:, None])
            probabilities = torch.cat([of_true, likely[:, None]], 1)
        true = [safe[label] if 0 <= label < len(safe) else str(label) for label in targets.tolist()]
        self._add(
            ["true", "predicted", *chosen],
            f"%s,%s,%s{',%.6g' * len(chosen)}\n",
            zip(
                self._samples(start, len(true)),
                true,
                ("" if missing else safe[label] for label, missing in zip(predicted.tolist(), broken, strict=True)),
                *probabilities.T.tolist(),
                strict=True,
            ),
        )

    def add_numbers(self, start: int, outputs: Tensor, targets: Tensor) -> None:
        """Add predicted and true numbers, both (B, ...), from index ``start`` on; skipped if too many per sample."""
        width = math.prod(outputs.shape[1:])
        if width > MOST_COLUMNS:
            return
        outputs, targets = outputs.reshape(-1, width), targets.reshape(-1, width)
        ends = [""] if width == 1 else [f"_{place}" for place in range(width)]
        header = [*(f"true{end}" for end in ends), *(f"predicted{end}" for end in ends)]
        columns = [*targets.T.tolist(), *outputs.T.tolist()]
        form = "".join(f",{_exact_form(values)}" * width for values in (targets, outputs))
        self._add(header, f"%s{form}\n", zip(self._samples(start, len(targets)), *columns, strict=True))

    def _samples(self, start: int, count: int) -> list[str]:
        """The cells that identify a sample: its index and, if it has one, its name."""
        indices = range(start, start + count)
        files = self.files
        return [str(index) if files is None else f"{index},{csv_field(files[index])}" for index in indices]

    def _add(self, header: Sequence[str], form: str, rows: Iterable[tuple[object, ...]]) -> None:
        if not self.parts:
            which = ["index"] if self.files is None else ["index", "file"]
            self.parts.append(_encoded(",".join(map(csv_field, [*which, *header])) + "\n"))
        self.parts += self.processes.gather(_encoded("".join([form % row for row in rows])))


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # a file name may contain bytes that are not text


def _classes(
    found: Classification, names: list[str], pictures: Collection[str], sample_name: Callable[[int], str] | None
) -> Iterator[Block]:
    """sample_name: None if the rows are not samples."""
    scores = found.scores()
    present = scores.support > 0
    columns = [scores.precision, scores.recall, scores.f1]
    rows = [
        [name, *(_share(value) for value in values), f"{count:,}"]
        for name, *values, count in zip(names, *columns, scores.support, strict=True)
    ]
    means = [float(np.nan_to_num(column[present]).mean()) if present.any() else math.nan for column in columns]
    rows.append(["mean over classes", *(_share(value) for value in means), f"{found.samples:,}"])
    yield Heading("Classes")
    yield Table(["class", "precision", "recall", "F1", "support"], rows)
    yield Picture("confusion matrix", "confusion_matrix.png")
    yield from _confusions(found, names)
    yield Heading("Most confident mistakes")
    if "mistakes.png" in pictures:
        yield Picture("mistakes", "mistakes.png")
    elif found.mistakes:
        mistakes = [
            [names[mistake.predicted], names[mistake.true], f"{mistake.probability:.3f}"]
            + ([sample_name(mistake.sample)] if sample_name else [])
            for mistake in found.mistakes
        ]
        header = ["predicted", "true", "probability", *(["sample"] if sample_name else [])]
        yield Table(header, mistakes, texts=(0, 1))
    else:
        yield Paragraph("None.")
    yield Heading("Calibration")
    yield Picture("calibration", "calibration.png")


def _confusions(found: Classification, names: list[str]) -> Iterator[Block]:
    wrong = found.confusion.copy()
    np.fill_diagonal(wrong, 0)
    rows = []
    for index in np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]:
        true, predicted = divmod(int(index), found.classes)
        if count := int(wrong[true, predicted]):
            share = count / int(found.confusion[true].sum())
            rows.append([names[true], names[predicted], f"{count:,}", f"{share:.1%}"])
    if rows:
        yield Table(["true class", "most often predicted as", "samples", "of the class"], rows, texts=(0, 1))


def _residuals(found: Regression) -> Iterator[Block]:
    values = found.residuals()
    named = {
        "mean (bias)": values.mean,
        "standard deviation": values.deviation,
        "root mean square": values.rmse,
        "mean absolute value": values.mae,
        "largest absolute value": values.largest,
    }
    yield Heading("Residuals: predicted - true")
    yield Table([f"of {count(found.numbers, 'value')}", ""], [[name, digits(value)] for name, value in named.items()])
    yield Picture("predicted and true values", "scatter.png")
    yield Picture("residuals", "residuals.png")


def _exact_form(values: Tensor) -> str:
    """A %-format from which every value of this type can be read back exactly."""
    if not values.is_floating_point():
        return "%d"
    return "%r" if values.dtype == torch.float64 else "%.9g"


def _share(value: float) -> str:
    """A number from 0 to 1 in a table; a dash if it is NaN."""
    return "-" if math.isnan(value) else f"{value:.3f}"
