"""What a run leaves to look at: metrics.jsonl and TensorBoard's event file, both cut back exactly on resume."""

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol


class Writer(Protocol):
    """Takes what is logged. Its state is how much of it stands on disk, so that a resume can cut off the rest."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def text(self, step: int, tag: str, text: str) -> None: ...
    def epoch(self, record: Mapping[str, float]) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def resume(self, state: Mapping[str, Any], *, step: int) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class JsonlWriter:
    """One JSON object a line, one line an epoch. A value that is not finite becomes null, since JSON has none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def text(self, step: int, tag: str, text: str) -> None:
        pass

    def epoch(self, record: Mapping[str, float]) -> None:
        clean = {key: value if math.isfinite(value) else None for key, value in record.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": self.path.stat().st_size if self.path.exists() else 0}

    def resume(self, state: Mapping[str, Any], *, step: int) -> None:
        _cut(self.path, int(state.get("bytes", 0)))

    def sync(self) -> None:
        _sync(self.path)

    def close(self) -> None:
        pass


class EventWriter:
    """TensorBoard's event file. After a resume the old file is cut and a new one begins with a mark of the step, at
    which a TensorBoard that is open on the folder drops what it had read beyond it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None
        self._first_step = 0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from torch.utils.tensorboard.summary import scalar

        for tag, value in values.items():
            self._write(step, summary=scalar(tag, value))  # type: ignore[no-untyped-call]

    def text(self, step: int, tag: str, text: str) -> None:
        from torch.utils.tensorboard.summary import text as text_summary

        self._write(step, summary=text_summary(tag, text))  # type: ignore[no-untyped-call]

    def epoch(self, record: Mapping[str, float]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        if self._file is None:
            return {}
        self._file.flush()
        return {"file": Path(self._file.name).name, "bytes": self._file.tell()}

    def resume(self, state: Mapping[str, Any], *, step: int) -> None:
        """Cut the file that was written then, remove later ones, and go on in a new one from the next step."""
        self.close()
        kept = str(state.get("file", ""))
        for path in self.folder.glob("events.out.tfevents.*"):
            if path.name > kept:
                path.unlink()
        if kept:
            _cut(self.folder / Path(kept).name, int(state["bytes"]))
        self._first_step = step + 1 if kept else 0

    def sync(self) -> None:
        if self._file is not None:
            _sync(Path(self._file.name))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._file is None:
            self._open()
        assert self._file is not None
        event = Event(wall_time=time.time(), step=step, **content)
        RecordWriter(self._file).write(event.SerializeToString())

    def _open(self) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        # names sort in the order of writing, even within one second and after the clock was set back
        stamps = [int(path.name.split(".")[3]) for path in self.folder.glob("events.out.tfevents.*")]
        stamp = max([int(time.time()), *(stamp + 1 for stamp in stamps)])
        self._file = (self.folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}").open("ab")
        self._write(0, file_version="brain.Event:2")
        self._write(self._first_step, session_log=SessionLog(status=SessionLog.START))


class Writers:
    """Several writers as one."""

    def __init__(self, writers: Mapping[str, Writer]) -> None:
        self.writers = dict(writers)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for writer in self.writers.values():
            writer.scalars(step, values)

    def text(self, step: int, tag: str, text: str) -> None:
        for writer in self.writers.values():
            writer.text(step, tag, text)

    def epoch(self, record: Mapping[str, float]) -> None:
        for writer in self.writers.values():
            writer.epoch(record)

    def state_dict(self) -> dict[str, Any]:
        return {name: writer.state_dict() for name, writer in self.writers.items()}

    def resume(self, state: Mapping[str, Any], *, step: int) -> None:
        for name, writer in self.writers.items():
            writer.resume(state.get(name, {}), step=step)

    def sync(self) -> None:
        for writer in self.writers.values():
            writer.sync()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


def _cut(path: Path, size: int) -> None:
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def _sync(path: Path) -> None:
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())
