"""Less garbage collection: it would look again and again through all that libraries make when they are imported.

That takes 0.25 s of the 1.0 s for torch, and at the end of a process 0.5 s, or 0.9 s after torchmetrics. So commands
import torch without it (``answer_early`` in utils/cli.py).
"""

import atexit
import contextlib
import gc
import io
import itertools
from collections.abc import Iterator
from types import GeneratorType
from typing import Any

IDLE = {io.FileIO, io.BufferedReader, io.BytesIO, io.StringIO, GeneratorType}
"""Types with a ``__del__`` that writes nothing."""
OWN = ("torch.", "logger.", "utils.")
"""Where classes with a ``__del__`` have done at the end of a run what it would do."""


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Inside the block, collections ignore all earlier objects, in worker processes too, which would copy them."""
    # for good in the process of a command, if no object must be freed before it ends
    forever = gc.get_freeze_count() > 0 and not _waits_to_be_freed()
    gc.freeze()
    try:
        yield
    finally:
        if not forever:
            gc.unfreeze()


def leave_to_the_system() -> None:
    """At the end of the process, leave all objects to the system, unless a file is still to be written."""
    atexit.unregister(_leave)  # registered once, however many commands a process runs
    atexit.register(_leave)


def _leave() -> None:
    # else the globals of a module would never be freed, nor the last lines written to a file that is one of them
    if _waits_to_be_freed():
        gc.unfreeze()  # what refers to it
        gc.collect()
        if _waits_to_be_freed():
            return
    gc.freeze()


def _waits_to_be_freed() -> bool:
    """Whether any object, in use or not, must be freed before the process ends. ``cli.run`` has frozen the imports."""
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if hasattr(kind, "__del__")} - IDLE
    return any(map(_must_be_freed, itertools.compress(objects, map(kinds.__contains__, map(type, objects)))))


def _must_be_freed(finalized: Any) -> bool:
    """Whether an object with a ``__del__`` may be the user's, other than a standard stream or a closed file."""
    if isinstance(finalized, (io.TextIOWrapper, io.BufferedWriter)):
        with contextlib.suppress(OSError, ValueError):  # one in memory has no number
            return not finalized.closed and finalized.fileno() > 2
        return True
    return not type(finalized).__module__.startswith(OWN)
