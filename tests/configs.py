"""A config to make mistakes in, and how to read what is said of them."""

import json
from pathlib import Path
from typing import Any

from utils.config import load_config
from utils.errors import UserError
from utils.paths import PROJECT
from utils.registry import import_components

import_components()

BUNDLED = sorted([PROJECT / "config.json", *PROJECT.glob("configs/*.json")])

SOUND = """\
{
  "name": "digits",
  "data_loader": {
    "type": "RandomTensorLoader",
    "args": {"num_samples": 60, "input_shape": [8], "num_classes": 3, "batch_size": 10, "validation_split": 0.2}
  },
  "model": {"type": "TwoLayerNet", "args": {"in_features": 8, "hidden_features": 4, "out_features": 3}},
  "loss": "cross_entropy",
  "metrics": ["accuracy", {"type": "top_k_accuracy", "args": {"k": 2}}],
  "optimizer": {"type": "SGD", "args": {"lr": 0.01, "momentum": 0.9}},
  "lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.05}, "interval": "step"},
  "trainer": {"epochs": 2, "steps_per_epoch": 4, "monitor": "min val_loss"},
  "runtime": {"device": "cpu"}
}
"""


def sound() -> dict[str, Any]:
    """The config as a value."""
    value: dict[str, Any] = json.loads(SOUND)
    return value


def message(path: Path, *overrides: str) -> str:
    """What is said of a config; empty if it is sound."""
    try:
        load_config(path, overrides)
    except UserError as error:
        return str(error)
    return ""
