"""Less garbage collection: it would look again and again through all that libraries make when they are imported.

That takes 0.25 s of the 1.0 s for torch, and at the end of a process 0.5 s, or 0.9 s after torchmetrics. So commands
import torch without it (``answer_early`` in utils/cli.py).
"""

import atexit
import contextlib
import gc
import io
from collections.abc import Iterator


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Inside the block, collections ignore all earlier objects, in worker processes too, which would copy them."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def leave_to_the_system() -> None:
    """At the end of the process, leave all objects to the system, unless a file is still to be written."""
    atexit.unregister(_leave)  # registered once, however many commands a process runs
    atexit.register(_leave)


def _leave() -> None:
    gc.unfreeze()  # what is frozen is not among the objects
    files = [each for each in gc.get_objects() if issubclass(type(each), (io.BufferedWriter, io.BufferedRandom))]
    with contextlib.suppress(OSError, ValueError):  # one without a number, as a file in memory
        if all(file.closed or file.fileno() <= 2 for file in files):  # up to 2: the standard streams
            gc.freeze()
