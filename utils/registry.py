"""The components a config can name: a registry per kind, filled by decorators and by the public names of libraries.

    @MODELS.register
    class LeNet(BaseModel): ...

A config's ``"type"`` is looked up only here, so a config can never import or run arbitrary code.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, get_args

from pydantic import PositiveInt

from utils.arguments import annotations, parameters, takes_any_keyword
from utils.errors import UserError
from utils.extras import find_extra
from utils.paths import PROJECT
from utils.schema import KeyPath, TrainerConfig
from utils.schema_fields import field_at
from utils.streams import say_error
from utils.text import closest
from utils.user_code import format_error_with_source, in_project, where

T = TypeVar("T", bound=Callable[..., Any])
M = TypeVar("M")

# the users' folders, whose files register components
FOLDERS = ("data_loader", "model", "trainer")


@dataclass(eq=False)
class Registry:
    """The components of one kind, by name."""

    kind: str
    _: KW_ONLY
    library: str | None = None
    """A module whose classes can be named too. It is imported only if a name is not among our own: torch takes seconds,
    and torchmetrics alone 0.7 s."""
    base: str | None = None
    """The library's base class of these components; None: the library registers them when it is imported."""
    accepts: Callable[[Any], bool] = lambda _: True
    """Which of them to include."""
    passed: int = 0
    """Number of leading arguments that the project passes itself, such as the parameters of an optimizer."""
    never: tuple[str, ...] = ()
    """Arguments that a config must not give."""
    called_with: int = 0
    """Number of leading function arguments passed in each call, such as outputs and targets of a loss."""
    default: str | None = None
    """The component used if a config names none."""
    types: Mapping[str, Any] = field(default_factory=dict)
    """Of arguments of the library's components, in place of its annotations."""
    _own: dict[str, Callable[..., Any]] = field(default_factory=dict, init=False)
    _executions: dict[str, Any] = field(default_factory=dict, init=False)
    """Of the file of each of them: the module's __spec__, another object each time the file is executed."""

    def register(self, component: T) -> T:
        """Add a class or function under its own name. Raises UserError if the name is taken."""
        name = component.__name__
        taken = self._own.get(name, component)
        # a file that is reloaded, or a cell of a notebook that is run again, may replace its components
        execution = getattr(sys.modules.get(component.__module__), "__spec__", None)
        twice = execution and execution is self._executions.get(name) and "." not in component.__qualname__
        if taken.__module__ != component.__module__ or (twice and taken is not component):
            raise UserError(
                f"two {self.plural()} are called {name}:\n  {where(taken)}\n  {where(component)}\nRename one of them."
            )
        self._own[name] = component
        self._executions[name] = execution
        return component

    def unregister(self, name: str) -> None:
        """Remove a component added by ``register``, as in a test or a notebook. Raises KeyError if there is none."""
        del self._own[name]

    def get(self, name: str) -> Callable[..., Any] | None:
        # looked up again at the end: a library of ours registers its components on import
        return self._own.get(name) or self.from_library(name) or self._own.get(name)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """The component with a checked name."""
        component = self.get(name)
        assert component is not None, f"unknown {self.kind} {name}"
        return component

    def own(self) -> dict[str, Callable[..., Any]]:
        """The components this project registers, without the library's."""
        return dict(sorted(self._own.items()))

    def names(self) -> list[str]:
        """All names a config can give, ours first."""
        if not self.library:
            return sorted(self._own)
        library = self.import_library()
        public = getattr(library, "__all__", None) or dir(library)
        return [*sorted(self._own), *sorted(name for name in public if self.from_library(name))]

    def suggest(self, name: str, args: Mapping[str, Any] | None = None) -> str:
        """Advice about an unregistered name. args: those given in the config."""
        hints = find_extra("hints")
        if hints and (suggestion := hints.component_hint(self, name, args or {})):
            return str(suggestion)
        if self.library and self.import_library() is None:
            return f"expected one of: {', '.join(self._own)}; {self.library.replace('.', '/')} is not in this project"
        last = name.rpartition(".")[2]  # of torch.optim.SGD
        close = last if self.get(last) else closest(name, self.names())
        if close:
            return f'did you mean "{close}"?'
        rest = f" and those of {self.library}; python train.py --list shows all" if self._own and self.library else ""
        return f"expected one of: {', '.join(self._own or self.names())}{rest}"

    def plural(self) -> str:
        return f"{self.kind}es" if self.kind.endswith("s") else f"{self.kind}s"

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """The arguments a config can give to a registered component, by name."""
        component = self.get(name)
        if component is None:
            return {}
        known = parameters(component)
        if name not in self._own:
            known |= {key: known[key].replace(annotation=self.types[key]) for key in known.keys() & self.types.keys()}
        # ChainedScheduler has its optimizer after its schedulers
        leading = [key for key, each in known.items() if each.kind is not each.KEYWORD_ONLY and key != "schedulers"]
        without = leading[: self.passed + (0 if inspect.isclass(component) else self.called_with)]
        return {key: each for key, each in known.items() if key not in (*without, *self.never)}

    def takes_any(self, name: str) -> bool:
        """Whether a component of the project accepts any argument, and rejects unknown ones itself."""
        return name in self._own and takes_any_keyword(self._own[name])

    def from_library(self, name: str) -> Callable[..., Any] | None:
        if not self.library or name.startswith("_"):
            return None
        library = self.import_library()
        component = getattr(library, name, None)
        if not self.base or not inspect.isclass(component):
            return None
        if component.__name__ == f"_{name}":  # torchmetrics' deprecated name for a class of torchmetrics.image, say
            component = inspect.getmro(component)[1]
        base = getattr(library, self.base)
        return component if issubclass(component, base) and component is not base and self.accepts(component) else None

    def import_library(self) -> ModuleType | None:
        """None if the library is a deleted folder of extras/."""
        folder, extra = str(self.library), "extras."
        return find_extra(folder.removeprefix(extra)) if folder.startswith(extra) else importlib.import_module(folder)


