"""Your components and configs: each is tested by existing. Put your own tests next to this file."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from utils.config import LoadedConfig, load_config
from utils.errors import DataError
from utils.extras import find_extra
from utils.paths import PROJECT, project_path
from utils.registry import REGISTRIES, import_components

import_components()

# a part that configs extend, but is none itself, can be in a folder of configs/
CONFIGS = [
    pytest.param(path, id=path.stem)
    for name in ("config.json", "configs/*.json")
    for path in sorted(PROJECT.glob(name))
]
HERE = ("runtime.device=cpu", "runtime.precision=fp32", "runtime.compile=false", "runtime.strategy=ddp")
"""Of the runtime: what every machine has."""
SHORT = (
    *HERE, "trainer.epochs=2", "trainer.steps_per_epoch=3", "trainer.save_every_steps=2", "trainer.keep_last=null",
    "trainer.writers=[]", "trainer.tensorboard=null", "trainer.verbosity=0",
    "lr_scheduler=null",  # which may be made for the length of the real run
)  # fmt: skip
TIMES = ("seconds", "samples_per_second")

pytestmark = pytest.mark.filterwarnings("default")  # of the libraries that a project uses


@contextmanager
def skipped_without_data() -> Iterator[None]:
    """The data need not be on every machine that runs the tests: a DataError or OSError, or what torchvision raises."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause and not isinstance(cause, DataError | OSError) and "download" not in str(cause):
            cause = cause.__cause__
        if cause is None:
            raise
        pytest.skip(f"its data is not on this machine: {error}")


def missing(loaded: LoadedConfig) -> list[str]:
    """What a config names, but this machine does not have: variables of the environment, data and weights."""
    config = loaded.config
    variables = re.findall(r"\$\{env:(\w+)\}", json.dumps(loaded.unresolved.value))  # without a default
    files = [config.data_loader.args.get("data_dir"), config.model.weights and config.model.weights.file]
    return [name for name in variables if name not in os.environ] + [
        name for name in files if isinstance(name, str) and not project_path(name).exists()
    ]


def values(result: train.Result) -> list[dict[str, Any]]:
    """What a run logged in each epoch, except times."""
    return [{name: value for name, value in epoch.items() if name not in TIMES} for epoch in result.history]


@pytest.mark.parametrize("path", CONFIGS)
def test_a_config_has_no_mistakes(path: Path) -> None:
    load_config(path, HERE, partial=True)


@pytest.mark.parametrize("path", CONFIGS)
def test_a_resumed_run_ends_like_one_that_was_never_stopped(path: Path, tmp_path: Path) -> None:
    """Six steps, and the last two again from the checkpoint in the middle of the second epoch: the same to the bit."""
    if absent := missing(load_config(path, SHORT, partial=True)):
        pytest.skip(f"not on this machine: {', '.join(absent)}")
    with skipped_without_data():
        whole = train.main(["-c", str(path), f"trainer.save_dir={tmp_path}", *SHORT])
    resumed = train.main(["-r", str(whole.run_dir / "checkpoints" / "step-00000004.pth")])
    assert whole.steps == resumed.steps == 6
    weights = resumed.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, weights[name]), f"{name} differs: is all that changes in stateful()?"
    assert values(whole) == values(resumed)


@pytest.mark.slow
@pytest.mark.skipif(find_extra("schema") is None, reason="a project without extras/ has no schema")
def test_editors_know_your_components() -> None:
    from extras.schema.json_schema import config_schema

    known = json.loads((PROJECT / "config.schema.json").read_text(encoding="utf-8"))["definitions"]
    now = json.loads(json.dumps(config_schema()))["definitions"]
    own = {f"{kind}.{name}" for kind, registry in REGISTRIES.items() for name in registry.own()}
    changed = [name for name in sorted(own & {*known, *now}) if known.get(name) != now.get(name)]
    assert not changed, f"run make schema, to update these in config.schema.json: {', '.join(changed)}"
