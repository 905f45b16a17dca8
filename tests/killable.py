"""train.py as a process of its own, with the small data sets, that can kill itself where a test says so.

SIGNAL_AT=MODULE:NUMBER: this signal when a module begins to be imported.
KILL_AT=N: SIGKILL just before the N-th time that a file in the run folder is opened, renamed, linked, cut or removed.
PAUSE_AT=STEP: at this optimizer step make the file RUNS/paused, and wait as long as it is there.
DO_AT=STEP:RANK:WHAT: at this optimizer step, in this process of several, unless a launcher has started it again: "kill"
or "stop" itself (SIGKILL, SIGTERM), "fail", "hang", "spoil" a weight so that the loss is not a number, or "detach" one
from the loss. "misjudge": fail in the validation after this step, in the processes named, as in "5:0+1:misjudge".
LEAVE_OUT=PART: forget this part of each checkpoint that is loaded, as a careless project would.
"""

import os
import sys

from utils.signals import exit_on_signal

if __name__ == "__main__":
    exit_on_signal()

    def signal_at(module: str, number: int) -> None:
        """Send this process a signal when a module begins to be imported."""

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            if event == "import" and arguments[0] == module:
                os.kill(os.getpid(), number)

        sys.addaudithook(watch)

    if "SIGNAL_AT" in os.environ:
        name, _, signal_number = os.environ["SIGNAL_AT"].partition(":")
        signal_at(name, int(signal_number))

import runpy
import signal
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from base.base_trainer import BaseTrainer
from base.data.batches import StepBatches
from tests.averaged import AveragedTrainer
from tests.base.training.test_optimizers import LearntScale
from tests.helpers import ROOT, extended, forgetful
from tests.small_data import DRAWING, SmallSamples, SmallTensors
from tests.two_steps import TwoStepTrainer
from utils.registry import DATA_LOADERS, LOSSES, TRAINERS

FILE_EVENTS = {"open", "os.rename", "os.link", "os.truncate", "os.remove", "os.mkdir", "os.listdir"}


def kill_at(count: int, folder: str) -> None:
    """SIGKILL before the count-th event that touches a file below this folder."""
    seen, main = 0, os.getpid()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in FILE_EVENTS and os.getpid() == main and any(str(item).startswith(folder) for item in arguments[:2]):
            seen += 1
            if seen == count:
                os.kill(main, signal.SIGKILL)

    sys.addaudithook(watch)


class Pausing(BaseTrainer):
    """Waits in an optimizer step for as long as a file is there."""

    def optimizer_step(self, step: StepBatches) -> Tensor | float:
        marker = Path(os.environ["RUNS"]) / "paused"
        if self.progress.steps + 1 == int(os.environ["PAUSE_AT"]):
            marker.touch()
            while marker.exists():
                time.sleep(0.01)
        return super().optimizer_step(step)


class Troubled(BaseTrainer):
    """Comes to grief in an optimizer step."""

    def optimizer_step(self, step: StepBatches) -> Tensor | float:
        at, rank, what = os.environ["DO_AT"].split(":")
        if self.progress.steps + 1 == int(at) and os.environ.get("RANK", "0") == rank:
            if what in ("kill", "stop"):
                os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGTERM)
            if what == "fail":
                raise ZeroDivisionError("something of the user's went wrong")
            if what == "hang":
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # so that the launcher need not wait for it
                time.sleep(1000)
            if what == "detach":
                layer = next(each for each in self.experiment.model.modules() if isinstance(each, nn.Linear))
                layer.register_forward_hook(
                    lambda layer, inputs, _: functional.linear(inputs[0], layer.weight.detach(), layer.bias)
                )
            if what == "spoil":
                step.micro_batches = list(step.micro_batches)
                step.micro_batches[0].data[0].fill_(float("nan"))
        return super().optimizer_step(step)

    def validate(self) -> dict[str, float]:
        at, ranks, what = os.environ["DO_AT"].split(":")
        if what == "misjudge" and self.progress.steps == int(at) and os.environ["RANK"] in ranks.split("+"):
            raise ZeroDivisionError("something of the user's went wrong")
        return super().validate()


def extend_trainers(mixin: type[Any]) -> None:
    """Register every trainer again, with this class before it."""
    for trainer in extended(mixin):
        TRAINERS.unregister(trainer.__name__)
        TRAINERS.register(trainer)


if __name__ == "__main__":
    for loader in (SmallTensors, SmallSamples, *DRAWING):
        DATA_LOADERS.register(loader)
    TRAINERS.register(AveragedTrainer)
    TRAINERS.register(TwoStepTrainer)
    LOSSES.register(LearntScale)
    if "LEAVE_OUT" in os.environ:
        extend_trainers(forgetful(os.environ["LEAVE_OUT"]))
    if "PAUSE_AT" in os.environ:
        extend_trainers(Pausing)
    if "DO_AT" in os.environ and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        extend_trainers(Troubled)
    if "KILL_AT" in os.environ:
        kill_at(int(os.environ["KILL_AT"]), os.environ["RUNS"])
    sys.argv[0] = str(ROOT / "train.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
