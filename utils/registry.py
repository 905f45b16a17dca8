"""What a config may name: one registry a kind, filled by decorators and by torch's own modules.

    @MODELS.register
    class LeNet(BaseModel): ...

A config's ``"type"`` is looked up here and nowhere else, so that it can never import or run arbitrary code.
"""

import importlib
import inspect
import linecache
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from utils.arguments import parameters, takes_any_keyword
from utils.errors import UserError
from utils.paths import PROJECT
from utils.schema import TrainerConfig
from utils.suggest import closest

T = TypeVar("T", bound=Callable[..., Any])

# folders whose lines explain nothing to a user whose own code went wrong
MACHINERY = {"utils", "logger", "base"}


class Registry:
    """The components of one kind, by name.

    library: a module whose public names count as registered too when ``accepts`` is true of them. It is imported
    when a name is not found among our own, since torchmetrics alone takes 0.7 s.
    passed: names of the arguments that the project passes itself, or that a config must never give.
    options: what the library's components take beside their own arguments, through **kwargs.
    called_with: how many leading arguments of a function are given at each call, as outputs and targets of a loss.
    default: the component that is taken where a config names none.
    """

    def __init__(
        self,
        kind: str,
        *,
        library: str | None = None,
        accepts: Callable[[Any], bool] = inspect.isclass,
        passed: tuple[str, ...] = (),
        options: Mapping[str, Any] | None = None,
        called_with: int = 0,
        default: str | None = None,
    ) -> None:
        self.kind = kind
        self.library = library
        self._accepts = accepts
        self.passed = passed
        self.options = options or {}
        self.called_with = called_with
        self.default = default
        self._own: dict[str, Callable[..., Any]] = {}

    def register(self, component: T) -> T:
        """Add a class or function under its own name. Raises UserError if another one has it."""
        name = component.__name__
        taken = self._own.get(name)
        if taken is not None and (taken.__module__ != component.__module__ or _first_import(component.__module__)):
            raise UserError(
                f"two {self.kind}s are called {name}:\n  {where(taken)}\n  {where(component)}\nRename one of them."
            )
        self._own[name] = component
        return component

    def get(self, name: str) -> Callable[..., Any] | None:
        return self._own.get(name) or self._from_library(name)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """The component of a name that was checked."""
        component = self.get(name)
        assert component is not None, f"there is no {self.kind} {name}"
        return component

    def own(self) -> dict[str, Callable[..., Any]]:
        """What this project registers, without the library's."""
        return dict(sorted(self._own.items()))

    def names(self) -> list[str]:
        """Every name a config may give, ours first."""
        library = importlib.import_module(self.library) if self.library else None
        public = getattr(library, "__all__", None) or dir(library)
        return [*sorted(self._own), *sorted(n for n in public if library and self._from_library(n) is not None)]

    def suggest(self, name: str) -> str:
        """How to go on from a name that is not there."""
        close = closest(name, sorted(self._own)) or closest(name, self.names())
        if close:
            return f'did you mean "{close}"?'
        rest = f" and those of {self.library}; python train.py --list shows all" if self._own and self.library else ""
        return f"there are: {', '.join(self._own or self.names())}{rest}"

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """What a config may give to a registered component, by name."""
        component = self.get(name)
        if component is None:
            return {}
        found = parameters(component)
        if name not in self._own:
            found |= {
                key: inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=type(default))
                for key, default in self.options.items()
            }
        names = list(found) if inspect.isclass(component) else list(found)[self.called_with :]
        return {key: found[key] for key in names if key not in self.passed}

    def takes_any(self, name: str) -> bool:
        """Whether a component takes any argument and has to refuse unknown ones itself."""
        component = self.get(name)
        closed = bool(self.options) and name not in self._own
        return component is not None and not closed and takes_any_keyword(component)

    def _from_library(self, name: str) -> Callable[..., Any] | None:
        if not self.library or name.startswith("_"):
            return None
        found = getattr(importlib.import_module(self.library), name, None)
        return found if callable(found) and self._accepts(found) else None


def _is_optimizer(item: Any) -> bool:
    from torch.optim import Optimizer

    return inspect.isclass(item) and issubclass(item, Optimizer) and item is not Optimizer


def _is_scheduler(item: Any) -> bool:
    from torch.optim.lr_scheduler import LRScheduler

    return inspect.isclass(item) and issubclass(item, LRScheduler) and item is not LRScheduler


def _is_loss(item: Any) -> bool:
    from torch.nn.modules.loss import _Loss

    return inspect.isclass(item) and issubclass(item, _Loss) and item is not _Loss and _takes_two(item.forward)


