"""Errors in the code of a data set, with the sample that causes them."""

from collections.abc import Sequence
from typing import Any

from utils.errors import DataError, UserError
from utils.text import listed
from utils.user_code import format_error_with_source

ARGUMENTS = ("data_loader", "args")
"""The path of a data loader's arguments, for errors; ``base.construct.call`` knows that of a validation set's."""
MORE_SHARED_MEMORY = "give the container more, as by docker run --shm-size=8g, or use fewer workers"


def sample_error(error: Exception, what: str) -> Exception:
    """The error to raise for one in a data set's own code. what: which sample, how many, or which method."""
    if isinstance(error, (UserError, MemoryError)):
        return error
    return DataError(f"{what}: {format_error_with_source(error)}")


def call_hook(data: Any, name: str) -> Any:
    """The result of a data loader's method. If it fails, raises DataError with its name and the line of the error."""
    try:
        return getattr(data, name)()
    except Exception as error:  # of the user's code
        raise sample_error(error, f"{type(data).__name__}.{name}() failed") from error


def collate_error(error: Exception, name: str, indices: Sequence[int]) -> Exception:
    """The error to raise if samples cannot be made into a batch. name: of the data set."""
    if "</torch_" in str(error):  # a file in shared memory, where torch's default_collate stacks tensors
        return DataError(f"{name}: no shared memory for a batch ({error}); {MORE_SHARED_MEMORY}")
    return sample_error(
        error,
        f"{name}: samples {listed([*map(str, indices)])} cannot be made into a batch. Return tensors or numbers of the "
        "same shapes and dtypes, or define collate in the data loader",
    )
