"""What your own trainer defines, and what it can call besides ``backward`` and ``optimizing``."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from torch import Tensor

from base.data.pictures import Shown
from base.experiment import Experiment, Outputs, Training
from base.metric import StepResult
from base.training.metrics import Metrics
from base.training.observer import Observer
from base.training.progress import Progress
from base.training.saved_data import SavedData
from utils.schema import TrainerConfig


class TrainerInterface(ABC):
    """The part of ``BaseTrainer`` that subclasses define and call.

    model: with FSDP, sharded over the processes. criterion: the loss, (outputs, targets) -> shape ().
    """

    supervised: ClassVar[bool] = True
    """Whether outputs are compared with targets. If False (a GAN, an autoencoder), the config needs no loss, and
    --check, the report and pictures do not treat the outputs as a classifier's."""
    logs: ClassVar[Sequence[str]] = ()
    """Names of additional values that a step may log, by ``StepResult.log``, and that ``validate`` may return."""
    train_metrics: Metrics
    training: Training
    """The data and optimizers. Set, as the following, when training begins, and not for a test."""
    outputs: Outputs
    saved_data: SavedData

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        if not isinstance(experiment, Experiment):
            raise TypeError("a trainer's constructor calls super().__init__(experiment, settings), in this order")
        self.experiment = experiment
        self.settings = settings
        self.model = experiment.model
        self.criterion = experiment.criterion
        self.runtime = experiment.runtime
        self.progress = Progress()
        self.shown = Shown(experiment.data)
        """Where pictures and texts go."""
        self.observer = Observer()  # that of the outputs, once training begins
        self.has_started = False
        """Whether this process has taken a step, or saved."""
        self.called_backward = False
        """Whether ``backward`` has been called."""
        self.warned_of_counts = False
        """Whether a warning said that losses by name are averaged over different numbers."""

    @abstractmethod
    def train_step(self, batch: Any) -> StepResult:
        """Forward and backward pass of one batch. Adds to the existing gradients."""

    @abstractmethod
    def eval_step(self, batch: Any) -> StepResult:
        """Forward pass of one batch, without gradients."""

    def predict_step(self, inputs: Any) -> Any:
        """The outputs for a batch of inputs without targets, as written by predict.py. By default the model's outputs.

        inputs: stacked results of the data loader's ``prepare_input``.
        """
        with self.autocast():
            return self.model(inputs)

    def begin_epoch(self, epoch: int) -> None:  # noqa: B027  (optional)
        """Called before the training steps of an epoch; also if a run resumes within it, and before a test, prediction
        or export, with the epoch of the checkpoint. There, what it does to the weights and to the parts of ``stateful``
        is undone: they stay as they were saved. The first epoch is 1.

        Use it to change what depends on the epoch, such as the weight of a loss. Random numbers drawn here follow from
        the seed and the epoch, and do not affect the random numbers of training. A module put into evaluation mode here
        stays in it for the epoch, unless it is the whole model.
        """

    @abstractmethod
    def stateful(self) -> dict[str, Any]:
        """Every part that has a state, by its name in a checkpoint. Subclasses may add their own.

        Parts created in the constructor are restored for tests too, as averaged weights must be.
        """

    def picture(self, tag: str, images: Tensor) -> None:
        """Show images, such as samples of a generator, in TensorBoard in training: in the model's form, (B, C, H, W).

        Only the first call for a tag at a step counts: if ``eval_step`` makes it for each batch, the first batch's.
        """
        self.shown.picture(self.progress.steps, tag, images)

    def text(self, tag: str, markdown: str) -> None:
        """Show a text, such as a language model's output, in TensorBoard."""
        self.shown.text(self.progress.steps, tag, markdown)

    def autocast(self) -> AbstractContextManager[Any]:
        """The configured precision, for the forward pass and the loss."""
        return self.runtime.autocast()
