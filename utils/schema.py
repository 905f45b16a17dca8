"""The keys of a config, their types, ranges and defaults. An editor and the README show the docstrings here."""

import enum
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)
from pydantic.fields import FieldInfo

from utils.text import closest

KeyPath = tuple[str | int, ...]
"""The keys and list indices that lead from the root of a config to a value."""


class OnResume(enum.Enum):
    """What happens where the config of a resumed run differs from that of its checkpoint."""

    TAKES_EFFECT = "takes effect"
    BETWEEN_EPOCHS = "takes effect between epochs"
    """Refused in the middle of an epoch."""
    REFUSED = "refused"


T = TypeVar("T")
Changeable = Annotated[T, OnResume.TAKES_EFFECT]
BetweenEpochs = Annotated[T, OnResume.BETWEEN_EPOCHS]
Fixed = Annotated[T, OnResume.REFUSED]

MONITOR = r"^(min|max) \S+$"
NAME = r"^\w[\w.+-]*$"
IDENTIFIER = r"^[A-Za-z_]\w*$"
DEVICE = r"^(auto|[a-z]+(:\d+)?)$"
# what a message says instead of the pattern
PATTERNS = {
    MONITOR: '"min NAME" or "max NAME" of a logged value, as in "min val_loss", or null',
    NAME: "a plain name: letters, digits, and . _ + - after the first",
    IDENTIFIER: "a plain name: letters, digits and _",
    DEVICE: '"auto", "cpu", "cuda", "cuda:1", "mps" ...',
}
Fraction = Annotated[float, Field(ge=0, lt=1)]
Workers = Annotated[int, Field(ge=0, le=256)]  # more would only bring the machine down


Patterns = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
"""Shell patterns (*, ?, [ab]) of names of parameters."""


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Component(Section):
    """A component by name, with the arguments of its constructor. A bare string is short for ``{"type": NAME}``."""

    type: str
    """Its name, as ``python train.py --list`` prints it."""
    args: dict[str, Any] = Field(default_factory=dict)
    """The arguments of its constructor."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value


def name_and_args(entry: Any, *, default: str | None = None) -> tuple[str, dict[str, Any]] | None:
    """A component's name and arguments; None where the schema has a mistake to report. default: of a missing "type"."""
    name, args = (entry.get("type", default), entry.get("args", {})) if isinstance(entry, dict) else (entry, {})
    return (name, args) if isinstance(name, str) and isinstance(args, dict) else None


class GroupConfig(Section):
    """Parameters that an optimizer trains with other arguments, such as another learning rate."""

    params: Fixed[Patterns]
    """Patterns of their names, as in ["backbone.*", "*.bias"]. The first group that matches takes a parameter."""
    args: Changeable[dict[str, Any]] = Field(default_factory=dict)
    """Arguments of the optimizer that differ for them."""
    name: Changeable[Annotated[str, Field(pattern=NAME)] | None] = None
    """Its learning rate is logged as lr_NAME; null: a name made of the first pattern."""


class WeightsConfig(Section):
    """Weights that a new run starts from. A bare string is short for ``{"file": PATH}``."""

    file: Annotated[str, Field(min_length=1)]
    """A run folder, a checkpoint, a state dict (.pth, .pt) or a .safetensors file."""
    skip: list[str] = Field(default_factory=list)
    """Shell patterns (*, ?, [ab]) of the parameters and buffers that are not taken; all others must fit."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Prefixes of the file's names, and what they become, as in {"encoder.": "backbone."}."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> Any:
        return {"anyOf": [{"type": "string"}, handler(schema)]}


class ModelConfig(Component):
    """The network."""

    weights: WeightsConfig | None = None
    """What a new run starts from; null: the initial weights of the model's own code."""


