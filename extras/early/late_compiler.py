"""Leaves torch's compiler unimported until something is compiled: its 870 modules take 1 s of CPU time or more."""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

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
        spec = PathFinder.find_spec(name, path, target) if name in FILES else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            try:
                with stand_in():
                    execute(module)
            except (AttributeError, ImportError, TypeError):  # another torchvision, which needs more of the compiler
                execute(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """Inside the block, the compiler has only what torchvision imports, unless it was imported before."""
    if COMPILER in sys.modules:
        yield
        return
    modules = {name: ModuleType(name) for name in (COMPILER, HELPERS)}
    vars(modules[COMPILER])["disable"] = lambda function, *_, **__: function
    vars(modules[HELPERS])["is_compile_supported"] = is_compile_supported
    sys.modules |= modules
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def is_compile_supported(device_type: str) -> bool:
    """The compiler's own, imported when it is called."""
    return bool(importlib.import_module(HELPERS).is_compile_supported(device_type))
