"""What the tests share: small data made here, runs in a temporary folder, nothing from the network.

torch and the project are imported where they are used: the process that only hands out the tests needs neither.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

# before numpy and torch are imported, and for every process that a test starts: one thread each
os.environ["OMP_NUM_THREADS"] = "1"
# whatever the shell says: else each process that a test starts would compile the project again
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest

if TYPE_CHECKING:
    import train

sys.dont_write_bytecode = False
ROOT = Path(__file__).resolve().parent.parent


def load_script(name: str) -> ModuleType:
    """A script of the project's folder as a module; test.py would be taken for Python's own package of that name."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# the files that take longest, the longest first; a file that is missing here, or is gone, does no harm
LONGEST = (
    "distributed/test_processes_fail", "tensorboard/test_browser", "test_commands", "distributed/test_processes",
    "test_deletable", "docs/test_recipes_models", "test_exactness", "tensorboard/test_board", "sweep/test_sweep",
    "docs/test_recipes_tasks", "test_signals", "report/test_report", "test_streams", "compare/test_compare",
    "base/test_training", "training/test_resume",
)  # fmt: skip


ALL_SLOW = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.slow", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without the slow tests a file that has no others is not imported: much of the time of the rest would be that."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    return ALL_SLOW.search(collection_path.read_text(encoding="utf-8")) is not None or None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For -n auto: one more than there are cores, as many tests wait for processes that they start."""
    return (os.cpu_count() or 1) + int(config.option.markexpr != "not slow")


def pytest_configure(config: pytest.Config) -> None:
    """Start one server that forks processes for all processes of pytest: each would import all packages for its own."""
    starts_others = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if starts_others and config.option.markexpr != "not slow":
        from tests import forked

        os.environ[forked.VARIABLE] = forked.start()


def pytest_collection() -> None:
    from utils.registry import import_components

    import_components()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, then those with slow tests: no process is left with a long one while the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def rank(item: pytest.Item) -> tuple[int, bool]:
        path = item.path.with_suffix("").as_posix()
        return next(
            (place for place, end in enumerate(LONGEST) if path.endswith(end)), len(LONGEST)
        ), item.path not in slow

    items.sort(key=rank)


@pytest.fixture
def without_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has none."""
    import torch

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)


@pytest.fixture(autouse=True, scope="session")
def _no_waste() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_waste(patch)
        yield


def leave_out_waste(patch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of a short run's time and what hardly any test looks at.

    Processes that tests start have it all, unless they call this.
    """
    from utils.environment import git_state
    from utils.extras import find_extra

    patch.setattr(os, "fsync", lambda _: None)  # the machine will not lose its power
    patch.setattr(importlib.metadata, "version", functools.cache(importlib.metadata.version))
    patch.setattr("utils.environment.git_state", functools.cache(git_state))
    patch.setattr("base.outputs.find_extra", lambda name: None if name == "curves" else find_extra(name))


SETTINGS: dict[str, Any] = {"tensorboard": False}
"""Of the trainer, in every small config of a test."""


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that looks at TensorBoard's files: runs of the small config write them."""
    monkeypatch.setitem(SETTINGS, "tensorboard", True)


@pytest.fixture
def curves_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that looks at curves.png: runs draw it."""
    from utils.extras import find_extra

    monkeypatch.setattr("base.outputs.find_extra", find_extra)


@pytest.fixture(autouse=True, scope="module")
def _blank_report_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Empty files in place of the pictures in test.py's report, which take most of its time.

    A file of tests that looks at them has REPORT_PICTURES = True, a single test the fixture ``report_pictures``.
    """
    from utils.extras import find_extra

    report: Any = find_extra("report")
    if report is None or getattr(request.module, "REPORT_PICTURES", False):
        yield
        return
    write = report.EvaluationReport.write

    @functools.wraps(write)
    def write_blank(*arguments: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("extras.drawing.png", lambda _: b"")
            write(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.EvaluationReport, "write", write_blank)
        yield


@pytest.fixture
def report_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that looks at the pictures in test.py's report."""
    from extras.report.evaluation_report import EvaluationReport

    monkeypatch.setattr(EvaluationReport, "write", inspect.unwrap(EvaluationReport.write))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Sums in one order, whatever the machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR10's official layout with 100 training and 40 test images, each class in a colour of its own.

    Beside it lie images of the same classes as files, a folder a class.
    """
    import numpy as np

    from tests.small_data import write_images

    folder = tmp_path_factory.mktemp("data")
    write_images(folder, {f"{part}/class {label}": 8 for part in ("train", "test") for label in range(10)})
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    random = np.random.default_rng(0)
    for name, count in [*((f"data_batch_{i}", 20) for i in range(1, 6)), ("test_batch", 40)]:
        labels = [i % 10 for i in range(count)]
        noise = random.integers(0, 60, (count, 3072))
        data = (noise + 19 * np.array(labels)[:, None]).astype(np.uint8)
        with (batches / name).open("wb") as file:
            pickle.dump({"data": data, "labels": labels, "batch_label": name, "filenames": [""] * count}, file)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    with (batches / "batches.meta").open("wb") as file:
        pickle.dump({"label_names": names, "num_cases_per_batch": 20, "num_vis": 3072}, file)
    return folder


@pytest.fixture
def own_cifar10(monkeypatch: pytest.MonkeyPatch, cifar10_folder: Path) -> Path:
    """The small CIFAR10, whose md5 sums are not the real ones."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_, **__: True)
    return cifar10_folder


def small_config(folder: Path, **keys: Any) -> Path:
    """A small classification on random tensors that trains in a blink; the keywords replace its keys."""
    from utils.schema import are_several

    config: dict[str, Any] = {
        "name": "small",
        "data_loader": {
            "type": "RandomTensorLoader",
            "args": {
                "num_samples": 50,
                "num_test_samples": 20,
                "input_shape": [6],
                "num_classes": 3,
                "batch_size": 8,
                "validation_split": 10,
            },
        },
        "model": {"type": "TwoLayerNet", "args": {"in_features": 6, "hidden_features": 5, "out_features": 3}},
        "loss": "cross_entropy",
        "metrics": ["accuracy"],
        "optimizer": {"type": "SGD", "args": {"lr": 0.1}},
        "trainer": {
            "epochs": 2,
            "save_dir": str(folder / "saved"),
            "verbosity": 1,
            "log_every_steps": 2,
            **SETTINGS,
            "pictures_every": 0,  # half a second each time
        },
        "runtime": {"device": "cpu"},
    }

    def whole(value: dict[str, Any]) -> bool:
        return "type" in value or are_several(value)

    for key, value in keys.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) and not whole(value) else value
    if isinstance(config["trainer"], dict):  # never in the project's own folder
        config["trainer"] = {**config["trainer"], "save_dir": config["trainer"].get("save_dir", str(folder / "saved"))}
    path = folder / "config.json"
    path.write_text(json.dumps(config, indent=2))
    return path


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Writes the small config, with some keys replaced."""
    return functools.partial(small_config, tmp_path)


@pytest.fixture
def fit(write_config: Callable[..., Path]) -> Callable[..., train.Result]:
    """Train the small config with some keys replaced; overrides come after them."""

    import train

    def run(*overrides: str, **keys: Any) -> train.Result:
        return train.main(["-c", str(write_config(**keys)), *overrides])

    return run
