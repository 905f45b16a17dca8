"""Where the time of a step goes: ``python dev/bench/parts.py ARGUMENTS OF TRAIN.PY``.

Prints a line of JSON with the microseconds a training step spends in each part. The clock is read at the border of each
part, which adds about 2 us a step to the whole.
"""

import inspect
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train
from base.base_trainer import BaseTrainer
from base.data.sources import TensorSource
from base.training.metrics import Metrics
from base.training.training_log import TrainingLog
from trainer.trainer import Trainer
from utils.runtime import Runtime

seconds: defaultdict[str, float] = defaultdict(float)


def watch(owner: Any, name: str) -> None:
    """Add up the time spent in a method."""
    method = getattr(owner, name)

    def watched(*args: Any, **keys: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **keys)
        finally:
            seconds[f"{owner.__name__}.{name}"] += time.perf_counter() - start

    is_static = isinstance(inspect.getattr_static(owner, name), staticmethod)
    setattr(owner, name, staticmethod(watched) if is_static else watched)


def parts(steps: int) -> dict[str, float]:
    """Microseconds of a step, by part; what is left are the loop itself and its counting."""
    shares = {
        "data": seconds["TensorSource.batch"],
        "forward": seconds["Trainer.train_step"] - seconds["Runtime.backward"],
        "backward": seconds["Runtime.backward"],
        "optimizer": seconds["Runtime.zero_grad"] + seconds["Runtime.step"],
        "metrics": seconds["Metrics.update"],
        "logging": seconds["TrainingLog.step"] + seconds["BaseTrainer.log_interval"],
    }
    whole = seconds["BaseTrainer.train_epoch"]
    return {part: share / steps * 1e6 for part, share in {**shares, "rest": whole - sum(shares.values())}.items()}


if __name__ == "__main__":
    for owner, names in [
        (TensorSource, ["batch"]),
        (Trainer, ["train_step"]),
        (Runtime, ["backward", "zero_grad", "step"]),
        (Metrics, ["update"]),
        (TrainingLog, ["step"]),
        (BaseTrainer, ["log_interval", "train_epoch"]),
    ]:
        for name in names:
            watch(owner, name)
    # validation would count as data and metrics of the training
    found = train.main([*sys.argv[1:], "data_loader.args.validation_split=0", "trainer.monitor=min loss"])
    print(json.dumps(parts(found.steps)))
