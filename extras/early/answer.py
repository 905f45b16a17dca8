"""Entry point of the package, called with the options of train.py before torch is imported."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from extras.early.cache import cached_listing
from extras.early.typos import find_typos
from utils import cli
from utils.paths import PROJECT
from utils.streams import say, terminal_width

HEAVY = ("torch", "torchvision", "torchmetrics")


def answer(options: argparse.Namespace) -> None:
    """Raise ConfigError for a typo, or print a --list and raise SystemExit. Returns if there is nothing to answer."""
    if options.list is not None:
        text = cached_listing(options.list, terminal_width(cli.LIST_WIDTH))
        if text is not None:
            say(text)
            raise SystemExit(0)
    elif options.resume is None:
        config = Path(options.config or PROJECT / "config.json")
        if config.exists() and not config.is_file():  # a pipe, which can be read only once
            return
        with contextlib.suppress(ImportError), not_importable(*HEAVY):
            find_typos(config, options.overrides)


@contextlib.contextmanager
def not_importable(*names: str) -> Iterator[None]:
    """Inside the block, importing one of these modules raises ImportError."""
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None: Python's way to stop an import
    try:
        yield
    finally:
        for name, module in before.items():
            if isinstance(module, ModuleType):
                sys.modules[name] = module
            else:
                del sys.modules[name]
