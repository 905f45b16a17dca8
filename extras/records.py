"""What run folders contain: the values in metrics.jsonl and which of them share a chart, and the keys of a config."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Record = Mapping[str, float | None]
"""A line of metrics.jsonl; None for values that were not finite."""

POSITION = ("epoch", "step")
SPEED = ("samples_per_second", "seconds")
RATES = "learning rate"
TRAIN, VALID = "train", "valid"


def charts(records: Sequence[Record]) -> dict[str, dict[str, str]]:
    """For each chart, the keys of its lines by label, as in {"loss": {"train": "loss", "valid": "val_loss"}}.

    The loss comes first and the learning rates last. Several validation sets are labelled "valid day" and so on.
    """
    names = list(dict.fromkeys(name for record in records for name in record if name not in (*POSITION, *SPEED)))
    rates = [name for name in names if name == "lr" or name.startswith("lr_")]
    metrics = [name for name in names if name not in rates]
    trained = [name for name in metrics if not name.startswith("val_")]
    found: dict[str, dict[str, str]] = {"loss": {}} if "loss" in metrics or "val_loss" in metrics else {}
    for name in metrics:
        chart, label = _place(name, trained)
        found.setdefault(chart, {})[label] = name
    if rates:
        found[RATES] = {name.removeprefix("lr").removeprefix("_") or "lr": name for name in rates}
    return found


def _place(name: str, trained: Iterable[str]) -> tuple[str, str]:
    """The chart of a metric, and its label there."""
    if not name.startswith("val_"):
        return name, TRAIN
    rest = name.removeprefix("val_")
    if rest in trained:
        return rest, VALID
    ends = [metric for metric in trained if rest.endswith(f"_{metric}")]
    if not ends:
        return rest, VALID
    metric = max(ends, key=len)
    return metric, f"{VALID} {rest.removesuffix(f'_{metric}')}"


def needs_log_scale(values: Iterable[float], factor: float = 1000) -> bool:
    """Whether finite values differ by more than this factor: on a linear scale, most of such a curve looks flat."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / factor > min(finite)


def best_of(values: Iterable[float | None], monitor: str) -> tuple[int, float] | None:
    """Index and value of the best, the first of equals. monitor: "min NAME" or "max NAME"."""
    sign = 1 if monitor.startswith("min") else -1
    finite = [(place, value) for place, value in enumerate(values) if value is not None and math.isfinite(value)]
    return min(finite, key=lambda pair: sign * pair[1], default=None)


def value_text(value: Any) -> str:
    """A value of a config or of a file's metadata as text: plain, or as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested objects, by dotted key. An empty object is a value."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
