"""What several tests look at."""

import json
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from base.base_trainer import BaseTrainer
from utils import checkpoint
from utils.registry import REGISTRIES, TRAINERS, WRITERS, Registry
from utils.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
Json = dict[str, Any]
Fit = Callable[..., train.Result]
"""The fixture of this name."""
PATIENCE = 900
"""Seconds to wait for a process or a page; only a hanging process reaches it, however busy the machine is."""
TIMES = ("samples_per_second", "seconds", "memory/process_MB", "memory/accelerator_MB")
"""Figures of time and memory, which no two runs have in common."""


def lines(run: Path) -> list[Json]:
    """metrics.jsonl without the figures of time."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def needs_extra(*folders: str) -> pytest.MarkDecorator:
    """For a test of what folders of extras/ do, beside what it is about: a minimal project has none."""
    missing = [folder for folder in folders if not (ROOT / "extras" / folder).is_dir()]
    return pytest.mark.skipif(bool(missing), reason=f"needs extras/{', extras/'.join(missing)}")


def keep_on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator: the host does not read a loss or a count in each step; they stay tensors."""
    for module in ("base.training.metrics", "base.training.loss"):
        monkeypatch.setattr(f"{module}.is_read_at_once", lambda _: False)


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars as (step, value), without those of time."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag not in TIMES]
    assert tags, f"{run} has no curves: its config says tensorboard=false"
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def state(run: Path, name: str = "last.pth") -> Json:
    return checkpoint.read(run / "checkpoints" / name)


def copy_run(run: Path, folder: Path) -> Path:
    """A copy of a run; names of one checkpoint file are links to one file in it too."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", str(run), str(folder)], check=True)
    return folder / run.name


def resumed(run: Path, folder: Path, step: int | None = None) -> Path:
    """A copy of a run, resumed from its checkpoint of this step, or from one in the middle."""
    steps = sorted((copy_run(run, folder / "copy") / "checkpoints").glob("step-*.pth"))
    half = steps[len(steps) // 2] if step is None else steps[0].with_name(f"step-{step:08}.pth")
    copy = train.main(["-r", str(half)]).run_dir
    assert state(copy)["config"] == state(run)["config"]
    return copy


def same(left: Any, right: Any) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(left, torch.Tensor) and left.is_sparse:
        return isinstance(right, torch.Tensor) and right.is_sparse and same(left.to_dense(), right.to_dense())
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def fork(run: Path, step: int) -> Path:
    """A copy of a run that was killed without a checkpoint after this step; its logs are those of the whole run."""
    copy = run.with_name("20000101-000000")
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").iterdir():
        if path.name in ("last.pth", "best.pth") or int(path.stem.removeprefix("step-")) > step:
            path.unlink()
    RunFolder(copy).write_outcome("")
    return copy


def equal(left: Path, right: Path) -> None:
    """Two runs have the same states and the same metrics.jsonl, figures of time and the configs (workers) aside."""
    one, other = state(left), state(right)
    for name in one.keys() - {"writers", "config"}:
        assert same(one[name], other[name]), name
    assert lines(left) == lines(right)


def identical(left: Path, right: Path) -> None:
    """As ``equal``, and with the same curves in TensorBoard."""
    equal(left, right)
    assert repr(curves(left)) == repr(curves(right))  # as text: NaN is equal to NaN


@contextmanager
def temporarily(registry: Registry, *components: Callable[..., Any]) -> Iterator[None]:
    """Register these until the block is left, in place of those of the same names, which a project may have."""
    before = {component.__name__: registry.own().get(component.__name__) for component in components}
    for name, component in zip(before, components, strict=True):
        if before[name] is not None:
            registry.unregister(name)
        registry.register(component)
    try:
        yield
    finally:
        for name, previous in before.items():
            registry.unregister(name)
            if previous is not None:
                registry.register(previous)


def registering(*of_kinds: tuple[Any, ...], scope: Any = "function") -> Any:
    """A fixture that registers components for each test of a file. of_kinds: each a registry, and its components."""

    @pytest.fixture(autouse=True, scope=scope)
    def registered() -> Iterator[None]:
        with ExitStack() as stack:
            for registry, *components in of_kinds:
                stack.enter_context(temporarily(registry, *components))
            yield

    return registered


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code in a page of the documentation."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@contextmanager
def own_components() -> Iterator[None]:
    """What is registered inside the block, and modules that are made in the users' folders, are gone after it."""
    before = {registry: registry.own().keys() for registry in (*REGISTRIES.values(), WRITERS)}
    modules = set(sys.modules)
    try:
        yield
    finally:
        for registry, names in before.items():
            for name in registry.own().keys() - names:
                registry.unregister(name)
        for name in sys.modules.keys() - modules:
            if name.partition(".")[0] in ("model", "data_loader", "trainer"):
                del sys.modules[name]


def make_module(path: str, text: str, page: str) -> None:
    """Run a file of a page of the documentation as the module that it would be in the project."""
    module = types.ModuleType(path.removesuffix(".py").replace("/", "."))
    sys.modules[module.__name__] = module  # where pickle, dataclasses and worker processes look for it
    exec(compile(text, f"{page}: {path}", "exec"), vars(module))


def registering_page(page: Path) -> Any:
    """A fixture that runs the Python of a page for each test of a file, and registers what it defines."""

    @pytest.fixture(autouse=True)
    def registered() -> Iterator[None]:
        with own_components():
            for number, block in enumerate(blocks(page, "python")):
                exec(compile(block, f"docs/{page.name}, block {number}", "exec"), {"__name__": f"{page.stem}_{number}"})
            yield

    return registered


def copy_project(folder: Path) -> Path:
    """A copy of the project in a folder, without its environment, runs and data."""
    left_out = shutil.ignore_patterns(".git", ".venv", "saved", "__pycache__", ".*_cache", ".hypothesis")

    def ignored(folder: str, names: list[str]) -> set[str]:
        return left_out(folder, names) | ({"data"} if Path(folder) == ROOT else set())  # not base/data

    return shutil.copytree(ROOT, folder / "project", ignore=ignored)


def extended(mixin: type[Any]) -> list[type[Any]]:
    """Every registered trainer with the methods of a class before its own, under its own name."""
    return [types.new_class(name, (mixin, trainer)) for name, trainer in TRAINERS.own().items()]


def forgetful(part: str) -> type[Any]:
    """A trainer that does not load this part of a checkpoint: it stays as it is at the start of a run."""

    class Forgetful(BaseTrainer):
        def load_state_dict(self, state: dict[str, Any], source: Path) -> None:
            super().load_state_dict({**state, part: self.state_dict()[part]}, source)

    return Forgetful
