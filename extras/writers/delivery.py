"""Sends logs to a service that cannot undo anything: each step once, without delaying the training.

Logs go to a journal in the run's folder, from which a thread sends what has not been sent. A resumed run logs
everything after its checkpoint again: entries that are already in the journal, and are the same, are not sent again. If
they differ, as after a change of the learning rate, the service gets a new run with everything that belongs to this
one.

A service that does not answer costs one warning. What it missed is sent when it answers again, or on resume.
"""

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from extras.records import flat
from logger.writers import RunInfo, Writer
from utils.errors import CheckpointError
from utils.files import LogFile, atomic_write
from utils.tree import digest
from utils.user_code import format_error

Entry = dict[str, Any]
"""A line of the journal: "time" (ms since 1970), "step", and "values", or "image" and "digest", or "text" and "tag"."""

BATCH = 500
PAUSE = 1.0  # seconds between batches
RETRY = 30.0  # seconds after a failure
SOON = 2.0  # seconds after which a run prints at its end that it is waiting
LAST = 60.0  # seconds that a run waits at its end for the rest to be sent
NOT_COMPARED = ("samples_per_second", "memory/")  # different in every run


class Service:
    """What a service must implement. Called in a thread; may raise anything."""

    def open(self, run: RunInfo, known: str | None) -> str:
        """Start a run, or continue the one with this id. Returns its id."""
        raise NotImplementedError

    def send(self, entries: list[tuple[Entry, Tensor | None]]) -> None:
        """Send journal entries in order; for "image", with uint8 of shape (B, H, W, 1 or 3) if available."""
        raise NotImplementedError

    def close(self, *, finished: bool) -> None:
        """The run ends, or is interrupted."""