class OptimizerConfig(Component):
    """An optimizer of ``torch.optim``, or your own."""

    type: Fixed[str]
    """Its name, as ``python train.py --list`` prints it."""
    args: Changeable[dict[str, Any]] = Field(default_factory=dict)
    """The arguments of its constructor."""
    params: Fixed[Patterns | None] = None
    """Patterns of the names of the parameters that it trains; null: all, or NAME.* of the optimizer NAME of several."""
    groups: Fixed[list[GroupConfig]] = Field(default_factory=list)
    """Parameters with other arguments; all other parameters take those of the optimizer."""
    clip_grad_norm: Changeable[PositiveFloat | None] = None
    """Largest norm of its gradients together; null: trainer.clip_grad_norm."""
    clip_grad_value: Changeable[PositiveFloat | None] = None
    """Largest absolute value of each of its gradients; null: trainer.clip_grad_value."""


def are_several(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value of one of SEVERAL_BY_NAME is an object of components by name, and not a component."""
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
"""The keys whose value may be several components by name."""
ONE, SEVERAL = "<one>", "<several>"  # pydantic puts them into the paths of its errors
OneOrSeveral = Annotated[
    Annotated[T, Tag(ONE)] | Annotated[dict[Annotated[str, Field(pattern=IDENTIFIER)], T], Tag(SEVERAL)],
    Discriminator(lambda value: SEVERAL if are_several(value) else ONE),
]
"""A component, or several by name."""


class LossConfig(Component):
    """A loss, by name."""

    weight: float = 1.0
    """Its factor in the sum of several losses."""


class MetricConfig(Component):
    """A metric, by name."""

    name: Annotated[str, Field(pattern=NAME)] | None = None
    """The name under which it is logged; null: its type."""


class SchedulerConfig(Component):
    """A learning rate schedule of ``torch.optim.lr_scheduler``, or your own."""

    interval: Literal["epoch", "step"] = "epoch"
    """Whether the schedule moves after each epoch or after each optimizer step."""


class FreezeConfig(Section):
    """Parameters that do not change in the first epochs. A module whose parameters are all frozen stays in evaluation
    mode, so that the running means of BatchNorm do not change either."""

    params: Patterns
    """Patterns of their names, as in ["backbone.*"]."""
    epochs: PositiveInt | None = None
    """For this many epochs from the start of the run; null: for the whole run."""


class EmaConfig(Section):
    """An exponential moving average of the weights. It is what is validated, kept as the best and tested."""

    decay: Changeable[Annotated[float, Field(gt=0, lt=1)]] = 0.999
    """After each optimizer step: average = decay * average + (1 - decay) * weights."""


class TrainerConfig(Section):
    """How long to train, what to watch and what to keep."""

    type: Fixed[str] = "Trainer"
    """The trainer class."""
    args: Changeable[dict[str, Any]] = Field(default_factory=dict)
    """Further arguments of your own trainer class."""
    epochs: Changeable[PositiveInt] = 10
    """Number of epochs of the whole run."""
    steps_per_epoch: BetweenEpochs[PositiveInt | None] = None
    """Optimizer steps in an epoch; null: one pass over the training data."""
    accumulate_steps: BetweenEpochs[PositiveInt] = 1
    """Batches whose gradients make one optimizer step."""
    clip_grad_norm: Changeable[PositiveFloat | None] = None
    """Largest norm of all gradients of an optimizer together; null: no clipping."""
    clip_grad_value: Changeable[PositiveFloat | None] = None
    """Largest absolute value of each gradient; null: no clipping."""
    freeze: Changeable[list[FreezeConfig]] = Field(default_factory=list)
    """Parameters that do not change, for some epochs or for good."""
    ema: Fixed[EmaConfig | None] = None
    """Average the weights, as in {"decay": 0.999}, and evaluate the averages; null: no average."""
    validate_every_steps: Changeable[PositiveInt | None] = None
    """Optimizer steps between two validations within an epoch, for TensorBoard alone; null: none."""
    monitor: Changeable[Annotated[str, Field(pattern=MONITOR)] | None] = None
    """What makes an epoch the best: "min NAME" or "max NAME" of a logged value, as in "min val_loss"; null: nothing."""
    early_stop: Changeable[PositiveInt | None] = None
    """Stop after this many epochs without an improvement of the monitored value; null: never."""
    save_dir: Fixed[Annotated[str, Field(min_length=1)]] = "saved"
    """Folder of all runs; a run is saved in save_dir/name/time."""
    save_period: Changeable[PositiveInt] = 1
    """Epochs between two checkpoints. The best and the last epoch are always saved."""
    save_every_steps: Changeable[PositiveInt | None] = None
    """Optimizer steps between two checkpoints within an epoch; null: none."""
    keep_last: Changeable[PositiveInt | None] = 3
    """Number of newest checkpoints to keep, beside the best; null: all."""
    checkpoint: Changeable[Literal["full", "sharded"]] = "full"
    """"full": one file, by the main process; "sharded": weights and optimizer state in a folder beside it, by all."""
    log_every_steps: Changeable[PositiveInt] = 50
    """Optimizer steps between two points of the training curves."""
    writers: Changeable[list[Component]] = Field(default_factory=lambda: [Component(type="tensorboard")])
    """Where curves, pictures and texts are written, beside metrics.jsonl: "tensorboard", "csv", "mlflow", "wandb", or
    your own."""
    tensorboard: Changeable[bool | None] = None
    """Whether TensorBoard's event files are written, whatever writers says; null: as writers says."""
    pictures_every: Changeable[NonNegativeInt | None] = None
    """Epochs between pictures of what the validation got wrong, for TensorBoard; null: at the end; 0: no pictures."""
    profile_steps: Changeable[Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None] = None
    """First and last optimizer step to profile, as in [10, 20]; null: none."""
    verbosity: Changeable[Annotated[int, Field(ge=0, le=2)]] = 2  # Literal[0, 1, 2] would take true for 1
    """Console: 0 warnings only, 1 a line an epoch, 2 also a progress bar (lines in a file) within it."""

    @property
    def writes_tensorboard(self) -> bool:
        if self.tensorboard is not None:
            return self.tensorboard
        return any(writer.type == "tensorboard" for writer in self.writers)


class RuntimeConfig(Section):
    """Where and in which arithmetic to compute."""

    device: Changeable[Annotated[str, Field(pattern=DEVICE)]] = "auto"
    """"auto" (an accelerator if there is one), "cpu", "cuda", "cuda:1", "mps" ..."""
    precision: Changeable[Literal["fp32", "bf16", "fp16"]] = "fp32"
    """Arithmetic of forward and backward pass; weights stay in fp32. fp16 scales the loss."""
    compile: Changeable[bool | Literal["reduce-overhead", "max-autotune"]] = False
    """Compile the model with torch.compile: slow to start, often faster after that. A text is its mode: with
    "reduce-overhead" an NVIDIA GPU runs a step's kernels as one CUDA graph, where starting them takes longer than they
    do."""
    strategy: Changeable[Literal["ddp", "fsdp"]] = "ddp"
    """With several processes (torchrun): "ddp" keeps the whole model in each, "fsdp" a part of it."""
    unused_parameters: Changeable[bool] = False
    """With "ddp": look at each step for parameters that took no part in the loss, which costs time."""
    timeout: Changeable[PositiveFloat] = 600.0
    """Seconds that a process waits for another one before the run gives up."""


class Config(Section):
    """One experiment."""

    schema_path: Changeable[str | None] = Field(default=None, alias="$schema")
    """The JSON schema that lets an editor complete and check this file."""
    variables: Changeable[dict[str, Any] | None] = None
    """Values by name: a string "${NAME}" anywhere in the config takes one. A run's own config.json has the values."""
    name: Fixed[Annotated[str, Field(pattern=NAME, max_length=100)]]
    """Name of the experiment and of its folder under trainer.save_dir."""
    seed: Fixed[Annotated[NonNegativeInt, Field(lt=2**31)]] = 0
    """All randomness follows from this number: initial weights, order, augmentation, dropout."""
    data_loader: Fixed[Component]
    """The data set."""
    model: Fixed[ModelConfig]
    """The network."""
    validation: Fixed[OneOrSeveral[Component] | None] = None
    """Another data set to validate on: what its loader holds out, or else its test data. Or several by name: the values
    of "day" are val_day_loss and so on, and val_loss is over all. null: what data_loader holds out."""
    loss: Fixed[OneOrSeveral[LossConfig] | None] = None
    """What is minimised: a function or class of model/loss.py, or a loss of torch.nn; or several by name, of which the
    weighted sum is minimised and each is logged. null: the trainer has a loss of its own, or takes the model's."""
    metrics: Changeable[list[MetricConfig]] = Field(default_factory=list)
    """What is measured: functions of model/metric.py, or classes of torchmetrics."""
    optimizer: Fixed[OneOrSeveral[OptimizerConfig]]
    """An optimizer of torch.optim, or your own; or several by name, each of which the trainer steps by itself."""
    lr_scheduler: Changeable[OneOrSeveral[SchedulerConfig] | None] = None
    """The learning rate's schedule; null: constant. With several optimizers: one for each, or some by their names."""
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    """The training loop."""
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    """The device and its arithmetic."""

    @property
    def losses(self) -> dict[str, LossConfig]:
        """By name; the name of a single one is ""."""
        if self.loss is None:
            return {}
        return self.loss if isinstance(self.loss, dict) else {"": self.loss}

    @property
    def validations(self) -> dict[str, Component]:
        """The data sets of their own to validate on, by name; the name of a single one is ""."""
        if self.validation is None:
            return {}
        return self.validation if isinstance(self.validation, dict) else {"": self.validation}

    @property
    def optimizers(self) -> dict[str, OptimizerConfig]:
        """By name; the name of a single one is ""."""
        return self.optimizer if isinstance(self.optimizer, dict) else {"": self.optimizer}

    def scheduler_of(self, optimizer: str) -> SchedulerConfig | None:
        """That of the optimizer of a name."""
        return self.lr_scheduler.get(optimizer) if isinstance(self.lr_scheduler, dict) else self.lr_scheduler

    def schedulers(self) -> dict[KeyPath, SchedulerConfig]:
        """By their paths in the config."""
        if isinstance(self.lr_scheduler, dict):
            return {("lr_scheduler", name): scheduler for name, scheduler in self.lr_scheduler.items()}
        return {("lr_scheduler",): self.lr_scheduler} if self.lr_scheduler else {}


def keys_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of a section as a config writes them."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def section_at(path: KeyPath) -> type[BaseModel] | None:
    """The section that describes the object at a path of the config; None for arguments of components."""
    kinds = (kind for kind in alternatives(_annotation_at(path)) if isinstance(kind, type))
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)


def field_at(path: KeyPath) -> FieldInfo | None:
    """The key of the schema at a path of the config; None for an argument, an element of a list or a name."""
    return _field(_annotation_at(path[:-1]), path[-1])


def _field(annotation: Any, key: str | int) -> FieldInfo | None:
    sections = (kind for kind in alternatives(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel))
    return next((keys_of(section)[key] for section in sections if key in keys_of(section)), None)


def _annotation_at(path: KeyPath) -> Any:
    annotation: Any = Config
    for key in path:
        if field := _field(annotation, key):
            annotation = field.annotation
            continue
        elements = list if isinstance(key, int) else dict
        inside = [get_args(kind)[-1] for kind in alternatives(annotation) if get_origin(kind) is elements]
        annotation = inside[0] if inside else None
    return annotation


def alternatives(annotation: Any) -> Iterator[Any]:
    """The members of a union, without what ``Annotated`` says of them; else the annotation alone."""
    if get_origin(annotation) is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from alternatives(member)
    else:
        yield annotation


def members(annotation: Any) -> Iterator[type]:
    """The classes in an annotation."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for inner in get_args(annotation):
        yield from members(inner)
