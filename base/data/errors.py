"""Errors in the code of a data set, with the sample that causes them."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor
from torch.utils.data import default_convert

from base.array_file import ArrayFile
from utils.errors import DataError, UserError
from utils.text import listed
from utils.tree import describe_batch
from utils.user_code import format_error_with_source


def sample_error(error: Exception, what: str) -> Exception:
    """The error to raise for one in a data set's own code. what: which sample, how many, or which method."""
    if isinstance(error, (UserError, MemoryError)):
        return error
    return DataError(f"{what}: {format_error_with_source(error)}")


def call_hook(data: Any, name: str) -> Any:
    """What a method of a data loader returns. Raises DataError naming it, and the line of it that raised an error."""
    try:
        return getattr(data, name)()
    except Exception as error:  # of the user's code
        raise sample_error(error, f"{type(data).__name__}.{name}() failed") from error


def collate_error(error: Exception, name: str, indices: Sequence[int], samples: Sequence[Any] = ()) -> Exception:
    """The error to raise if samples cannot be made into a batch. name: of the data set.

    samples: if they should have the same shape. torch's message counts them by their position in the batch, or in a
    worker process says nothing of them.
    """
    convert = "; convert images in the transform, for example with v2.PILToTensor()" if "PIL" in str(error) else ""
    return sample_error(
        error,
        f"{name}: samples {listed([*map(str, indices)])} cannot be made into a batch. Return tensors or numbers of the "
        f"same shapes and dtypes, or define collate in the data loader{convert}{_differing(indices, samples)}",
    )


def _differing(indices: Sequence[int], samples: Sequence[Any]) -> str:
    """The end of a sentence about a sample with other shapes or dtypes than the first one; empty if there is none."""
    described = list[str]()
    with suppress(Exception):  # samples may contain anything
        described = [describe_batch(default_convert(each)) for each in samples]  # type: ignore[no-untyped-call]
    for index, other in zip(indices, described, strict=False):
        if other != described[0]:
            return f" (sample {indices[0]} is {described[0]}, sample {index} is {other})"
    return ""


def check_tensors(inputs: Any, targets: Any) -> None:
    """Raise TypeError or ValueError if these are not the inputs and targets of a ``TensorSource``."""
    for each in (inputs, targets):
        if not isinstance(each, (Tensor, ArrayFile)):
            samples = "return a data set of samples (input, targets) instead"
            remedy = samples if isinstance(each, (dict, tuple)) else "use torch.as_tensor(...)"
            raise TypeError(f"TensorSource takes tensors, got {type(each).__name__}; {remedy}")
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets")
