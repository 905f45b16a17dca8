"""Statistics of an evaluation beyond means. The task is recognised from the first result."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from base.base_trainer import BaseTrainer
from base.data.batches import BatchRange
from base.data.pictures import pictures_of
from base.experiment import Experiment
from base.metric import StepResult
from base.training.broadcast import name_of
from base.training.library_metric import LOGITS, PROBABILITIES
from base.training.observer import Observer
from extras.classification import CLASS_LOSSES, are_probabilities, may_be_classes, names_of_classes
from extras.report.statistics import Classification, Mistake, Regression, as_probabilities, of_two_classes
from utils.errors import DataError

MOST_CLASSES = 1000
"""With more classes, the confusion matrix is left out: its size is quadratic."""

# losses whose float targets are classes or class probabilities: the task is not a regression
NO_REGRESSION = {
    "cross_entropy", "CrossEntropyLoss", "BCELoss", "BCEWithLogitsLoss", "KLDivLoss", "SoftMarginLoss",
    "MultiLabelSoftMarginLoss", "HingeEmbeddingLoss",
}  # fmt: skip


class EvaluationStats(Observer):
    """Recognises the task and accumulates its statistics; at most one of the two attributes is not None.

    Integer targets (B,) with outputs (B, C) are a classification, if ``may_be_classes``, as are targets of 0 and 1 with
    one output for each sample and a loss of their probability. Float targets in the outputs' shape are a regression,
    unless the loss treats them as probabilities or samples differ in length. Anything else, and any trainer that is not
    supervised, has no statistics.

    With several processes, each accumulates its own samples; at the end of an evaluation the main process has all.
    """

    classification: Classification | None = None
    regression: Regression | None = None

    def __init__(
        self,
        experiment: Experiment,
        *,
        warn: Callable[[str], None] | None = None,
        wanted: Callable[[BaseTrainer], bool] | None = None,
    ) -> None:
        """warn: takes a message, once, if the data loader's ``pictures`` fails; None: raises DataError.

        wanted: whether the evaluation that begins in a training is to be observed; None: each is.
        """
        self._trainer: Callable[[], BaseTrainer | None] = lambda: None
        self.warn, self.wanted, self._observed = warn, wanted, True
        self._has_pictures: bool | None = None  # not known yet
        self.data, self.processes = experiment.data, experiment.runtime.process_group
        self.loss = name_of(experiment.criterion)
        self.supervised = getattr(experiment, "supervised", True)
        self._begun = False
        self._expected = 0
        self._given: bool | None = None
        """Whether the outputs are probabilities; None: not known yet, as no output was finite so far."""
        self._of_two = False
        """Whether the outputs are of shape (B,) or (B, 1), for the second of two classes."""

    def begin(self, trainer: BaseTrainer) -> None:
        self._trainer = weakref.ref(trainer)  # it refers to this: such a cycle would keep the writers' files open

    def begin_evaluation(self, samples: int) -> None:
        self.classification = self.regression = None
        self._begun, self._expected = False, samples
        trainer = self._trainer()
        self._observed = self.wanted is None or (trainer is not None and self.wanted(trainer))

    def evaluated(self, batch_range: BatchRange, batch: Any, result: StepResult) -> None:
        if not self._observed:
            return
        if not self._begun:
            self._recognise(result)
        if self.classification is not None and self._given is None:
            self._given = self._are_probabilities(result.outputs)
        if self.classification is None and self.regression is None:
            return
        if not batch_range.size:
            result = StepResult(result.loss, result.outputs[:0], result.targets[:0])
        outputs, targets = result.outputs.detach(), result.targets.cpu()
        if self.regression is not None:
            outputs = outputs.cpu()
            self.regression.add(batch_range.start, outputs, targets)
        elif self.classification is not None:
            inputs = self._pictured(batch, len(targets))
            as_classes = of_two_classes if self._of_two else as_probabilities
            if self._of_two:  # a target between the classes is neither
                targets = torch.where(targets == targets.round(), targets, -1).reshape(-1)
            outputs, targets = as_classes(outputs, given=bool(self._given)).cpu(), targets.long()
            self.classification.add(batch_range.start, outputs, targets, inputs)
        self.added(batch_range, outputs, targets)

    def added(self, batch_range: BatchRange, outputs: Tensor, targets: Tensor) -> None:
        """Called for each batch of statistics: probabilities, (B, C), and classes, (B,), or numbers, both (B, ...)."""

    def _pictured(self, batch: Any, samples: int) -> Tensor | None:
        """The inputs of a batch, (inputs, targets), if there are pictures of them.

        samples: in the batch. Inputs of another length, such as packed sequences, are not shown.
        """
        inputs = batch[0] if isinstance(batch, (list, tuple)) and batch else None
        if not samples or not isinstance(inputs, Tensor) or inputs.layout != torch.strided or inputs.is_nested:
            return None  # a sparse one has no rows to take
        if not inputs.dim() or len(inputs) != samples:
            return None
        inputs = inputs.detach()
        if self._has_pictures is None:
            try:
                self._has_pictures = pictures_of(self.data, inputs[:1]) is not None
            except DataError as error:
                if self.warn is None:
                    raise
                self._has_pictures = False
                self.warn(f"mistakes are shown without pictures: {error}")
        return inputs if self._has_pictures else None

    def mistakes(self, most: int | None = None) -> list[Mistake]:
        """The most confident mistakes of a classification, worst first, with their pictures.

        most: how many of those that are kept; None: all.
        """
        found = self.classification.mistakes[:most] if self.classification is not None else []
        inputs = [mistake.input for mistake in found if mistake.input is not None]
        if len({each.shape for each in inputs}) == 1:
            pictures = pictures_of(self.data, torch.stack(inputs))
            drawn = iter([] if pictures is None else [picture.numpy() for picture in pictures])
        else:
            alone = [pictures_of(self.data, each[None]) for each in inputs]
            drawn = iter([None if picture is None else picture[0].numpy() for picture in alone])
        return [mistake if mistake.input is None else mistake._replace(picture=next(drawn, None)) for mistake in found]

    def end_evaluation(self) -> None:
        if (found := self.classification or self.regression) is not None and self.processes.world_size > 1:
            found.gather(self.processes)
        if self.classification is not None and self.classification.beyond and self.loss not in CLASS_LOSSES:
            self.classification = None  # a target shows at last that these are not classes
        if self.regression is not None and self.regression.uneven:
            self.regression = None

    def class_names(self) -> list[str]:
        """The data set's class names if it has one for every class, otherwise their numbers."""
        assert self.classification is not None
        return names_of_classes(self.data.class_names, self.classification.classes)

    def _recognise(self, result: StepResult) -> None:
        self._begun = True
        outputs, targets = result.outputs, result.targets
        if not self.supervised:
            return
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.is_floating_point()):
            return
        if not targets.is_floating_point() and not targets.is_complex():
            if outputs.dim() == 2 and targets.shape == outputs.shape[:1] and 0 < outputs.shape[1] <= MOST_CLASSES:
                if not may_be_classes(self.loss, outputs.shape[1], self.data.class_names, None):
                    return
                self.classification, self._given = Classification(outputs.shape[1]), None
        elif targets.is_floating_point() and outputs.shape == targets.shape and self.loss in LOGITS | PROBABILITIES:
            if outputs.dim() and len(outputs) == outputs.numel():
                self._recognise_two_classes(outputs, targets)
        elif targets.is_floating_point() and outputs.shape == targets.shape and self.loss not in NO_REGRESSION:
            self.regression = Regression(self._expected, outputs[0].numel()) if outputs.dim() and len(outputs) else None

    def _are_probabilities(self, outputs: Tensor) -> bool | None:
        """The same in all processes."""
        own = are_probabilities(outputs)
        yes, no = self.processes.all_reduce_sum([own is True, own is False])
        return not no if yes or no else None

    def _recognise_two_classes(self, outputs: Tensor, targets: Tensor) -> None:
        """One output and one target for each sample. All processes must come to the same result."""
        certain = bool(((targets == 0) | (targets == 1)).all())
        logits = getattr(outputs, "given_to_loss", False) or bool(((outputs < 0) | (outputs > 1)).any())
        uncertain, logits_there = self.processes.all_reduce_sum([not certain, logits])
        if not uncertain:
            self.classification, self._of_two = Classification(2), True
            self._given = self.loss in PROBABILITIES or not logits_there