class Delivery(Writer):
    """name: of the service, and of the files in the run's folder."""

    def __init__(self, name: str, run: RunInfo, service: Service) -> None:
        self.name = name
        self.run = run
        self.service = service
        self.journal = LogFile(run.folder / f"{name}.jsonl")
        self.marker = run.folder / f"{name}.json"
        self._ends = [0]
        """0, and where each line of the journal ends, in bytes."""
        self._given = 0
        """Lines that the run has logged; a resumed run is expected to log any further ones again."""
        self._sent = 0
        """Lines that the service has."""
        self._id: str | None = None
        """The run of the service that has them."""
        self._pictures: dict[int, Tensor] = {}
        """Those of lines that are not sent yet; the journal has only their digests."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = self._finished = self._warned = False

    # ------------------------------------------------------------------ what is logged

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._add({"step": step, "values": dict(values)})

    def epoch(self, record: Mapping[str, float]) -> None:
        self._add({"step": int(record["step"]), "values": {"epoch": record["epoch"]}})

    def images(self, step: int, tag: str, pictures: Tensor) -> None:
        self._add({"step": step, "image": tag, "digest": digest(pictures)}, pictures)

    def text(self, step: int, tag: str, markdown: str) -> None:
        self._add({"step": step, "text": markdown, "tag": tag})

    def state_dict(self) -> dict[str, Any]:
        return {"entries": self._given}

    def resume(self, state: Mapping[str, Any], *, step: int) -> str:
        given = state.get("entries", 0)
        if type(given) is not int or given < 0:
            raise CheckpointError(f"invalid checkpoint: {given!r} entries of {self.name}")
        self._ends = self._read_ends()
        self.journal.truncate(self._ends[-1])
        lines = len(self._ends) - 1
        if not state and step:  # it was off until now: existing content is from before that
            given = lines
        self._given = min(given, lines)
        self._id, self._sent = self._read_marker()
        if self._sent > lines:  # the journal is missing or truncated: what the service has is unknown
            self._id, self._sent = None, 0
        self._wake()
        return f"{self.journal.path.name} has {lines:,} of {given:,} lines" if lines < given else ""

    def sync(self) -> None:
        self.journal.sync()

    def close(self, *, finished: bool) -> None:
        with self._changed:
            self._closing, self._finished = True, finished
            self._changed.notify()
        if self._thread is None:
            return
        self._thread.join(SOON)
        if self._thread.is_alive():
            last = f"the last {self._unsent():,} entries"
            self.run.warn(f"waiting for {self.name}, for up to {LAST:.0f} s, to get {last}")
            self._thread.join(LAST)
        if unsent := self._unsent():
            self.run.warn(f"{self.name} did not get the last {unsent:,} entries; resuming the run sends them")

    def _unsent(self) -> int:
        return max(self._given - self._sent, 0)

    def _add(self, entry: Entry, pictures: Tensor | None = None) -> None:
        with self._changed:
            line = self._given
            if line < len(self._ends) - 1 and _compared(self._read(line, line + 1)[0]) != _compared(entry):
                self._diverge()
            if line == len(self._ends) - 1:
                entry["time"] = time.time_ns() // 1_000_000
                content = (json.dumps(entry) + "\n").encode()
                self.journal.append(content)
                self._ends.append(self._ends[-1] + len(content))
            # a service that is unreachable for long must not fill the memory
            if pictures is not None and 0 <= line - self._sent < BATCH:
                self._pictures[line] = pictures
            self._given += 1
        self._wake()

    def _diverge(self) -> None:
        """Drop the remaining lines of the interrupted run, from which this one differs."""
        if self._sent > self._given:  # the service has some of them; nothing has been sent in this process
            self._id, self._sent = None, 0
            self._write_marker()  # first: a kill in between costs a new run, and no entries
        self.journal.truncate(self._ends[self._given])
        del self._ends[self._given + 1 :]

    # ------------------------------------------------------------------ the thread

    def _wake(self) -> None:
        with self._changed:
            if self._unsent() and self._thread is None and not self._closing:
                # daemon: a hanging service must not keep the process alive
                self._thread = threading.Thread(target=self._deliver, name=self.name, daemon=True)
                self._thread.start()
            self._changed.notify()

    def _deliver(self) -> None:
        opened = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unsent() or self._closing)
            if not self._unsent():
                break
            pause = PAUSE
            try:
                if not opened:
                    self._id = self.service.open(self.run, self._id)
                    opened = True
                self._send()
            except Exception as error:  # any error: training must not end because of logging
                if not self._warned:
                    self._warned = True
                    again = "training continues; missing entries are sent when it responds again"
                    self.run.warn(f"{self.name}: {format_error(error)}; {again}")
                if self._closing:
                    return
                pause = RETRY
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=pause)
        if opened:
            try:
                self.service.close(finished=self._finished)
            except Exception as error:
                self.run.warn(f"{self.name}: {format_error(error)}")

    def _send(self) -> None:
        start = self._sent
        entries = self._read(start, min(self._given, start + BATCH))
        if not entries:
            raise OSError(f"{self.journal.path} cannot be written")
        self.service.send([(entry, self._pictures.get(line)) for line, entry in enumerate(entries, start)])
        self._sent += len(entries)
        self._write_marker()
        for line in range(start, self._sent):
            self._pictures.pop(line, None)

    # ------------------------------------------------------------------ files

    def _read_ends(self) -> list[int]:
        """Where the complete lines of the journal end, after a 0. A kill may have truncated the last line."""
        ends, path = [0], self.journal.path
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(entry, dict):
                break
            ends.append(ends[-1] + len(line))
        return ends

    def _read(self, start: int, stop: int) -> list[Entry]:
        """Some lines of the journal; fewer if the disk has not taken all."""
        with self.journal.path.open("rb") as file:
            file.seek(self._ends[start])
            content = file.read(self._ends[stop] - self._ends[start])
        return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]

    def _read_marker(self) -> tuple[str | None, int]:
        try:
            read = json.loads(self.marker.read_text(encoding="utf-8"))
            return read["id"], int(read["sent"])
        except (OSError, ValueError, LookupError, TypeError):
            return None, 0

    def _write_marker(self) -> None:
        with atomic_write(self.marker) as file:
            file.write(json.dumps({"id": self._id, "sent": self._sent}).encode())


def parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config by dotted key; lists as JSON."""
    return {key: json.dumps(value) if isinstance(value, list) else value for key, value in flat(config) if value != {}}


def _compared(entry: Entry) -> str:
    """What is the same for two entries from the same moment of the same run."""
    values = entry.get("values", {})
    kept = {name: value for name, value in values.items() if not name.startswith(NOT_COMPARED)}
    # as text, in which a NaN equals itself
    return json.dumps({**entry, "values": kept, "time": 0}, sort_keys=True)
