"""The same jobs by the unchanged train.py: ``python dev/bench/ours.py ARGUMENTS OF TRAIN.PY``.

Prints the same line of JSON as hand_written.py. The clock is read around ``BaseTrainer.train`` and once after the first
step; nothing else is touched.
"""

import gc

if __name__ == "__main__":
    gc.disable()  # as train.py does, until cli.run

import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

import train
from base.base_trainer import BaseTrainer
from base.data.batches import StepBatches
from utils import cli

marks: dict[str, float] = {}
optimizer_step, train_all = BaseTrainer.optimizer_step, BaseTrainer.train


def first_step(self: BaseTrainer, step: StepBatches) -> Any:
    loss = optimizer_step(self, step)
    if not self.runtime.on_cpu:
        torch.accelerator.synchronize()
    marks["first_step"], marks["first_cpu"] = time.time(), time.process_time()
    BaseTrainer.optimizer_step = optimizer_step  # type: ignore[method-assign]
    return loss


def timed(self: BaseTrainer) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    train_all(self)
    if not self.runtime.on_cpu:
        torch.accelerator.synchronize()
    marks["loop"], marks["cpu"] = time.perf_counter() - start, time.process_time() - cpu


def main(argv: Sequence[str] | None = None) -> None:
    if sys.argv[2].startswith("dev/bench/configs/"):
        import dev.bench.components  # noqa: F401  (registers what these configs name)
    result = train.main(sys.argv[1:])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    if not next(result.model.parameters()).is_cpu:
        peak = torch.accelerator.max_memory_allocated() / 2**20
    print(json.dumps({**marks, "steps": result.steps, "peak": peak, "faults": usage.ru_minflt}))


if __name__ == "__main__":
    BaseTrainer.optimizer_step, BaseTrainer.train = first_step, timed  # type: ignore[method-assign]
    sys.exit(cli.run(main))
