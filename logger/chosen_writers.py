"""The writers that a config may name: what they are told of the run, and what happens if one fails."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from logger.writers import EventWriter, Writer
from utils.errors import CheckpointError
from utils.registry import WRITERS
from utils.user_code import format_error_with_source

T = TypeVar("T")


@dataclass(frozen=True)
class RunInfo:
    """What a writer is told of the run."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    """The whole config as it is run."""
    warn: Callable[[str], None]


class GuardedWriter(Writer):
    """Another writer, which may fail: that is one warning, and the run continues without it until it is resumed."""

    def __init__(self, name: str, writer: Writer, warn: Callable[[str], None]) -> None:
        self.name = name
        self.writer = writer
        self.warn = warn
        self._state: Mapping[str, Any] = {}
        self._failed = False

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self.writer.scalars(step, values), None)

    def epoch(self, record: Mapping[str, float]) -> None:
        self._try(lambda: self.writer.epoch(record), None)

    def images(self, step: int, tag: str, pictures: Tensor) -> None:
        self._try(lambda: self.writer.images(step, tag, pictures), None)

    def text(self, step: int, tag: str, markdown: str) -> None:
        self._try(lambda: self.writer.text(step, tag, markdown), None)

    def flush(self) -> None:
        self._try(self.writer.flush, None)

    def close(self, *, finished: bool) -> None:
        self._try(lambda: self.writer.close(finished=finished), None)

    def state_dict(self) -> dict[str, Any]:
        self._state = self._try(self.writer.state_dict, self._state)
        return dict(self._state)

    def resume(self, state: Mapping[str, Any], *, step: int) -> str:
        self._state = state
        return self._try(lambda: self.writer.resume(state, step=step), "")

    def sync(self) -> None:
        self._try(self.writer.sync, None)

    def _try(self, call: Callable[[], T], otherwise: T) -> T:
        if self._failed:
            return otherwise
        try:
            return call()
        except CheckpointError:
            raise
        except Exception as error:  # of any kind: training must not end because of its log
            self._failed = True
            what = format_error_with_source(error)
            self.warn(f"the writer {self.name} failed; training continues without it: {what}")
            return otherwise


@WRITERS.register
def tensorboard(run: RunInfo) -> Writer:
    """TensorBoard's event files, in the run's folder."""
    return EventWriter(run.folder)
