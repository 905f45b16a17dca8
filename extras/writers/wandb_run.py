"""A run in Weights & Biases: online, or offline in the run's folder, for ``wandb sync``.

Each start is a segment of one run. A segment being written when the process was killed may have points that the journal
does not know about yet: those of the last second can then appear twice. Nothing else can.
"""

import html
import secrets
from typing import Any, Literal

from torch import Tensor

from extras.writers.delivery import Delivery, Entry, Service, parameters
from logger.writers import RunInfo, Writer
from utils.extras import need_package
from utils.registry import WRITERS


@WRITERS.register
def wandb(
    run: RunInfo,
    project: str | None = None,
    entity: str | None = None,
    mode: Literal["online", "offline"] | None = None,
) -> Writer:
    """A run of Weights & Biases.

    project: null: the config's name.
    entity: a user or a team; null: yours.
    mode: null: the environment variable WANDB_MODE, or else online.
    """
    need_package("wandb", 'the writer "wandb" needs a package')
    return Delivery("wandb", run, WeightsAndBiases(project or run.name, entity, mode))


class WeightsAndBiases(Service):
    """Arguments as for ``wandb``."""

    def __init__(self, project: str, entity: str | None, mode: Literal["online", "offline"] | None) -> None:
        self.project = project
        self.entity = entity
        self.mode = mode
        self.session: Any = None

    def open(self, run: RunInfo, known: str | None) -> str:
        import wandb as library

        self.session = library.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            id=known or secrets.token_hex(4),
            name=run.folder.name,
            dir=str(run.folder),
            resume="allow",
            config=parameters(run.config),
            allow_val_change=True,
            # without a terminal UI of its own, and without capturing ours
            settings=library.Settings(silent=True, console="off"),
        )
        return str(self.session.id)

    def send(self, entries: list[tuple[Entry, Tensor | None]]) -> None:
        import wandb as library

        for entry, pictures in entries:
            values = dict(entry.get("values", {}))
            if "text" in entry:
                values[entry["tag"]] = library.Html(f"<pre>{html.escape(entry['text'])}</pre>")
            elif pictures is not None:
                arrays = [picture.numpy() for picture in pictures]  # (H, W, 1 or 3)
                values[entry["image"]] = [
                    library.Image(array[:, :, 0] if array.shape[2] == 1 else array) for array in arrays
                ]
            if values:  # points of one step form one row
                self.session.log(values, step=entry["step"])

    def close(self, *, finished: bool) -> None:
        self.session.finish(exit_code=0 if finished else 1)