def _is_loss(module: Any) -> bool:
    # torch has no public base class of losses; all have the argument "reduction"
    has_reduction = any("reduction" in inspect.signature(base.__init__).parameters for base in module.__mro__)
    return has_reduction and "__deprecated__" not in vars(module) and _takes_two(module.forward)


def _is_metric(metric: Any) -> bool:
    # wrappers take other metrics, aggregations take no targets, and those of text take strings, except for perplexity
    package = metric.__module__.split(".")[1]
    if package in ("metric", "wrappers", "aggregation", "text") and metric.__name__ != "Perplexity":
        return False
    takes_function = "metric_func" in inspect.signature(metric).parameters
    return not takes_function and _takes_two(metric.update)


def _is_schedule(schedule: Any) -> bool:
    # LambdaLR and MultiplicativeLR need a Python function
    return "lr_lambda" not in inspect.signature(schedule).parameters


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether a method can be called with just outputs and targets."""
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        return False
    return True


DATA_LOADERS = Registry("data loader")
MODELS = Registry("model")
OLD_REDUCTION = ("size_average", "reduce")  # torch's former names for "reduction"
LOSSES = Registry("loss", library="torch.nn", base="Module", accepts=_is_loss, never=OLD_REDUCTION, called_with=2)
METRICS = Registry("metric", library="torchmetrics", base="Metric", accepts=_is_metric, called_with=2)
OPTIMIZERS = Registry("optimizer", library="torch.optim", base="Optimizer", passed=1)
SCHEDULERS = Registry(
    "scheduler",
    library="torch.optim.lr_scheduler",
    base="LRScheduler",
    accepts=_is_schedule,
    passed=1,
    never=("last_epoch",),
    # LinearLR with total_iters=0, say, would stay at start_factor for the whole run
    types=dict.fromkeys(("T_max", "T_0", "step_size", "step_size_up", "total_iters"), PositiveInt)
    | dict.fromkeys(("step_size_down", "total_steps", "epochs", "steps_per_epoch"), PositiveInt | None),
)
# files in extras/writers register on import, which happens only if a config names one
WRITERS = Registry("writer", library="extras.writers", passed=1)
TRAINERS = Registry("trainer", passed=2, default=TrainerConfig.model_fields["type"].default)

# the config key of each kind
REGISTRIES: dict[str, Registry] = {
    "data_loader": DATA_LOADERS,
    "validation": DATA_LOADERS,
    "model": MODELS,
    "loss": LOSSES,
    "metrics": METRICS,
    "optimizer": OPTIMIZERS,
    "lr_scheduler": SCHEDULERS,
    "trainer": TRAINERS,
}


def markers(path: KeyPath, component: str | None, kind: type[M]) -> list[M]:
    """What annotations of a kind say about a config path: the nearest in the schema, which applies to everything below
    it without one of its own; then, in the arguments of the named component, that of the argument."""
    fields = filter(None, (field_at(path[: length + 1]) for length in range(len(path))))
    found = [item for field in fields for item in field.metadata if isinstance(item, kind)][-1:]
    made = REGISTRIES[str(path[0])].get(component) if component and "args" in path[:-1] else None
    if made:
        arguments = annotations(made, str(path[path.index("args") + 1]))
        found += [item for each in arguments for item in get_args(each) if isinstance(item, kind)][:1]
    return found


def registry_inside(registry: Registry) -> Registry:
    """Where to look up components that are arguments of another one: in a loss or scheduler its own kind, or models."""
    return registry if registry in (LOSSES, SCHEDULERS) else MODELS


_imported: dict[str, tuple[Any, tuple[int, int]]] = {}
"""The spec of each module of the users' folders, which a reload replaces, and its file's time and size then."""


def import_components() -> None:
    """Import each file in the users' folders, so that its components are registered.

    Warns of a file that has been edited since, as between the cells of a notebook: its old code is used.
    Raises UserError with the file and line of the user's code if an import fails.
    """
    if early := find_extra("early"):
        early.import_compiler_late()
    for folder in FOLDERS:
        for path in sorted((PROJECT / folder).glob("[!_.]*.py")):
            try:
                _warn_if_edited(importlib.import_module(f"{folder}.{path.stem}"), path)
            except UserError:
                raise
            except (Exception, SystemExit) as error:
                message = f"{in_project(path)} cannot be imported: {format_error_with_source(error)}"
                hints = find_extra("hints")
                advice = hints.import_hint(error) if hints else ""
                raise UserError("\n".join(filter(None, [message, advice]))) from error


def _warn_if_edited(module: ModuleType, path: Path) -> None:
    status = path.stat()  # without reading it, as Python decides whether to compile a file again
    now = status.st_mtime_ns, status.st_size
    spec, before = _imported.get(module.__name__, (None, now))
    if spec is not module.__spec__:
        _imported[module.__name__] = module.__spec__, now
    elif before != now:
        call = f"importlib.reload({module.__name__})"
        say_error(f"warning: {in_project(path)} was saved after it was imported; to use its new code: {call}")
