"""Leaves torch's compiler unimported until something is compiled: its 870 modules take 1 s of CPU time or more."""

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

COMPILER, HELPERS = "torch._dynamo", "torch._dynamo.utils"
FILES = {"torchvision.ops.roi_align", "torchvision.tv_tensors"}
"""Those of torchvision that import the compiler."""


def import_compiler_late() -> None:
    """Let torch's optimizers be created, saved and loaded, and torchvision be imported, without importing the compiler.

    torch's wrappers import it only to exclude these methods from compilation, and nothing here compiles them;
    torchvision, which torchmetrics imports too, for a function that ``roi_align`` calls, and to exclude one of its own.
    """
    from torch.optim import Optimizer

    for name in ("add_param_group", "state_dict", "load_state_dict"):
        setattr(Optimizer, name, inspect.unwrap(getattr(Optimizer, name)))
    if not any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())


class TorchvisionFinder(MetaPathFinder):
    """Finds the files of torchvision that import the compiler, and lets them import a stand-in instead."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in FILES or COMPILER in sys.modules:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            if COMPILER in sys.modules:  # imported since, as before a lazy import is carried out
                return execute(module)
            try:
                with stand_in():
                    execute(module)
            except (AttributeError, ImportError):  # another torchvision, which needs more of the compiler
                execute(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """Inside the block, the compiler has only the functions below."""
    modules = {name: ModuleType(name) for name in (COMPILER, HELPERS)}
    vars(modules[COMPILER])["disable"] = disable
    vars(modules[HELPERS])["is_compile_supported"] = is_compile_supported
    sys.modules |= modules
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def disable(function: Callable[..., Any], *options: Any, **named: Any) -> Callable[..., Any]:
    """A function that is never compiled, as by the compiler's own ``disable``, which it calls once there is one."""
    if not callable(function):
        raise ImportError("as a decorator with arguments, only the compiler's own serves")

    @functools.wraps(function)
    def disabled(*args: Any, **kwargs: Any) -> Any:
        if COMPILER not in sys.modules:
            return function(*args, **kwargs)
        return importlib.import_module(COMPILER).disable(function, *options, **named)(*args, **kwargs)

    return disabled


def is_compile_supported(device_type: str) -> bool:
    """The compiler's own, imported when it is called."""
    return bool(importlib.import_module(HELPERS).is_compile_supported(device_type))
