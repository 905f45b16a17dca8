"""What your own trainer has and defines, and what it can call besides ``backward`` and ``optimizing``."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from torch import Tensor

from base.data.batches import BatchRange
from base.data.pictures import Shown
from base.experiment import Experiment, Outputs, Training
from base.metric import StepResult
from base.training.averaging import AveragedWeights
from base.training.metrics import StepLoss
from base.training.observer import Observer
from base.training.optimizing import SeveralOptimizers
from base.training.progress import Progress
from base.training.saved_data import SavedData
from base.training.training_log import TrainingLog
from utils.schema import TrainerConfig


class TrainerInterface(ABC):
    """The attributes of ``BaseTrainer``, and the part of it that subclasses define and call.

    model: with FSDP, sharded over the processes. criterion: the loss, (outputs, targets) -> shape ().
    """

    supervised: ClassVar[bool] = True
    """Whether outputs are compared with targets. If False (a GAN, an autoencoder), the config needs no loss, and
    --check, the report and pictures do not treat the outputs as a classifier's."""
    logs: ClassVar[Sequence[str]] = ()
    """Names of additional values that a step may log, by ``StepResult.log``, and that ``validate`` may return."""
    training: Training
    """The data and optimizers. Set, as the following, when training begins, and not for a test."""
    outputs: Outputs
    saved_data: SavedData
    log: TrainingLog
    SET_BY_BEGIN = ("training", "outputs", "saved_data", "log")

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        if not isinstance(experiment, Experiment):
            raise TypeError("a trainer's constructor calls super().__init__(experiment, settings), in this order")
        self.experiment = experiment
        self.settings = settings
        self.model = experiment.model
        self.criterion = experiment.criterion
        self.runtime = experiment.runtime
        self.console = experiment.console
        strategy, ema = self.runtime.strategy, settings.ema
        self.averaged_weights = AveragedWeights(self.model, ema.decay, strategy) if ema else None
        self.train_metrics = experiment.make_metrics(training=True)
        self.progress = Progress()
        self.shown = Shown(experiment.data)
        """Where pictures and texts go."""
        self.observer = Observer()  # that of the outputs, once training begins
        self.has_started = False
        """Whether this process has taken a step, or saved."""
        self.several_optimizers: SeveralOptimizers | None = None
        self.open_loss: StepLoss | None = None
        """The accumulator for what ``backward`` gets; None outside of a step, where gradients have no weight."""
        self.gradient_norm: Tensor | None = None
        """Norm in the last optimizer step, before clipping, shape (); None if nothing is clipped."""
        self.called_backward = False
        """Whether ``backward`` has been called."""
        self.unchecked_losses: list[tuple[Tensor | float, Sequence[BatchRange]]] = []
        """This process's part of the loss of each step since ``check_losses``, by ``to_scalar``, with its batches."""
        self.warned_of_counts = False
        """Whether a warning said that losses by name are averaged over different numbers."""
        self._saved_progress: dict[str, Any] = {}
        """Progress in the newest checkpoint."""
        self._names_at_start: dict[str, set[str]] = {}
        """What each part of ``stateful`` had registered before the first step."""
        self.base_attributes = {name: type(value) for name, value in vars(self).items()}
        """The types of the attributes so far, which a subclass must not use for anything else."""

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
