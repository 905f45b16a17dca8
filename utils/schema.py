"""The keys of a config, with types, ranges and defaults. Editors and the README show these docstrings."""

import enum
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeGuard, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from utils.text import closest

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the root of a config to a value."""


def is_below(path: KeyPath, *others: KeyPath) -> bool:
    """Whether a path equals one of the others or lies below it."""
    return any(path[: len(other)] == other for other in others)


class OnResume(enum.Enum):
    """What happens when a resumed run's config differs from its checkpoint's."""

    TAKES_EFFECT = "takes effect"
    BETWEEN_EPOCHS = "takes effect between epochs"
    """Refused in the middle of an epoch."""
    REFUSED = "refused"


class Command(enum.Flag):
    """The commands that read a key. As annotated; by default, those that read the key above it."""

    TRAIN = enum.auto()
    TEST = enum.auto()
    PREDICT = enum.auto()
    EXPORT = enum.auto()


T = TypeVar("T")
TrainingOnly = Annotated[T, Command.TRAIN]
TrainingAndTest = Annotated[T, Command.TRAIN | Command.TEST]
NotExport = Annotated[T, ~Command.EXPORT]
AllCommands = Annotated[T, ~Command(0)]
Changeable = Annotated[T, OnResume.TAKES_EFFECT]
BetweenEpochs = Annotated[T, OnResume.BETWEEN_EPOCHS]
Fixed = Annotated[T, OnResume.REFUSED]

MONITOR = r"^(min|max) \S+$"
NAME = r"^\w[\w.+-]*$"
IDENTIFIER = r"^[A-Za-z_]\w*$"
DEVICE = r"^(auto|[a-z]+(:\d+)?)$"
PATTERNS = {  # what error messages say instead
    MONITOR: '"min NAME" or "max NAME" of a logged value, as in "min val_loss", or null',
    NAME: "a plain name: letters, digits, and . _ + - after the first",
    IDENTIFIER: "a plain name: letters, digits and _",
    DEVICE: '"auto", "cpu", "cuda", "cuda:1", "mps" ...',
}
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat32 = Annotated[float, Field(gt=0, le=3.4e38)]
Workers = Annotated[int, Field(ge=0, le=256)]  # more would only overload the machine

Patterns = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
"""Shell patterns (*, ?, [ab]) for parameter names."""


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Component(Section):
    """A component by name, with its constructor arguments. A bare string is short for ``{"type": NAME}``."""

    type: str
    """Its name, as listed by ``python train.py --list``."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Constructor arguments."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value


def name_and_args(entry: Any, *, default: str | None = None) -> tuple[str, dict[str, Any]] | None:
    """A component's name and arguments; None if they are malformed, which the schema reports.

    default: the name if "type" is missing.
    """
    name, args = (entry.get("type", default), entry.get("args", {})) if isinstance(entry, dict) else (entry, {})
    return (name, args) if isinstance(name, str) and isinstance(args, dict) else None


class GroupConfig(Section):
    """A parameter group: parameters trained with different optimizer arguments, such as another learning rate."""

    params: Fixed[Patterns]
    """Patterns for their names, as in ["backbone.*", "*.bias"]. A parameter belongs to the first group that matches."""
    args: Changeable[dict[str, Any]] = Field(default_factory=dict)
    """Optimizer arguments that differ for this group."""
    name: Changeable[Annotated[str, Field(pattern=NAME)] | None] = None
    """Its learning rate is logged as lr_NAME; null: a name derived from the first pattern."""


class WeightsConfig(Section):
    """Initial weights of a new run. A bare string is short for ``{"file": PATH}``."""

    file: Annotated[str, Field(min_length=1)]
    """A run folder, a checkpoint, a state dict (.pth, .pt), a .safetensors file, or the .index.json of several."""
    skip: list[str] = Field(default_factory=list)
    """Shell patterns (*, ?, [ab]) for parameters and buffers not to load; all others must match."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Prefixes of names in the file and their replacements, as in {"encoder.": "backbone."}; "" adds one."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> Any:
        return {"anyOf": [{"type": "string"}, handler(schema)]}


class ModelConfig(Component):
    """The network."""

    weights: TrainingOnly[WeightsConfig | None] = None
    """Initial weights of a new run; null: those set by the model's own code."""


