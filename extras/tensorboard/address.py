"""Where a browser finds the curves of a run."""

import json
from collections.abc import Collection
from urllib.parse import quote


def curves_address(monitor: str | None, logged: Collection[str]) -> str:
    """URL of the curves page: unsmoothed, with the monitored value (or else the loss) pinned, training and validation.

    monitor: as in the config. logged: names of the values of an epoch. The port is TensorBoard's default.
    """
    name = monitor.split()[1].removeprefix("val_") if monitor else "loss"
    phases = {"train": name, "valid": f"val_{name}"}
    tags = [f"{name}/{phase}" for phase, value in phases.items() if value in logged]
    cards = json.dumps([{"plugin": "scalars", "tag": tag} for tag in tags], separators=(",", ":"))
    return f"http://localhost:6006/?smoothing=0&pinnedCards={quote(cards, safe=':,')}#timeseries"
