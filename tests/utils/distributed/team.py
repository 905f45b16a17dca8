"""What a launcher starts in the tests: several runs one after the other in the same processes, which costs one start.

python -m torch.distributed.run ... -m tests.utils.distributed.team JOBS RESULTS

JOBS is a list of {"run": arguments of train.py} with, for a resume, {"of": a run folder or the number of an earlier
job, "step": where to resume} in a copy of that folder; or of {"test": arguments of test.py, "of": a run, "out": where
to leave its report}.
"""

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import train
from base.base_model import BaseModel
from tests.conftest import load_script
from tests.small_data import SmallSamples, SmallTensors
from utils.checkpoint.file import file_name
from utils.distributed.process_group import get_process_group
from utils.errors import TrainingError, UserError
from utils.registry import DATA_LOADERS, MODELS


class Restless(BaseModel):
    """Everything that is not a function of its input alone: dropout and running means."""

    def __init__(self, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten()
        )
        self.out = nn.Linear(4 * 15 * 15, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x))  # type: ignore[no-any-return]


class Idle(BaseModel):
    """A layer that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)  # type: ignore[no-any-return]


def copy_of(run: Path, step: int) -> Path:
    """A copy of a run in its own time, beside it; gives its checkpoint of a step."""
    number = len(list(run.parent.iterdir()))
    target = run.with_name(f"20200101-{number:06d}")
    shutil.copytree(run, target)
    return target / "checkpoints" / file_name(step)


def work(jobs: list[dict[str, Any]]) -> list[str]:
    """Run folders, or what was said instead."""
    results: list[str] = []
    for job in jobs:
        arguments, run = list(job.get("run", [])), Path()
        try:
            if "of" in job:
                run = Path(results[job["of"]] if isinstance(job["of"], int) else job["of"])
            if "test" in job:
                load_script("test").main(["-r", str(run), "--out", job["out"], *job["test"]])
                results.append(job["out"])
                continue
            if "of" in job:
                copied = functools.partial(copy_of, run, job["step"])
                arguments += ["-r", str(get_process_group().broadcast_object(copied))]
            results.append(str(train.main(arguments).run_dir))
        except (UserError, TrainingError) as error:
            results.append(f"{type(error).__name__}: {error}")
    return results


def register() -> None:
    DATA_LOADERS.register(SmallTensors)
    DATA_LOADERS.register(SmallSamples)
    MODELS.register(Restless)
    MODELS.register(Idle)


if __name__ == "__main__":
    register()
    torch.set_num_threads(1)
    get_process_group().connect(60)
    found = work(json.loads(Path(sys.argv[1]).read_text()))
    if get_process_group().is_main_process:
        Path(sys.argv[2]).write_text(json.dumps(found))
    get_process_group().finish()
    get_process_group().exit(0)
