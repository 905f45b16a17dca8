"""A run in an MLflow store: on a server, or in a local file.

Exact across a resume: MLflow keeps only one of several points with the same name, step, time and value, so even points
being sent when the process was killed appear once.
"""

import logging
import os
import re
from typing import Any

from torch import Tensor

from extras.writers.delivery import Delivery, Entry, Service, parameters
from logger.writers import RunInfo, Writer
from utils.extras import need_package
from utils.registry import WRITERS

MOST_METRICS, MOST_PARAMETERS, LONGEST = 1000, 100, 6000  # per request; and characters per parameter
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
"""Seconds until a server counts as hanging; MLflow defaults to 120 with seven retries. ``Delivery`` retries itself."""


@WRITERS.register
def mlflow(run: RunInfo, uri: str | None = None, experiment: str | None = None) -> Writer:
    """A run in an MLflow store.

    uri: of the store; null: the environment variable MLFLOW_TRACKING_URI, or else mlflow.db in the save folder.
    experiment: its name there; null: the config's name.
    """
    need_package("mlflow", 'the writer "mlflow" needs a package')
    return Delivery("mlflow", run, MLflow(uri, experiment or run.name))


class MLflow(Service):
    """uri: as of ``mlflow``."""

    def __init__(self, uri: str | None, experiment: str) -> None:
        self.uri = uri
        self.experiment = experiment
        self.client: Any = None
        self.run_id = ""

    def open(self, run: RunInfo, known: str | None) -> str:
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # which would log each table they create
            logging.getLogger(name).setLevel(logging.WARNING)
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        save_folder = run.folder.resolve().parent.parent
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
        local = None if uri else (save_folder / "mlflow").as_uri()
        self.client = MlflowClient(tracking_uri=uri or f"sqlite:///{save_folder / 'mlflow.db'}")
        if known is None:
            found = self.client.get_experiment_by_name(self.experiment)
            number = found.experiment_id if found else self.client.create_experiment(self.experiment, local)
            self.run_id = self.client.create_run(number, run_name=run.folder.name).info.run_id
        else:
            self.run_id = known
            self.client.update_run(known, status="RUNNING")
        self._describe(run)
        return self.run_id

    def send(self, entries: list[tuple[Entry, Tensor | None]]) -> None:
        from mlflow.entities import Metric
        from torchvision.utils import make_grid

        points = [
            Metric(_key(name), float(value), entry["time"], entry["step"])
            for entry, _ in entries
            for name, value in entry.get("values", {}).items()
        ]
        for start in range(0, len(points), MOST_METRICS):
            self.client.log_batch(self.run_id, metrics=points[start : start + MOST_METRICS])
        for entry, pictures in entries:
            if "text" in entry:
                self.client.log_text(self.run_id, entry["text"], f"{_key(entry['tag'])}/{entry['step']:08d}.md")
            elif pictures is not None:
                grid = make_grid(pictures.permute(0, 3, 1, 2), nrow=8, pad_value=255).permute(1, 2, 0)  # (H, W, 3)
                self.client.log_image(self.run_id, grid.numpy(), f"{_key(entry['image'])}/{entry['step']:08d}.png")

    def close(self, *, finished: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")

    def _describe(self, run: RunInfo) -> None:
        """Write the config's values as parameters. MLflow never changes one: values changed on resume become tags."""
        from mlflow.entities import Param, RunTag

        there = self.client.get_run(self.run_id).data.params
        values = {
            _key(name): str(value)[:LONGEST] for name, value in parameters(run.config).items() if value is not None
        }
        new = [Param(name, value) for name, value in values.items() if name not in there]
        for start in range(0, len(new), MOST_PARAMETERS):
            self.client.log_batch(self.run_id, params=new[start : start + MOST_PARAMETERS])
        changed = [
            RunTag(f"resumed with {name}", value) for name, value in values.items() if there.get(name, value) != value
        ]
        folder = RunTag("folder", str(run.folder.resolve()))
        self.client.log_batch(self.run_id, tags=[folder, *changed])


def _key(name: str) -> str:
    """A name in the characters that MLflow accepts."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII).strip("/ .") or "_"
