"""What a run leaves to look at: metrics.jsonl and TensorBoard's event file, both cut back exactly on resume."""

import contextlib
import io
import json
import math
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import CheckpointError
from utils.files import LogFile, atomic_write

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

# the names of event files: the time of their making in seconds, and the machine
EVENTS = re.compile(r"events\.out\.tfevents\.(\d{10,})\..+")
VERSION = "brain.Event:2"
# sorts before all others, so that no resume cuts it
DESCRIPTION = "events.out.tfevents.0000000000.description"


class Writer:
    """Takes what is logged. Its state is how much of it stands on disk, so that a resume can cut off the rest."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """A point of each of these curves."""

    def epoch(self, record: Mapping[str, float]) -> None:
        """The values of an epoch that has ended."""

    def flush(self) -> None:
        """Write what waits."""

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def resume(self, state: Mapping[str, Any], *, step: int) -> None:
        """Take back what was written after this state, of a step."""

    def sync(self) -> None:
        """Bring everything on disk. Raises OSError if that fails."""


class JsonlWriter(Writer):
    """One JSON object a line, one line an epoch. A value that is not finite becomes null, since JSON has none."""

    def __init__(self, path: Path) -> None:
        self.file = LogFile(path)

    def epoch(self, record: Mapping[str, float]) -> None:
        clean = {key: value if math.isfinite(value) else None for key, value in record.items()}
        self.file.append((json.dumps(clean) + "\n").encode())

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": self.file.length()}

    def resume(self, state: Mapping[str, Any], *, step: int) -> None:
        self.file.truncate(_length(state))

    def sync(self) -> None:
        self.file.sync()


class EventWriter(Writer):
    """TensorBoard's event files. After a resume the old file is cut and a new one begins with a mark of the step, at
    which a TensorBoard that is open on the folder drops what it had read beyond it.
    """

    FLUSH = 1.0  # seconds for which events may wait: to write many at once takes a third of the time

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: list[Event] = []
        self._flushed = 0.0
        self._file: LogFile | None = None
        self._first_step = 0
        self._resumed: dict[str, Any] = {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(_event(step, summary=Summary(value=points)))

    def event(self, step: int, **content: Any) -> None:
        """Whatever else TensorBoard shows. content: a field of its Event, as ``summary``."""
        self._add(_event(step, **content))

    def describe(self, *contents: Mapping[str, Any]) -> None:
        """What holds for the run as a whole, as its hyperparameters: in a file of its own that takes the place of what
        was said before, since TensorBoard keeps the first that it reads of them. A full disk does not stop the run.
        """
        with contextlib.suppress(OSError), atomic_write(self.folder / DESCRIPTION) as file:
            file.write(_records([_event(0, file_version=VERSION), *(_event(0, **content) for content in contents)]))

    def flush(self) -> None:
        self._flushed = time.monotonic()
        if not self._waiting:
            return
        if self._file is None:
            self._file = LogFile(self.folder / self._new_name())
            self._waiting[:0] = _beginning(self._first_step)
        self._file.append(_records(self._waiting))
        self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        self.flush()
        if self._file is None:  # nothing was written since the resume
            return self._resumed
        return {"file": self._file.path.name, "bytes": self._file.length()}

    def resume(self, state: Mapping[str, Any], *, step: int) -> None:
        """Cut the file that was written then, empty later ones, and go on in a new one from the next step."""
        kept = str(state.get("file", ""))
        # with no file at a later step, TensorBoard was switched off: what there is was written before that
        for path in self._files() if kept or not step else []:
            # an empty file, not none: a TensorBoard that reads it now would otherwise wait for it for ever
            if path.name >= kept:
                LogFile(path).truncate(_length(state) if path.name == kept else 0)
        self._waiting.clear()
        self._file, self._resumed = None, dict(state)
        self._first_step = step + 1 if step else 0

    def sync(self) -> None:
        if self._file is not None:
            self._file.sync()

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("events.out.tfevents.*") if EVENTS.fullmatch(path.name)]

    def _add(self, event: "Event") -> None:
        self._waiting.append(event)
        if time.monotonic() >= self._flushed + self.FLUSH:
            self.flush()

    def _new_name(self) -> str:
        """Names sort in the order of writing, even within one second and after the clock was set back."""
        stamps = [int(path.name.split(".")[3]) + 1 for path in self._files()]
        return f"events.out.tfevents.{max([int(time.time()), *stamps]):010d}.{socket.gethostname()}"


def _event(step: int, **content: Any) -> "Event":
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=time.time(), step=step, **content)


def _records(events: "list[Event]") -> bytes:
    """Events as they stand in a file, each with its length and checksums."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    records = io.BytesIO()
    for event in events:
        RecordWriter(records).write(event.SerializeToString())
    return records.getvalue()


def _beginning(first_step: int) -> "list[Event]":
    """What a file begins with: its format, and from which step on it replaces what was written before it."""
    from tensorboard.compat.proto.event_pb2 import SessionLog

    start = SessionLog(status=SessionLog.START)
    return [_event(0, file_version=VERSION), _event(first_step, session_log=start)]


class Writers(Writer):
    """Several writers as one."""

    def __init__(self, writers: Mapping[str, Writer]) -> None:
        self.writers = dict(writers)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for writer in self.writers.values():
            writer.scalars(step, values)

    def epoch(self, record: Mapping[str, float]) -> None:
        for writer in self.writers.values():
            writer.epoch(record)

    def flush(self) -> None:
        for writer in self.writers.values():
            writer.flush()

    def state_dict(self) -> dict[str, Any]:
        return {name: writer.state_dict() for name, writer in self.writers.items()}

    def resume(self, state: Mapping[str, Any], *, step: int) -> None:
        for name, writer in self.writers.items():
            writer.resume(state.get(name, {}), step=step)

    def sync(self) -> None:
        for writer in self.writers.values():
            writer.sync()


def _length(state: Mapping[str, Any]) -> int:
    """A length in bytes from a checkpoint, which may be anybody's. Raises CheckpointError if it is none."""
    length = state.get("bytes", 0)
    if not isinstance(length, int) or length < 0:
        raise CheckpointError(f"the checkpoint says that a log file had {length!r} bytes")
    return length
