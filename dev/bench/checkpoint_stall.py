"""How long a checkpoint holds up the training, for models of three sizes, and how long until it is on the disk.

python dev/bench/checkpoint_stall.py
python dev/bench/checkpoint_stall.py --checkpoint sharded
python -m torch.distributed.run --nproc-per-node 2 dev/bench/checkpoint_stall.py --checkpoint sharded --strategy fsdp

The optimizer is AdamW: a checkpoint holds three numbers a parameter. Figures are medians, in milliseconds, of the main
process: copy: the state copied in memory and nothing else; stall: what the training waits for; during: what the steps
beside the write take longer, all together, since it needs a processor too (of a single process only); written: from the
save until it is on disk, with nothing running beside it; read: until it is in memory again, every byte checked.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from torch import nn

from utils import checkpoint
from utils.checkpoint.checkpointer import Checkpointer
from utils.distributed import get_process_group
from utils.prepare import prepare_model, prepare_optimizer
from utils.runtime import Runtime
from utils.schema import RuntimeConfig

WIDTHS = {1: 500, 10: 1580, 100: 5000}
"""Width of four square layers, by millions of parameters."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--checkpoint", choices=("full", "sharded"), default="full")
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    options = parser.parse_args()
    process_group = get_process_group()
    settings = RuntimeConfig(device="cpu", strategy=options.strategy)
    runtime = Runtime(settings, full_states=options.checkpoint == "full")
    if process_group.is_main_process:
        print("parameters      file      copy     stall    during   written      read")
    for width in WIDTHS.values():
        with tempfile.TemporaryDirectory(dir=options.folder) as made:
            measure(Path(process_group.broadcast_object(lambda made=made: made)), width, options, runtime)  # type: ignore[misc]
            process_group.finish()
    process_group.exit(0)


def measure(folder: Path, width: int, options: argparse.Namespace, runtime: Runtime) -> None:
    process_group = runtime.process_group
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(4)))
    prepare_model(runtime, model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    prepare_optimizer(runtime, model, optimizer)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(1, width)).sum().backward()
        optimizer.step()

    def state() -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": {"steps": 1}}

    keeper = keeper_of(folder, model, options, runtime)
    usual = statistics.median(timed(step) for _ in range(10))
    found: dict[str, list[float]] = {name: [] for name in ("copy", "stall", "during", "written", "read")}
    held: list[Any] = []  # copies that stay, so that each one goes into fresh memory, as a checkpoint's does
    path = folder / checkpoint.file_name(1)
    for count in range(2, options.repeats + 2):
        found["stall"].append(timed(lambda: keeper.save(count, state(), best_step=None)))  # noqa: B023
        found["during"].append(beside(step, usual) if process_group.world_size == 1 else 0.0)
        keeper.wait()
        found["copy"].append(timed(lambda: held.append(checkpoint.snapshot(state()))))
        path = folder / checkpoint.file_name(count + 1000)
        found["written"].append(timed(lambda: kept(keeper, count + 1000, state())))  # noqa: B023
        process_group.broadcast_object(lambda: None)
        found["read"].append(timed(lambda: checkpoint.read(path, runtime.strategy.allocator(model, optimizer))))  # noqa: B023
        process_group.finish()
    if process_group.is_main_process:
        size = sum(file.stat().st_size for file in folder.rglob(f"{path.stem}*") if file.is_file())
        size += sum(file.stat().st_size for file in folder.glob(f"{path.stem}*/*"))
        times = "".join(f"{statistics.median(values) * 1000:10.1f}" for values in found.values())
        print(f"{4 * width * width / 1e6:8.1f} M{size / 1e6:7.0f} MB{times}", flush=True)


def keeper_of(folder: Path, model: nn.Module, options: argparse.Namespace, runtime: Runtime) -> Checkpointer:
    how: dict[str, Any] = {"keep_last": 1, "warn": print}
    if options.checkpoint == "full":
        return Checkpointer(folder, main=runtime.process_group.is_main_process, **how)
    from utils.checkpoint.sharded import ShardedCheckpointer

    names = {name for name, _ in model.named_parameters()}
    return ShardedCheckpointer(folder, **how, process_group=runtime.process_group, shared=names)


def kept(keeper: Checkpointer, step: int, state: dict[str, Any]) -> None:
    """Save a checkpoint and wait for it."""
    keeper.save(step, state, best_step=None)
    keeper.wait()


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
