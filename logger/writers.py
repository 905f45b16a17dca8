"""The records of a run: metrics.jsonl and TensorBoard event files, both truncated exactly on resume."""

import io
import json
import math
import re
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional

from utils.errors import CheckpointError
from utils.files import LogFile, atomic_write, size
from utils.registry import WRITERS
from utils.run_folder import EVENTS
from utils.user_code import format_error_with_source

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

# names of event files: creation time in seconds, and host
EVENT_FILE = re.compile(rf"{re.escape(EVENTS)}(\d{{10,}})\.[^~]+")
VERSION = "brain.Event:2"
# event files that are replaced as a whole and never truncated on resume: this with a name, which sorts before all
# others, or another file's with ~ and a name
WHOLE = f"{EVENTS}0000000000."


class Writer:
    """Receives what is logged. Its state has the length of its file, so that a resume can drop later content."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each of these curves, by tag."""

    def epoch(self, record: Mapping[str, float]) -> None:
        """Add the values of a finished epoch."""

    def images(self, step: int, tag: str, pictures: Tensor) -> None:
        """Add pictures, uint8 of shape (B, H, W, 1 or 3)."""

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Add a text."""

    def flush(self) -> None:
        """Write buffered data."""

    def close(self, *, finished: bool) -> None:
        """Close at the end of the run, or when it is interrupted."""
        self.flush()

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for the next checkpoint."""
        return {}

    def resume(self, state: Mapping[str, Any], *, step: int) -> str:
        """Drop what was written after this state, which was saved at this step.

        Returns what earlier data is missing, for a warning; "" if nothing is.
        """
        return ""

    def sync(self) -> None:
        """Flush everything to disk. Raises OSError on failure."""


@dataclass(frozen=True)
class RunInfo:
    """What a writer named in the config knows about the run."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    """The whole config as run."""
    warn: Callable[[str], None]


class JsonlWriter(Writer):
    """One JSON object per line, one line per epoch. Values that are not finite become null, as JSON requires."""

    def __init__(self, path: Path) -> None:
        self.file = LogFile(path)

    def epoch(self, record: Mapping[str, float]) -> None:
        clean = {key: value if math.isfinite(value) else None for key, value in record.items()}
        self.file.append((json.dumps(clean) + "\n").encode())

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": self.file.length()}

    def resume(self, state: Mapping[str, Any], *, step: int) -> str:
        path, length = self.file.path, state.get("bytes", 0)
        content = path.read_bytes()[:length] if path.exists() else b""
        kept = content.rfind(b"\n") + 1  # complete lines
        self.file.truncate(kept)
        return _lost(path, kept, length)

    def sync(self) -> None:
        self.file.sync()


class EventWriter(Writer):
    """TensorBoard event files.

    After a resume the old file is truncated, and a new one starts with a SessionLog.START event for the next step,
    which makes an open TensorBoard drop what it has read from that step on.
    """

    FLUSH = 1.0  # maximum seconds to buffer events: writing many at once takes a third of the time

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._buffer: list[Event] = []
        self._flushed = 0.0
        self._file: LogFile | None = None
        self._first_step = 0
        self._state: dict[str, Any] = {}  # name and length of the last file

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.event(step, summary=points(values))

    def images(self, step: int, tag: str, pictures: Tensor) -> None:
        self.event(step, summary=image_grid(tag, pictures))

    def text(self, step: int, tag: str, markdown: str) -> None:
        self.event(step, summary=text(tag, markdown))

    def event(self, step: int, **content: Any) -> None:
        """Add any other event. content: a field of TensorBoard's Event, e.g. ``summary``."""
        self._buffer.append(_event(step, **content))
        if time.monotonic() >= self._flushed + self.FLUSH:
            self.flush()

    def replace(self, name: str, *contents: Mapping[str, Any], step: int = 0) -> None:
        """Write a file that is replaced as a whole. contents: as for ``event``. Raises OSError.

        It sorts before the file of a run in progress, which TensorBoard stops reading once a later one exists. Where a
        resume has begun a new file, its SessionLog.START would drop this step from all that sort before: it comes last.
        """
        events = [_event(0, file_version=VERSION), *(_event(step, **content) for content in contents)]
        files = self._files()
        path = self.folder / (f"{max(files).name}~{name}" if step and len(files) > 1 else f"{WHOLE}{name}")
        with atomic_write(path) as file:
            file.write(_records(events))
        for earlier in (self.folder / f"{WHOLE}{name}", *self.folder.glob(f"{EVENTS}*~{name}")):
            if earlier != path:
                earlier.unlink(missing_ok=True)

    def flush(self) -> None:
        self._flushed = time.monotonic()
        if not self._buffer:
            return
        if self._file is None:
            self._buffer[:0] = self._first_events()
            # sorts after all others, even within one second or after the clock was set back
            times = [int(path.name.split(".")[3]) + 1 for path in self._files()]
            name = f"{EVENTS}{max([int(time.time()), *times]):010d}.{socket.gethostname()}"
            self._file = LogFile(self.folder / name)
        self._file.append(_records(self._buffer))
        self._buffer.clear()

    def state_dict(self) -> dict[str, Any]:
        self.flush()
        if self._file is not None:
            self._state = {"file": self._file.path.name, "bytes": self._file.length()}
        return dict(self._state)

    def resume(self, state: Mapping[str, Any], *, step: int) -> str:
        """Truncate that state's file, empty later ones, and continue in a new file from the next step."""
        name, length = "", 0
        if step:  # what was written before the first step is written again
            name, length = state.get("file", ""), state.get("bytes", 0)
        # no file at a step > 0: TensorBoard was switched off, and the files are older
        dropped = [path for path in self._files() if path.name >= name] if name or not step else []
        for path in dropped:
            # emptied rather than removed: an open TensorBoard would wait for a removed file forever. A file shorter
            # than it was may end in half an event, where readers take the next file
            LogFile(path).truncate(length if path.name == name else 0)
        remaining = size(self.folder / name) if name else 0
        self._buffer.clear()
        self._file = None
        self._state = {"file": name, "bytes": remaining} if name else {}
        self._first_step = step + 1 if step else 0
        return _lost(self.folder / name, remaining, length)

    def sync(self) -> None:
        if self._file is not None:
            self._file.sync()

    def _files(self) -> list[Path]:
        found = self.folder.glob(f"{EVENTS}*")
        return [path for path in found if EVENT_FILE.fullmatch(path.name) and not path.name.startswith(WHOLE)]

    def _first_events(self) -> "list[Event]":
        """The first events of a file: its format and, if it replaces part of earlier files, from which step.

        In the first file, that event would drop the content of files that are replaced as a whole, such as a test's
        points.
        """
        from tensorboard.compat.proto.event_pb2 import SessionLog

        start = _event(self._first_step, session_log=SessionLog(status=SessionLog.START))
        return [_event(0, file_version=VERSION), *([start] if self._files() else [])]


