"""Errors that a user can fix. Each becomes one message on stderr, never a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class UserError(Exception):
    """A mistake in the config, the arguments or a file. The message says what, where, and what to do; status 2.

    path: of the key in the config, if any; ``located`` adds its line.
    """

    def __init__(self, message: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(f"{'.'.join(map(str, path))}: {message}" if path else message)
        self.message = message
        self.path = path


class ConfigError(UserError):
    """The config or an override is wrong."""


@dataclass(frozen=True)
class Problem:
    """A mistake in the config: its path, and a message. A ConfigError reports several together."""

    path: tuple[str | int, ...]
    message: str


class CheckpointError(UserError):
    """A checkpoint or run folder is missing, damaged or does not match."""


class DataError(UserError):
    """A data set is missing, empty or not what the config says."""


class TrainingError(Exception):
    """The run cannot continue (a loss that is not finite, a disk that cannot be written); status 1."""


class DivergedError(TrainingError):
    """The loss is not finite."""


class Stopped(Exception):  # noqa: N818  (not an error: the run was asked to stop, and saved)
    """A signal asked the run to stop; status 128 + signal."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


@contextmanager
def errors_at(path: tuple[str | int, ...], *, advice: str = "") -> Iterator[None]:
    """Inside the block, a UserError without a path in the config gets this one. advice: added to its message."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{error.message}{advice}", error.path or path) from error


@contextmanager
def os_errors_as(kind: type[Exception], what: str, *, advice: str = "") -> Iterator[None]:
    """Inside the block, raise an OSError as this kind of error, "WHAT: REASON" and the advice."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {error.strerror or error}{advice}") from error
