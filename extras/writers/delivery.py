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
from collections import deque
from collections.abc import Mapping
from hashlib import blake2b
from itertools import islice
from typing import Any

from torch import Tensor

from extras.records import flat
from logger.writers import RunInfo, Writer
from utils.errors import CheckpointError
from utils.files import LogFile, atomic_write
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
        self._id: str | None = None
        self._sent = 0  # journal lines that the service has
        self._given = 0  # entries that belong to the run so far
        self._ahead: deque[tuple[Entry, int]] = deque()  # lines after the checkpoint, with their offsets
        self._waiting: deque[tuple[Entry, Tensor | None]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = self._finished = self._warned = False
        self._life = 0  # number of times the run has diverged from what was sent
        self._opened: int | None = None  # the value of _life when the service was opened
        self._open_id: str | None = None

    # ------------------------------------------------------------------ what is logged

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._add({"step": step, "values": dict(values)})

    def epoch(self, record: Mapping[str, float]) -> None:
        self._add({"step": int(record["step"]), "values": {"epoch": record["epoch"]}})

    def images(self, step: int, tag: str, pictures: Tensor) -> None:
        digest = blake2b(pictures.contiguous().numpy().tobytes(), digest_size=16).hexdigest()
        self._add({"step": step, "image": tag, "digest": digest}, pictures)

    def text(self, step: int, tag: str, markdown: str) -> None:
        self._add({"step": step, "text": markdown, "tag": tag})

    def state_dict(self) -> dict[str, Any]:
        return {"entries": self._given}

    def resume(self, state: Mapping[str, Any], *, step: int) -> str:
        given = state.get("entries", 0)
        if type(given) is not int or given < 0:
            raise CheckpointError(f"invalid checkpoint: {given!r} entries of {self.name}")
        lines, whole = self._read()
        self.journal.truncate(whole)
        if not state and step:  # it was off until now: existing content is from before that
            given = len(lines)
        lost = f"{self.journal.path.name} has {len(lines):,} of {given:,} lines" if len(lines) < given else ""
        self._given = min(given, len(lines))
        self._ahead = deque(lines[self._given :])
        run_id, sent = self._read_marker()
        if sent > len(lines):  # the journal is missing or truncated: what the service has is unknown
            run_id, sent = None, 0
        with self._changed:
            self._id, self._sent = run_id, sent
            self._waiting = deque((entry, None) for entry, _ in lines[self._sent : self._given])
        self._wake()
        return lost

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
            self.run.warn(
                f"waiting for {self.name}, for up to {LAST:.0f} s, to get the last {len(self._waiting):,} entries"
            )
            self._thread.join(LAST)
        if self._waiting:
            self.run.warn(
                f"{self.name} did not get the last {len(self._waiting):,} entries; resuming the run sends them"
            )

    def _add(self, entry: Entry, pictures: Tensor | None = None) -> None:
        self._given += 1
        if self._ahead:
            known, at = self._ahead[0]
            if _compared(known) == _compared(entry):
                self._ahead.popleft()
                if self._given <= self._sent:
                    return
                entry = known  # with its time
            else:
                self._diverge(at)
                self._append(entry)
        else:
            self._append(entry)
        with self._changed:
            # a service that is unreachable for long must not fill the memory
            self._waiting.append((entry, pictures if len(self._waiting) < BATCH else None))
        self._wake()

    def _append(self, entry: Entry) -> None:
        entry["time"] = time.time_ns() // 1_000_000
        self.journal.append((json.dumps(entry) + "\n").encode())

    def _diverge(self, at: int) -> None:
        """Handle that the run differs from the interrupted one. at: bytes of the journal that still belong to it."""
        self._ahead.clear()
        with self._changed:
            if self._sent < self._given:  # the service has none of what is dropped
                self.journal.truncate(at)
                return
            self._life += 1
            self._id, self._sent = None, 0
            self._write_marker()  # first: a kill in between costs a new run, and no entries
            self.journal.truncate(at)
            self._waiting = deque((entry, None) for entry, _ in self._read()[0])

    # ------------------------------------------------------------------ the thread

    def _wake(self) -> None:
        with self._changed:
            if self._waiting and self._thread is None and not self._closing:
                # daemon: a hanging service must not keep the process alive
                self._thread = threading.Thread(target=self._deliver, name=self.name, daemon=True)
                self._thread.start()
            self._changed.notify()

    def _deliver(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    break
            pause = PAUSE
            try:
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
        self._stop()

    def _send(self) -> None:
        with self._changed:
            batch, run_id, life = list(islice(self._waiting, BATCH)), self._id, self._life
        if self._opened != life:
            self._stop()
            self._open_id = self.service.open(self.run, run_id)
            self._opened = life
        self.service.send(batch)
        with self._changed:
            if life != self._life:  # meanwhile the run has diverged
                return
            self._id = self._open_id
            for _ in batch:
                self._waiting.popleft()
            self._sent += len(batch)
            self._write_marker()

    def _stop(self) -> None:
        if self._opened is not None:
            self._opened = None
            try:
                self.service.close(finished=self._finished)
            except Exception as error:
                self.run.warn(f"{self.name}: {format_error(error)}")

    # ------------------------------------------------------------------ files

    def _read(self) -> tuple[list[tuple[Entry, int]], int]:
        """The complete lines of the journal with their offsets, and the offset of the end of the last one.

        A kill may have truncated the last line.
        """
        found, at = [], 0
        path = self.journal.path
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(entry, dict):
                break
            found.append((entry, at))
            at += len(line)
        return found, at

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