def _is_metric(item: Any) -> bool:
    from torchmetrics import Metric

    # wrappers take other metrics, aggregations take no targets, and text is none of a model's outputs
    left_out = {"metric", "wrappers", "aggregation", "text"}
    if not inspect.isclass(item) or not issubclass(item, Metric) or item.__name__.startswith("_"):
        return False
    return item.__module__.split(".")[1] not in left_out and _takes_two(item.update)


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether a method can be called with outputs and targets alone."""
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        return False
    return True


def _first_import(module: str) -> bool:
    """Whether a module is being imported, and not reloaded or typed into a notebook, where names are defined anew."""
    # CPython's own mark, which the import statement uses to tell circular imports
    return bool(getattr(getattr(sys.modules.get(module), "__spec__", None), "_initializing", False))


# what torchmetrics.Metric takes out of **kwargs, of what JSON can give
METRIC_OPTIONS = {
    "compute_on_cpu": False,
    "dist_sync_on_step": False,
    "sync_on_compute": True,
    "compute_with_cache": True,
}

DATA_LOADERS = Registry("data loader")
MODELS = Registry("model")
# torch's old names of "reduction" are left out
OLD_REDUCTION = ("size_average", "reduce")
LOSSES = Registry("loss", library="torch.nn", accepts=_is_loss, passed=OLD_REDUCTION, called_with=2)
METRICS = Registry("metric", library="torchmetrics", accepts=_is_metric, options=METRIC_OPTIONS, called_with=2)
OPTIMIZERS = Registry("optimizer", library="torch.optim", accepts=_is_optimizer, passed=("params",))
SCHEDULERS = Registry(
    "scheduler", library="torch.optim.lr_scheduler", accepts=_is_scheduler, passed=("optimizer", "last_epoch")
)
TRAINERS = Registry("trainer", passed=("experiment", "settings"), default=TrainerConfig.model_fields["type"].default)

# the config's key for each kind
REGISTRIES = {
    "data_loader": DATA_LOADERS,
    "model": MODELS,
    "loss": LOSSES,
    "metrics": METRICS,
    "optimizer": OPTIMIZERS,
    "lr_scheduler": SCHEDULERS,
    "trainer": TRAINERS,
}


def where(component: Callable[..., Any]) -> str:
    """The file and line that define a component, relative to the project's folder."""
    try:
        path, line = inspect.getsourcefile(component) or "?", inspect.getsourcelines(component)[1]
    except (OSError, TypeError):
        return component.__module__
    return f"{_relative(path)}:{line}"


def import_components(folders: tuple[str, ...] = ("data_loader", "model", "trainer"), root: Path = PROJECT) -> None:
    """Import each file of the users' folders, so that what it registers is known.

    Raises UserError with the file and line of the user's code if one of them does not import.
    """
    for folder in folders:
        for path in sorted((root / folder).glob("*.py")):
            if not path.name.startswith("_"):
                try:
                    importlib.import_module(f"{folder}.{path.stem}")
                except UserError:
                    raise
                except (Exception, SystemExit) as error:
                    raise UserError(f"{_relative(path)} does not import: {said(error)}\n{user_frame(error)}") from error


def said(error: BaseException) -> str:
    """What an error says, with its kind, in one paragraph."""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def user_frame(error: BaseException) -> str:
    """The line of the user's code where an error came from, or what it says where it came from no such line."""
    return user_line(error) or f"  {said(error)}"


def user_line(error: BaseException, *, root: Path = PROJECT) -> str:
    """File, number and text of the last line of the user's code on the way of an error; empty if there was none."""
    if isinstance(error, SyntaxError) and error.filename:
        return _code_line(error.filename, error.lineno or 1)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(Path(frame.filename), root)]
    return _code_line(frames[-1].filename, frames[-1].lineno or 1) if frames else ""


def _is_users(path: Path, root: Path) -> bool:
    """Whether a file is the user's: in the project, and not of its machinery."""
    if not path.is_relative_to(root) or ".venv" in path.parts:
        return False
    parts = path.relative_to(root).parts
    return len(parts) > 1 and parts[0] not in MACHINERY


def _code_line(path: str, line: int) -> str:
    return f"  {_relative(path)}:{line}: {linecache.getline(path, line).strip()}".rstrip(": ")


def _relative(path: str | Path) -> str:
    return str(Path(path).relative_to(PROJECT)) if Path(path).is_relative_to(PROJECT) else str(path)