@WRITERS.register
def tensorboard(run: RunInfo) -> Writer:
    """TensorBoard event files in the run's folder."""
    return EventWriter(run.folder)


def image_grid(tag: str, pictures: Tensor) -> "Summary":
    """Pictures, uint8 of (B, H, W, 1 or 3), side by side in rows of eight, separated by white lines."""
    from torch.utils.tensorboard.summary import image

    framed = functional.pad(pictures, (0, 0, 0, 2, 0, 2), value=255)
    return image(tag, framed, dataformats="NHWC")  # type: ignore[no-untyped-call]


def text(tag: str, markdown: str) -> "Summary":
    from torch.utils.tensorboard import summary

    made: Summary = summary.text(tag, markdown)  # type: ignore[no-untyped-call]
    made.value[0].tag = tag  # without the suffix that torch adds
    return made


def points(values: Mapping[str, float]) -> "Summary":
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def _event(step: int, **content: Any) -> "Event":
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=time.time(), step=step, **content)


def _records(events: "list[Event]") -> bytes:
    """Events in the format of event files, each with its length and checksums."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    records = io.BytesIO()
    for event in events:
        RecordWriter(records).write(event.SerializeToString())
    return records.getvalue()


class Writers(Writer):
    """Several writers as one.

    optional: names of writers chosen in the config. If one fails, this gives one warning, and the run continues without
    it until it is resumed.
    """

    def __init__(
        self, writers: Mapping[str, Writer], *, optional: Collection[str] = (), warn: Callable[[str], None] = print
    ) -> None:
        self.writers = dict(writers)
        self.optional = optional
        self.warn = warn
        self._states: dict[str, Any] = {}
        self._failed: set[str] = set()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda name, writer: writer.scalars(step, values))

    def epoch(self, record: Mapping[str, float]) -> None:
        self._each(lambda name, writer: writer.epoch(record))

    def images(self, step: int, tag: str, pictures: Tensor) -> None:
        self._each(lambda name, writer: writer.images(step, tag, pictures))

    def text(self, step: int, tag: str, markdown: str) -> None:
        self._each(lambda name, writer: writer.text(step, tag, markdown))

    def flush(self) -> None:
        self._each(lambda name, writer: writer.flush())

    def close(self, *, finished: bool) -> None:
        self._each(lambda name, writer: writer.close(finished=finished))

    def sync(self) -> None:
        self._each(lambda name, writer: writer.sync())

    def state_dict(self) -> dict[str, Any]:
        # a failed writer keeps its last state
        self._states |= self._each(lambda name, writer: dict(writer.state_dict()))
        return dict(self._states)

    def resume(self, state: Mapping[str, Any], *, step: int) -> str:
        self._states = {name: state.get(name, {}) for name in self.writers}
        lost = self._each(lambda name, writer: str(writer.resume(self._states[name], step=step) or ""))
        return ", ".join(filter(None, lost.values()))

    def _each(self, call: Callable[[str, Writer], Any]) -> dict[str, Any]:
        """The result of a call for each writer that has not failed."""
        returned = {}
        for name, writer in self.writers.items():
            if name in self._failed:
                continue
            try:
                returned[name] = call(name, writer)
            except Exception as error:  # any error: training must not end because of logging
                if name not in self.optional or isinstance(error, CheckpointError):
                    raise
                self._failed.add(name)
                what = format_error_with_source(error)
                self.warn(f"the writer {name} failed; training continues without it: {what}")
        return returned

    def check(self, states: Any) -> None:
        """Raise an error if a value from an untrusted checkpoint cannot be a state of the writers.

        What is in the state of an optional one is its own matter.
        """
        for name in (self.writers.keys() & states.keys()).difference(self.optional):
            length, file = states[name].get("bytes", 0), states[name].get("file", "")
            if type(length) is not int or length < 0 or not isinstance(file, str):
                raise CheckpointError(f"invalid checkpoint: state of the log {name}: {states[name]!r:.80}")


def _lost(path: Path, length: int, expected: int) -> str:
    """The warning for a file shorter than it should be; "" if it is long enough."""
    if length >= expected:
        return ""
    usable = f"{path.name} has {length:,} usable bytes of {expected:,}"
    return usable if path.exists() else f"{path.name} is missing"
