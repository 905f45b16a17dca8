"""What a trainer of yours defines, and what it may call."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

from torch import Tensor

from base.experiment import Experiment
from base.metric import StepResult
from base.training.optimizing import SeveralOptimizers
from base.training.progress import Progress
from logger.writers import Writer, Writers
from utils.errors import ConfigError
from utils.schema import TrainerConfig


class TrainerInterface(ABC):
    """The part of ``BaseTrainer`` that a subclass defines and calls.

    model: with several processes, what DDP or FSDP has made of it. criterion: the loss, (outputs, targets) -> shape ().
    """

    supervised: ClassVar[bool] = True
    """Whether outputs are compared with targets. False (a GAN, an autoencoder): the config may have no loss, and
    --check, report and pictures do not take the outputs for a classifier's."""
    logs: ClassVar[Sequence[str]] = ()
    """Names of further values that a step may log, by ``StepResult.log``."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        self.experiment = experiment
        self.settings = settings
        self.model = experiment.model
        self.criterion = experiment.criterion
        self.runtime = experiment.runtime
        self.calls_loss = True
        """Whether the first batch has called ``criterion``."""
        self.progress = Progress()
        self._shown: Writer = Writers({})  # where pictures and texts go: nowhere in a test or a check
        self.several_optimizers: SeveralOptimizers | None = None
        """Of several optimizers."""
        self.waits_for_count = False
        """Whether ``backward`` waits for ``train_step`` to return, whose result says how much its gradients weigh."""
        self._waiting: list[Tensor] = []

    @abstractmethod
    def train_step(self, batch: Any) -> StepResult:
        """Forward and backward pass of one batch. Gradients are added to those that are there."""

    @abstractmethod
    def eval_step(self, batch: Any) -> StepResult:
        """Forward pass of one batch, without gradients."""

    def predict_step(self, inputs: Any) -> Any:
        """The outputs for a batch of inputs without targets, which predict.py writes. By default the model's.

        inputs: what the data loader's ``prepare_input`` gives, stacked.
        """
        with self.autocast():
            return self.model(inputs)

    def begin_epoch(self, epoch: int) -> None:  # noqa: B027  (may be left as it is)
        """Called before the training steps of an epoch, also before those that are left where a run resumes within it.

        It may be called twice for one epoch. The first epoch is 1.

        To change what depends on the epoch, such as the weight of a loss. Random numbers that it draws follow from the
        seed and the epoch, and leave those of the training as they are.
        """

    def picture(self, tag: str, images: Tensor) -> None:
        """Show images, such as samples of a generator, in TensorBoard: as the model has them, (B, C, H, W)."""
        pictures = self.experiment.data.pictures(images.detach().cpu())
        if pictures is None:
            raise ConfigError(f"picture {tag!r}: expected images of shape (B, C, H, W), got {tuple(images.shape)}")
        self._shown.images(self.progress.steps, tag, pictures)

    def text(self, tag: str, markdown: str) -> None:
        """Show a text, such as what a language model has written, in TensorBoard."""
        self._shown.text(self.progress.steps, tag, markdown)

    @contextmanager
    def showing(self, writer: Writer) -> Iterator[None]:
        """Inside, pictures and texts go to this writer: in training and validation, not where a step is only tried."""
        before, self._shown = self._shown, writer
        try:
            yield
        finally:
            self._shown = before

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the config, for the forward pass and the loss."""
        return self.runtime.autocast()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss of shape (). Its share of the optimizer step and the fp16 scale are applied.

        With accumulation or several processes they are there when ``train_step`` has returned, since the share depends
        on ``StepResult.count``.
        """
        if self.several_optimizers is not None:
            self.several_optimizers.backward(loss)
        elif self.waits_for_count:
            self._waiting.append(loss)
        else:
            self.runtime.backward(loss)

    def optimizing(self, name: str) -> AbstractContextManager[None]:
        """Let one of several optimizers take its step by the losses that are given to ``backward`` inside:

            with self.optimizing("discriminator"):
                self.backward(loss)

        The parameters of the others get no gradient there. With accumulation the step comes with the last micro-batch.
        """
        if self.several_optimizers is None:
            raise ConfigError(
                f"the trainer steps the optimizer {name!r}, and the config has a single one, without a name; give each "
                f'by its name: "optimizer": {{"{name}": {{"type": ..., "args": ...}}, ...}}'
            )
        return self.several_optimizers.optimizing(name)

    def finish_backward(self, weight: Tensor | float) -> None:
        """Run the backward passes that wait. weight: the share of the micro-batch in its optimizer step."""
        waiting, self._waiting = self._waiting, []
        if waiting:  # as one: DDP takes a single backward pass for each forward pass
            self.runtime.backward(sum(waiting[1:], waiting[0]), weight)
