"""A run's checkpoints during training: written by a background thread, keeping the newest and the best."""

import contextlib
import shutil
import threading
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from utils.checkpoint.file import DATA, file_name, is_copy, read_file, staged, step_files, step_of, verify, write
from utils.checkpoint.loading import saved_progress
from utils.errors import CheckpointError
from utils.files import link
from utils.paths import display_path

ASIDE = "set-aside"


@dataclass(eq=False)
class Checkpointer:
    """Writes the checkpoints of a run in a background thread; keeps the newest and the best.

    keep_last: how many of the newest to keep; None: all. The best and the newest are never removed.
    main: whether this is the process that writes; in others nothing happens, unless a subclass sets ``writes``.
    warn: called with a message if a save fails; training continues, and the next save tries again.
    before_commit: called in the thread before a checkpoint becomes valid, to flush files that it refers to.
    """

    folder: Path
    _: KW_ONLY
    keep_last: int | None
    warn: Callable[[str], None]
    main: bool = True
    before_commit: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.writes = self.main
        self.failure: str | None = None
        self._prune_failure = self._warned_of = ""
        self._join: Callable[[], None] | None = None

    def save(self, step: int, state: dict[str, Any], *, best_step: int | None) -> None:
        """Copy the state and return; a thread writes it while training continues. Waits for the previous save first."""
        if not self.writes:
            return
        self.wait()
        copy = self._copy(state)
        self.failure = None
        thread = threading.Thread(target=self._write, args=(step, copy, best_step), name="checkpoint")
        self._join = thread.join
        try:
            thread.start()
        except RuntimeError:  # no more threads, as by ulimit -u
            self._join = lambda: None
            self._write(step, copy, best_step)

    def wait(self) -> bool:
        """Wait for the last save, and warn if it failed. Returns whether it is on disk."""
        if self._join is not None:
            self._join()
            self._join = None
            if self.failure:
                others = "the older checkpoints are intact" if self.folder.parent.is_dir() else "the run folder is gone"
                self.warn(f"{self.failure}; {others}")
            if self._prune_failure != self._warned_of:  # once, not after each save
                self.warn(self._prune_failure)
                self._warned_of = self._prune_failure
        return self.failure is None

    def resume(self, source: Path, step: int, *, best_step: int | None) -> None:
        """Continue from the checkpoint of a step. Later checkpoints, of the abandoned branch, move to set-aside/."""
        if not self.main:
            return
        for name in ("last.pth", "best.pth"):
            self._repair_from(self.folder / name)
        step_file = self.folder / file_name(step)
        link(step_file, source)  # may be last.pth, or a copy, if the step file itself is gone

        # newest first: if this is killed halfway, the newest remaining checkpoint still has all of its logs
        later = [path for path in step_files(self.folder) if step_of(path) > step]
        for path in later:
            self._set_aside(path)
        if later:
            self.warn(f"checkpoints after step {step} are now in {display_path(self.folder / ASIDE)}")

        link(self.folder / "last.pth", step_file)
        self._restore_best(best_step)

    # ------------------------------------------------------------------ in the thread

    def _write(self, step: int, state: Any, best_step: int | None) -> None:
        failing = f"checkpoint {self.folder / file_name(step)} could not be written"
        try:
            self._store(step, state)
            if self.main:
                failing = f"last.pth or best.pth in {self.folder} could not be updated"
                self._update_links(step, best_step)
        except Exception as error:  # any error: a missing checkpoint must not go unnoticed
            self.failure = f"{failing}: {_reason(error)}"
            return
        if self.main:
            try:
                self._prune(step, best_step)
            except OSError as error:
                self._prune_failure = f"an older checkpoint could not be removed: {error}"

    def _copy(self, state: dict[str, Any]) -> Any:
        """What the thread needs, in memory that training does not modify."""
        return staged(state)

    def _store(self, step: int, state: Any) -> None:
        """Write what ``_copy`` returned. When this returns, the checkpoint can be loaded."""
        self.folder.mkdir(exist_ok=True)
        self.before_commit()
        write(self.folder / file_name(step), state)

    def _update_links(self, step: int, best_step: int | None) -> None:
        link(self.folder / "last.pth", self.folder / file_name(step))
        best = self.folder / "best.pth"
        # an earlier best checkpoint is linked already; if links are copies, its step file may have been damaged since
        if best_step == step or (best_step is not None and not best.exists()):
            link(best, self.folder / file_name(best_step))

    def _prune(self, step: int, best_step: int | None) -> None:
        """Remove checkpoints that are not to be kept, and tensors of sharded checkpoints whose file is gone."""
        kept = {file_name(kept) for kept in (step, best_step) if kept is not None}
        if self.keep_last is not None:
            for path in step_files(self.folder)[self.keep_last :]:
                if path.name not in kept:
                    path.unlink(missing_ok=True)

        for data in self.folder.glob("step-*/"):
            name = DATA.sub(r"\1.pth", data.name)
            files = (self.folder / name, self.folder / ASIDE / name)
            if DATA.fullmatch(data.name) and name not in kept and not any(path.exists() for path in files):
                shutil.rmtree(data, ignore_errors=True)

    # ------------------------------------------------------------------ on resume

    def _repair_from(self, name: Path) -> None:
        """If last.pth or best.pth is intact but its step file is damaged or missing, recreate the step file from it."""
        with contextlib.suppress(CheckpointError):
            if is_copy(name):
                step_file = self.folder / file_name(saved_progress(read_file(name), name)["steps"])
                if not _is_intact(step_file):
                    link(step_file, name)

    def _restore_best(self, step: int | None) -> None:
        """Link best.pth to the best checkpoint again. If that is gone or there is none, warn and set best.pth aside."""
        best = self.folder / "best.pth"
        step_file = None if step is None else self.folder / file_name(step)
        if step_file and step_file.exists() and best.exists() and best.samefile(step_file):
            return
        if step_file and _is_intact(step_file):
            link(best, step_file)
            return
        why = "no epoch so far counts as the best"
        if step_file:
            why = f"the best checkpoint so far, of step {step}, was not kept (trainer.keep_last) or is missing"
        if best.exists():
            self.warn(f"{why}; the former best.pth is now {display_path(self._set_aside(best))}")
        elif step_file:
            self.warn(f"{why}; best.pth is written again after the next better epoch")

    def _set_aside(self, path: Path) -> Path:
        """Move a checkpoint to the folder of those that no longer count. Returns where it is."""
        aside = self.folder / ASIDE
        aside.mkdir(exist_ok=True)
        target = aside / path.name
        if target.exists() and _is_intact(target) and not _is_intact(path):
            target = target.with_name(f"{target.name}.damaged")
        return path.replace(target)


def _is_intact(path: Path) -> bool:
    with contextlib.suppress(CheckpointError):
        verify(path)
        return True
    return False


def _reason(error: BaseException) -> str:
    """Why a write failed: torch wraps system errors, such as a full disk, in its own."""
    while error.__context__ is not None and not isinstance(error, OSError):
        error = error.__context__
    return str(error).partition("\n")[0]
