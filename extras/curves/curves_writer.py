"""Keeps curves.png of a run up to date, at almost no cost, whatever goes wrong."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from logger.writers import Writer
from utils.files import atomic_write
from utils.run_folder import RunFolder

PICTURE = "curves.png"


class CurvesWriter(Writer):
    """Draws at the end of an epoch, unless it is shorter than PAUSE, and at the end of the run.

    monitor: "min NAME" or "max NAME", whose best epoch is marked; None: no mark. warn: shows a warning.
    """

    PAUSE = 5.0
    """Seconds between drawings: of the run's time, they take less than 1%."""

    def __init__(self, folder: Path, *, monitor: str | None, warn: Callable[[str], None]) -> None:
        self.folder = RunFolder(folder)
        self.monitor = monitor
        self.warn = warn
        self._stale = False
        self._drawn = time.perf_counter()
        self._failed = False

    def epoch(self, record: Mapping[str, float]) -> None:
        self._stale = True
        if time.perf_counter() >= self._drawn + self.PAUSE:
            self._draw()

    def flush(self) -> None:
        if self._stale:
            self._draw()

    def resume(self, state: Mapping[str, Any], *, step: int) -> str:
        self._stale = True  # metrics.jsonl may have been truncated
        return ""

    def _draw(self) -> None:
        self._stale = False
        path = self.folder.path / PICTURE
        try:
            content = curves_png(self.folder, self.monitor)
            if content is None:
                path.unlink(missing_ok=True)
            else:
                with atomic_write(path) as file:
                    file.write(content)
        except Exception as error:  # a full disk or a broken font must not end a run
            if not self._failed:
                self._failed = True
                reason = getattr(error, "strerror", None) or error
                self.warn(f"{PICTURE} cannot be written: {reason}; the training continues without it")
        self._drawn = time.perf_counter()


def curves_png(run: RunFolder, monitor: str | None) -> bytes | None:
    """The curves of a run as a PNG file; None before the first epoch is finished. Raises ImportError without Pillow."""
    records = run.epochs()
    if not records:
        return None
    from extras.curves.picture import draw

    folder = run.path.resolve()
    return draw(records, title=f"{folder.parent.name}/{folder.name}", monitor=monitor)
