"""A config to make mistakes in, and how to read what is said of them."""

import json
from pathlib import Path
from typing import Any

from utils.config import load_config
from utils.errors import UserError
from utils.paths import PROJECT
from utils.registry import import_components

import_components()

OURS = {
    "RandomTensorLoader", "CIFAR10Loader", "ImageFolderLoader", "TwoLayerNet", "LeNet", "LinearRegression",
    "cross_entropy", "mse_loss", "Trainer",
}  # fmt: skip


def is_ours(path: Path) -> bool:
    """Whether a config is as the template's are: whole, with its schema, and made of the template's own components."""
    config = json.loads(path.read_text())
    if "extends" in config or "$schema" not in config:
        return False
    parts = [config.get("data_loader"), config.get("model"), config.get("loss"), config.get("trainer", {})]
    return {part.get("type", "Trainer") if isinstance(part, dict) else part for part in parts} <= OURS


BUNDLED = sorted(path for path in [PROJECT / "config.json", *PROJECT.glob("configs/*.json")] if is_ours(path))
"""The template's configs, without those that users add: tests/project has the tests of all configs."""


def without_references(path: Path) -> str:
    """A bundled config with what its data would tell it: until then, an argument that refers to it is not checked."""
    return path.read_text().replace('"${data.num_classes}"', "10")


def with_small_data(path: Path, folder: Path) -> list[str]:
    """Overrides that put the ten classes of small images in a folder in place of a config's images."""
    config = load_config(path).config
    if config.data_loader.type not in ("CIFAR10Loader", "ImageFolderLoader"):
        return []
    overrides = [f"data_loader.args.data_dir={folder}"]
    if "num_classes" in config.model.args:
        overrides.append("model.args.num_classes=10")
    if any("num_classes" in metric.args for metric in config.metrics):
        overrides += ["metrics=[]", "trainer.monitor=null", "trainer.early_stop=null"]
    return overrides


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
