"""How long a checkpoint holds up the training, for models of three sizes, and how long a blocking save would.

python bench/checkpoint_stall.py

The optimizer is AdamW: a checkpoint holds three numbers a parameter. Figures are medians, in milliseconds:
copy: the state copied in memory and nothing else; stall: what the training waits for; during: what the steps beside the
write take longer, all together, since it needs a processor too; blocking: the same file written while training waits.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from utils import checkpoint
from utils.checkpointer import Checkpointer

WIDTHS = {1: 500, 10: 1580, 100: 5000}
"""Width of four square layers, by millions of parameters."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    options = parser.parse_args()
    print("parameters      file      copy     stall    during  blocking")
    for width in WIDTHS.values():
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            measure(Path(folder), width, options.repeats)


def measure(folder: Path, width: int, repeats: int) -> None:
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(4)))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(1, width)).sum().backward()
        optimizer.step()

    def state() -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    keeper = Checkpointer(folder, keep_last=1, warn=print)
    usual = statistics.median(timed(step) for _ in range(20))
    stalls, extras, copies, blocking = [], [], [], []
    held: list[Any] = []  # copies that stay, so that each one goes into fresh memory, as a checkpoint's does
    for count in range(1, repeats + 1):
        stalls.append(timed(lambda: keeper.save(count, state(), best_step=None)))  # noqa: B023
        extras.append(beside(step, usual))
        keeper.wait()
        copies.append(timed(lambda: held.append(checkpoint.snapshot(state()))))
        blocking.append(timed(lambda: checkpoint.write(folder / "blocking.pth", state())))
    size = (folder / "blocking.pth").stat().st_size
    parameters = sum(parameter.numel() for parameter in model.parameters())
    times = "".join(f"{statistics.median(found) * 1000:10.1f}" for found in (copies, stalls, extras, blocking))
    print(f"{parameters / 1e6:8.1f} M{size / 1e6:7.0f} MB{times}", flush=True)


def beside(step: Callable[[], None], usual: float) -> float:
    """How much longer the steps take that run while a checkpoint is written."""
    extra = 0.0
    while any(thread.name == "checkpoint" for thread in threading.enumerate()):
        extra += max(0.0, timed(step) - usual)
    return extra


def timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