class OptimizerConfig(Component):
    """An optimizer of ``torch.optim``, or your own."""

    type: Fixed[str]
    """Its name, as listed by ``python train.py --list``."""
    args: Changeable[dict[str, Any]] = Field(default_factory=dict)
    """Constructor arguments."""
    params: Fixed[Patterns | None] = None
    """Patterns for the names of the parameters it trains; null: all, or NAME.* with several optimizers. ["*"]: all that
    no other optimizer trains."""
    groups: Fixed[list[GroupConfig]] = Field(default_factory=list)
    """Parameter groups with different arguments; all other parameters use the optimizer's."""
    clip_grad_norm: Changeable[PositiveFloat | None] = None
    """Maximum total norm of its gradients; null: trainer.clip_grad_norm."""
    clip_grad_value: Changeable[PositiveFloat32 | None] = None
    """Maximum absolute value of each of its gradients; null: trainer.clip_grad_value."""


def are_several(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether the value of a key in SEVERAL_BY_NAME maps names to components, rather than being one component."""
    if not isinstance(value, dict) or "type" in value:
        return False
    kinds = {type(each) for each in value.values()}
    if len(value) > 1 and str in kinds and kinds <= {str, dict} and "args" not in value:
        return not any(closest(name, ("type", "args")) for name in value)  # else a misspelt key
    components = (
        isinstance(each, Component) or (isinstance(each, dict) and "type" in each)
        for name, each in value.items()
        if name != "args"
    )
    return any(components)


SEVERAL_BY_NAME = ("validation", "loss", "optimizer", "lr_scheduler")
"""Keys that accept several components by name."""
ONE, SEVERAL = "<one>", "<several>"  # appear in the paths of pydantic's errors
# "args" would be taken for the arguments of a single one; "" is refused by the pattern
ComponentName = Annotated[str, Field(pattern=IDENTIFIER), BeforeValidator(lambda name: "" if name == "args" else name)]
OneOrSeveral = Annotated[
    Annotated[T, Tag(ONE)] | Annotated[dict[ComponentName, T], Tag(SEVERAL)],
    Discriminator(lambda value: SEVERAL if are_several(value) else ONE),
]
"""A component, or several by name."""


def by_name(given: T | dict[str, T] | None) -> dict[str, T]:
    """The components of a key in SEVERAL_BY_NAME; a single one has the name ""."""
    if given is None:
        return {}
    return given if isinstance(given, dict) else {"": given}


def component_path(key: str, name: str) -> KeyPath:
    """The config path of one of those components."""
    return (key, name) if name else (key,)


class LossConfig(Component):
    """A loss, by name."""

    weight: float = 1.0
    """Its factor in the sum of several losses."""


class MetricConfig(Component):
    """A metric, by name."""

    name: Annotated[str, Field(pattern=NAME)] | None = None
    """The name under which it is logged; null: its type, after its entry if it has one, as in "day_accuracy"."""
    entry: Annotated[str, Field(min_length=1)] | None = None
    """The entry of the outputs and targets that it gets, if they are dicts; null: all of them."""
    training: bool = True
    """Whether it is also computed in training; false: only in validation and tests, if it is costly, or if training has
    no such outputs."""

    @property
    def logged_name(self) -> str:
        return self.name or (f"{self.entry}_{self.type}" if self.entry else self.type)


class SchedulerConfig(Component):
    """A learning rate schedule of ``torch.optim.lr_scheduler``, or your own."""

    interval: Literal["epoch", "step"] = "epoch"
    """Whether the schedule advances after each epoch or after each optimizer step."""


class FreezeConfig(Section):
    """Parameters that are not trained in the first epochs. A module whose parameters are all frozen stays in evaluation
    mode, so that BatchNorm's running statistics do not change either."""

    params: Patterns
    """Patterns for their names, as in ["backbone.*"]."""
    epochs: PositiveInt | None = None
    """Number of epochs from the start of the run; null: the whole run."""


class EmaConfig(Section):
    """An exponential moving average of the weights, which is validated, saved as the best and tested in their place."""

    decay: TrainingOnly[Changeable[Annotated[float, Field(gt=0, lt=1)]]] = 0.999
    """After each optimizer step: average = decay * average + (1 - decay) * weights."""


class TrainerConfig(Section):
    """How long to train, what to monitor and what to save."""

    type: AllCommands[Fixed[str]] = "Trainer"
    """The trainer class."""
    args: AllCommands[Changeable[dict[str, Any]]] = Field(default_factory=dict)
    """Additional arguments of your own trainer class."""
    epochs: Changeable[PositiveInt] = 10
    """Number of epochs of the whole run."""
    steps_per_epoch: BetweenEpochs[PositiveInt | None] = None
    """Optimizer steps per epoch; null: one pass over the training data."""
    accumulate_steps: BetweenEpochs[PositiveInt] = 1
    """Batches per optimizer step; their gradients are accumulated."""
    clip_grad_norm: Changeable[PositiveFloat | None] = None
    """Maximum total norm of each optimizer's gradients; null: no clipping."""
    clip_grad_value: Changeable[PositiveFloat32 | None] = None
    """Maximum absolute value of each gradient, before clip_grad_norm; null: no clipping."""
    freeze: Changeable[list[FreezeConfig]] = Field(default_factory=list)
    """Parameters to freeze, for some epochs or for the whole run."""
    ema: AllCommands[Fixed[EmaConfig | None]] = None
    """Keep an average of the weights, as in {"decay": 0.999}, and evaluate it; null: no average."""
    validate_every_steps: Changeable[PositiveInt | None] = None
    """Optimizer steps between validations within an epoch, for the writers only, not metrics.jsonl; null: none."""
    monitor: Changeable[Annotated[str, Field(pattern=MONITOR)] | None] = None
    """Which epoch counts as the best: "min NAME" or "max NAME" of a logged value, as in "min val_loss"; null: none."""
    early_stop: Changeable[PositiveInt | None] = None
    """Stop after this many epochs without an improvement of the monitored value; null: never."""
    save_dir: TrainingAndTest[Fixed[Annotated[str, Field(min_length=1)]]] = "saved"
    """Folder of all runs; a run is saved in save_dir/name/time."""
    save_period: Changeable[PositiveInt] = 1
    """Epochs between checkpoints. The best and the last epoch are always saved."""
    save_every_steps: Changeable[PositiveInt | None] = None
    """Optimizer steps between checkpoints within an epoch; null: none."""
    keep_last: Changeable[PositiveInt | None] = 3
    """Number of newest checkpoints to keep, besides the best; null: all."""
    checkpoint: Changeable[Literal["full", "sharded"]] = "full"
    """"full": the main process writes one file; "sharded": all processes write weights and optimizer state to a folder
    next to it."""
    log_every_steps: Changeable[PositiveInt] = 50
    """Optimizer steps between points of the training curves."""
    writers: TrainingAndTest[Changeable[list[Component]]] = Field(
        default_factory=lambda: [Component(type="tensorboard")]
    )
    """Where curves, pictures and texts are written, besides metrics.jsonl: "tensorboard", "csv", "mlflow", "wandb", or
    your own."""
    tensorboard: TrainingAndTest[Changeable[bool | None]] = None
    """Whether to write TensorBoard event files; overrides writers. null: decided by writers."""
    pictures_every: Changeable[NonNegativeInt | None] = None
    """Epochs between pictures of validation mistakes in TensorBoard; null: only at the end; 0: no pictures."""
    profile_steps: Changeable[Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None] = None
    """First and last optimizer step to profile, as in [10, 20]; null: none."""
    # not Literal[0, 1, 2], which would take true for 1
    verbosity: TrainingAndTest[Changeable[Annotated[int, Field(ge=0, le=2)]]] = 2
    """Console output: 0 warnings only, 1 a line per epoch, 2 also a progress bar (lines in a file) within it."""

    @property
    def monitored_name(self) -> str:
        """The name of the monitored value; "" if nothing is monitored."""
        return (self.monitor or "").partition(" ")[2]

    @property
    def lower_is_better(self) -> bool:
        return (self.monitor or "min").startswith("min")

    @property
    def writes_tensorboard(self) -> bool:
        if self.tensorboard is not None:
            return self.tensorboard
        return any(writer.type == "tensorboard" for writer in self.writers)


class RuntimeConfig(Section):
    """Device, precision, compilation and processes."""

    device: Changeable[Annotated[str, Field(pattern=DEVICE)]] = "auto"
    """"auto" (an accelerator if there is one), "cpu", "cuda", "cuda:1", "mps" ..."""
    precision: Changeable[Literal["fp32", "bf16", "fp16"]] = "fp32"
    """Precision of the forward and backward pass; weights stay in fp32. fp16 scales the loss."""
    compile: Changeable[bool | Literal["reduce-overhead", "max-autotune"]] = False
    """Compile the model with torch.compile: slow to start, often faster after that. A string is the mode:
    "reduce-overhead" runs a step's kernels as a CUDA graph, for models limited by kernel launches on an NVIDIA GPU."""
    deterministic: TrainingAndTest[Changeable[bool | Literal["warn"]]] = "warn"
    """Kernels whose results are the same in each run, for an exact resume: "warn" uses them where torch has them, and
    warns about other operations; true fails instead, and includes attention; false: the fastest kernels."""
    strategy: TrainingOnly[Changeable[Literal["ddp", "fsdp"]]] = "ddp"
    """With several processes (torchrun): "ddp" keeps the whole model in each, "fsdp" a shard of it."""
    unused_parameters: TrainingOnly[Changeable[bool]] = False
    """Find parameters that did not contribute to the loss, at each step, which costs time. With "fsdp", these must be
    the same in all processes."""
    timeout: TrainingAndTest[Changeable[PositiveFloat]] = 600.0
    """Seconds that a process waits for the others before the run fails."""


class Config(Section):
    """One experiment."""

    schema_path: TrainingOnly[Changeable[str | None]] = Field(default=None, alias="$schema")
    """JSON schema with which an editor completes and checks this file."""
    variables: Changeable[dict[str, Any] | None] = None
    """Values by name: "${NAME}" anywhere in the config is replaced by one. The config.json of a run has the values."""
    name: Annotated[Fixed[Annotated[str, Field(pattern=NAME, max_length=100)]], ~Command.PREDICT]
    """Name of the experiment and of its folder under trainer.save_dir."""
    seed: Fixed[Annotated[NonNegativeInt, Field(lt=2**31)]] = 0
    """All randomness follows from this number: initial weights, order, augmentation, dropout."""
    data_loader: Fixed[Component]
    """The data set."""
    model: Fixed[ModelConfig]
    """The network."""
    validation: TrainingOnly[Fixed[OneOrSeveral[Component] | None]] = None
    """A separate validation set: the held-out part of this loader's data, or else its test data. Several by name, such
    as "day", are logged as val_day_loss and so on, with val_loss over all. null: the held-out part of data_loader."""
    loss: TrainingAndTest[Fixed[OneOrSeveral[LossConfig] | None]] = None
    """The loss to minimise: a function or class in model/loss.py, or a loss of torch.nn; with several by name, their
    weighted sum is minimised, and each is logged. null: the trainer has its own loss, or uses the model's."""
    metrics: TrainingAndTest[Changeable[list[MetricConfig]]] = Field(default_factory=list)
    """Functions in model/metric.py, or classes of torchmetrics."""
    optimizer: TrainingOnly[Fixed[OneOrSeveral[OptimizerConfig]]]
    """An optimizer of torch.optim, or your own; or several by name, each for its own parameters."""
    lr_scheduler: TrainingOnly[Changeable[OneOrSeveral[SchedulerConfig] | None]] = None
    """Learning rate schedule; null: constant. With several optimizers: one for all, or one for each name given."""
    trainer: TrainingOnly[TrainerConfig] = Field(default_factory=TrainerConfig)
    """The training loop."""
    runtime: NotExport[RuntimeConfig] = Field(default_factory=RuntimeConfig)
    """Device, precision, compilation and processes."""

    @property
    def losses(self) -> dict[str, LossConfig]:
        """Losses by name; a single one has the name ""."""
        return by_name(self.loss)

    @property
    def validations(self) -> dict[str, Component]:
        """Loaders of separate validation sets by name; a single one has the name ""."""
        return by_name(self.validation)

    @property
    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Optimizers by name; a single one has the name ""."""
        return by_name(self.optimizer)

    def scheduler_of(self, optimizer: str) -> tuple[KeyPath, SchedulerConfig | None]:
        """The config path of an optimizer's scheduler, and the scheduler."""
        if isinstance(self.lr_scheduler, dict):
            return ("lr_scheduler", optimizer), self.lr_scheduler.get(optimizer)
        return ("lr_scheduler",), self.lr_scheduler

    def schedulers(self) -> dict[KeyPath, SchedulerConfig]:
        """Schedulers by their config paths."""
        return {component_path("lr_scheduler", name): each for name, each in by_name(self.lr_scheduler).items()}


def validation_names(name: str, data_sets: Iterable[str]) -> list[str]:
    """The names under which a value is logged in validation: over all data sets, and for each that has a name."""
    return [f"val_{name}", *(f"val_{data_set}_{name}" for data_set in data_sets if data_set)]
