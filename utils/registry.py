"""What a config may name: one registry a kind, filled by decorators and by torch's own modules.

    @MODELS.register
    class LeNet(BaseModel): ...

A config's ``"type"`` is looked up here and nowhere else, so that it can never import or run arbitrary code.
"""

import difflib
import importlib
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from utils.arguments import parameters
from utils.errors import UserError
from utils.paths import PROJECT

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """The components of one kind, by name.

    library: a module whose public names count as registered too when ``accepts`` is true of them. It is imported
    when a name is not found among our own, since torchmetrics alone takes 0.7 s.
    passed: names of the arguments that the project passes itself, so that a config never gives them.
    called_with: how many leading arguments of a function are given at each call, as outputs and targets of a loss.
    """

    def __init__(
        self,
        kind: str,
        *,
        library: str | None = None,
        accepts: Callable[[Any], bool] = inspect.isclass,
        passed: tuple[str, ...] = (),
        called_with: int = 0,
    ) -> None:
        self.kind = kind
        self.library = library
        self._accepts = accepts
        self.passed = passed
        self.called_with = called_with
        self._own: dict[str, Callable[..., Any]] = {}

    def register(self, component: T) -> T:
        """Add a class or function under its own name. Raises UserError if another one has it."""
        name = component.__name__
        taken = self._own.get(name)
        if taken is not None and taken.__module__ != component.__module__:
            raise UserError(
                f"two {self.kind}s are called {name}:\n  {where(taken)}\n  {where(component)}\nRename one of them."
            )
        self._own[name] = component
        return component

    def get(self, name: str) -> Callable[..., Any] | None:
        return self._own.get(name) or self._from_library(name)

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
        close = difflib.get_close_matches(name, self.names(), n=1, cutoff=0.6)
        if close:
            return f'did you mean "{close[0]}"?'
        return f"there are: {', '.join(self._own or self.names())}"

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """What a config may give to a registered component, by name."""
        component = self._own.get(name) or self._from_library(name)
        if component is None:
            return {}
        found = list(parameters(component).items())
        if not inspect.isclass(component):
            found = found[self.called_with :]
        return {key: parameter for key, parameter in found if key not in self.passed}

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
    return inspect.isclass(item) and item.__name__.endswith("Loss")


def _is_metric(item: Any) -> bool:
    return inspect.isclass(item) and item.__module__.startswith("torchmetrics") and hasattr(item, "update")


DATA_LOADERS = Registry("data loader")
MODELS = Registry("model")
LOSSES = Registry("loss", library="torch.nn", accepts=_is_loss, called_with=2)
METRICS = Registry("metric", library="torchmetrics", accepts=_is_metric, called_with=2)
OPTIMIZERS = Registry("optimizer", library="torch.optim", accepts=_is_optimizer, passed=("params",))
SCHEDULERS = Registry("scheduler", library="torch.optim.lr_scheduler", accepts=_is_scheduler, passed=("optimizer",))
TRAINERS = Registry("trainer", passed=("experiment", "settings"))

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
                except Exception as error:
                    raise UserError(f"{_relative(path)} does not import\n{user_frame(error)}") from error


def user_frame(error: BaseException, *, root: Path = PROJECT) -> str:
    """One line for an error in a user's code: the last file and line of this project on its way, and what it says."""
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"  {_relative(error.filename)}:{error.lineno}: {type(error).__name__}: {error.msg}"
    inside = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(root) and ".venv" not in Path(frame.filename).parts
    ]
    return f"  {_relative(inside[-1].filename)}:{inside[-1].lineno}: {message}" if inside else f"  {message}"


def _relative(path: str | Path) -> str:
    return str(Path(path).relative_to(PROJECT)) if Path(path).is_relative_to(PROJECT) else str(path)
