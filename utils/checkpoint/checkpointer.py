"""The checkpoints of a run while it trains: written by a thread beside it, the best and the newest ones kept."""

import contextlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.checkpoint.file import DATA, file_name, read, snapshot, step_files, step_of, write
from utils.errors import CheckpointError
from utils.files import link

ASIDE = "set-aside"


class Checkpointer:
    """Keeps the newest checkpoints of a run and its best one; writes them in a thread of its own.

    keep_last: how many of the newest stay; None keeps all. The best one and the newest are never removed.
    before_commit: called in the thread before a checkpoint counts, to bring on disk what it refers to.
    warn: told of a save that failed; the run goes on and tries again at the next.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int | None,
        warn: Callable[[str], None],
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.keep_last = folder, keep_last
        self.warn, self.before_commit = warn, before_commit
        self.failure: str | None = None
        self._thread: threading.Thread | None = None

    def save(self, step: int, state: dict[str, Any], *, best_step: int | None) -> None:
        """Copy the state and return; it is written while training goes on. Waits for an earlier save first."""
        self.wait()
        copied = self._copy(state)
        self.failure = None
        self._thread = threading.Thread(target=self._write, args=(step, copied, best_step), name="checkpoint")
        self._thread.start()

    def resume(self, source: Path, step: int, *, best_step: int | None) -> None:
        """Go on from a checkpoint, of a step: later ones, of a course that is left, are set aside, not removed."""
        own = self.folder / file_name(step)
        link(own, source)  # which may be last.pth, or a copy, where the file itself is gone
        # newest first: a kill in between leaves a run whose newest checkpoint still has all of its logs
        later = [path for path in step_files(self.folder) if step_of(path) > step]
        for path in later:
            self._set_aside(path)
        if later:
            self.warn(f"{len(later)} checkpoints after step {step} are set aside in {self.folder / ASIDE}")
        link(self.folder / "last.pth", own)
        if best_step is not None:
            self._find_best(best_step)

    def wait(self) -> bool:
        """Wait until the last save is on disk, and report it if it failed. Whether it stands."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self.failure:
                self.warn(f"{self.failure}; the older checkpoints are whole")
        return self.failure is None

    def _write(self, step: int, state: Any, best_step: int | None) -> None:
        try:
            self._store(step, state)
            self._settle(step, best_step)
        except Exception as error:  # of whatever kind: a checkpoint that is not there must not pass unseen
            self.failure = f"checkpoint {self.folder / file_name(step)} could not be written: {_reason(error)}"

    def _copy(self, state: dict[str, Any]) -> Any:
        """What the thread needs, that training does not touch."""
        return snapshot(state)

    def _store(self, step: int, state: Any) -> None:
        """Write what ``_copy`` gave, so that the checkpoint stands."""
        self.folder.mkdir(exist_ok=True)
        self.before_commit()
        write(self.folder / file_name(step), state)

    def _settle(self, step: int, best_step: int | None) -> None:
        """Let the names stand for what they say, and remove what is not kept."""
        link(self.folder / "last.pth", self.folder / file_name(step))
        if best_step is not None:
            link(self.folder / "best.pth", self.folder / file_name(best_step))
        kept = {file_name(kept) for kept in (step, best_step) if kept is not None}
        if self.keep_last is not None:
            for path in step_files(self.folder)[self.keep_last :]:
                if path.name not in kept:
                    path.unlink(missing_ok=True)
        self._sweep(kept)

    def _sweep(self, kept: set[str]) -> None:
        """Remove the data of sharded checkpoints whose file has gone."""
        for data in self.folder.glob("step-*/"):
            name = DATA.sub(r"\1.pth", data.name)
            files = (self.folder / name, self.folder / ASIDE / name)
            if DATA.fullmatch(data.name) and name not in kept and not any(path.exists() for path in files):
                shutil.rmtree(data, ignore_errors=True)

    def _find_best(self, step: int) -> None:
        """Let best.pth stand for the best checkpoint again, or for none where that one was not kept."""
        name, own = self.folder / "best.pth", self.folder / file_name(step)
        if not own.exists() and name.exists():
            with contextlib.suppress(CheckpointError):
                if read(name, lambda _, shape: shape)["progress"]["steps"] == step:
                    link(own, name)
        if own.exists():
            link(name, own)
        elif name.exists():
            self._set_aside(name)
            self.warn(f"the best checkpoint so far, of step {step}, is not there; best.pth comes with the next best")

    def _set_aside(self, path: Path) -> None:
        aside = self.folder / ASIDE
        aside.mkdir(exist_ok=True)
        path.replace(aside / path.name)


class NoCheckpoints(Checkpointer):
    """For a process that leaves the writing to another one."""

    def save(self, step: int, state: dict[str, Any], *, best_step: int | None) -> None:
        pass

    def resume(self, source: Path, step: int, *, best_step: int | None) -> None:
        pass


def _reason(error: BaseException) -> str:
    """Why a write failed. torch wraps what the system said, a full disk say, into an error of its own."""
    while error.__context__ is not None and not isinstance(error, OSError):
        error = error.__context__
    return str(error).partition("\n")[0]
