"""What does a step cost with several processes, beside the best loop that we can write by hand on torch's DDP?

OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 dev/bench/ddp.py --jobs two_layer lenet

Both sides run in turns in the same processes. Shown are medians, in brackets the smallest and the largest; and the
bytes that all processes of this machine sent, beside those of the gradients alone. They are counted on all network
interfaces: run it where nothing else talks, in a network namespace for instance.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.tensorboard import SummaryWriter

import train
from base.base_trainer import BaseTrainer
from dev.bench.hand_written import LeNet, Photographs, TwoLayerNet, save
from utils.distributed import get_process_group

BATCH = 64
Figures = dict[str, float]


def sent() -> int:
    """Bytes that have left this machine's interfaces, the one to itself included."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return sum(int(line.partition(":")[2].split()[8]) for line in lines)


def measured(steps: int, loop: Callable[[], Any]) -> Figures:
    """Per step: microseconds of the clock and of this process's processor time, and bytes of all processes."""
    dist.barrier()
    begun, cpu, bytes_before = time.perf_counter(), time.process_time(), sent()
    loop()
    seconds, used = time.perf_counter() - begun, time.process_time() - cpu
    dist.barrier()
    return {"us": seconds / steps * 1e6, "cpu": used / steps * 1e6, "bytes": (sent() - bytes_before) / steps}


def part(samples: Tensor) -> Tensor:
    """What this process takes of a batch."""
    rank, count = dist.get_rank(), dist.get_world_size()
    return samples[len(samples) * rank // count : len(samples) * (rank + 1) // count]


class ByHand:
    """A loop on torch's DDP: losses are read where it is cheapest, the first process logs its own and saves."""

    def __init__(self, model: nn.Module, optimizer: dict[str, Any], *, log_every: int) -> None:
        self.model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.optimizer = torch.optim.SGD(model.parameters(), **optimizer, fused=True)
        self.log_every = log_every

    def train(
        self,
        folder: Path,
        batches: Callable[[], Any],
        loss_of: Callable[[Tensor, Tensor], Tensor],
        *,
        epochs: int,
        schedule: OneCycleLR | None = None,
    ) -> None:
        first = dist.get_rank() == 0
        writer, step = SummaryWriter(folder) if first else None, 0
        for epoch in range(epochs):
            window = 0.0
            for inputs, targets in batches():
                self.optimizer.zero_grad()
                loss = loss_of(self.model(inputs), targets)
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                if schedule is not None:
                    schedule.step()
                window += loss.item()
                step += 1
                if step % self.log_every == 0 and writer is not None:
                    writer.add_scalar("loss/step", window / self.log_every, step)
                    window = 0.0
            if first:
                save(folder, self.model.module, self.optimizer, epoch)
        if writer is not None:
            writer.close()


def two_layer(folder: Path, data_dir: str) -> tuple[int, Callable[[], Any], list[str]]:
    """Number of steps, the loop by hand, and the arguments of train.py for the same."""
    torch.manual_seed(0)
    inputs, targets = part(torch.randn(BATCH, 1000)), part(torch.randn(BATCH, 10))
    count = dist.get_world_size()

    def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
        return count * F.mse_loss(outputs, targets, reduction="sum")

    hand = ByHand(TwoLayerNet(), {"lr": 1e-6}, log_every=50)
    ours = ["-c", "config.json", "trainer.epochs=4", "trainer.steps_per_epoch=500", "trainer.log_every_steps=50"]
    return 2000, lambda: hand.train(folder, lambda: [(inputs, targets)] * 500, loss_of, epochs=4), ours


def lenet(folder: Path, data_dir: str) -> tuple[int, Callable[[], Any], list[str]]:
    """The same for LeNet on CIFAR10, 600 steps."""
    torch.manual_seed(0)
    data = Photographs(data_dir)
    hand = ByHand(
        LeNet().to(memory_format=torch.channels_last),
        {"lr": 0.015, "momentum": 0.9, "nesterov": True},
        log_every=50,
    )
    schedule = OneCycleLR(hand.optimizer, 0.045, total_steps=600)

    def batches() -> Any:
        for chosen in torch.split(torch.randperm(len(data.images))[: 600 * BATCH], BATCH):
            yield data.batch(part(chosen))

    ours = ["-c", "configs/cifar10_lenet.json", "trainer.epochs=1", "trainer.steps_per_epoch=600", "metrics=[]"]
    ours += [f"data_loader.args.batch_size={BATCH}", "data_loader.args.flip=false", "trainer.log_every_steps=50"]
    ours += ["data_loader.args.validation_split=0", "trainer.monitor=null", f"data_loader.args.data_dir={data_dir}"]
    return 600, lambda: hand.train(folder, batches, F.cross_entropy, epochs=1, schedule=schedule), ours


JOBS = {"two_layer": two_layer, "lenet": lenet}


def by_train_py(steps: int, arguments: list[str], folder: Path) -> Figures:
    """The figures of ``BaseTrainer.train`` in the unchanged train.py."""
    found: Figures = {}
    original = BaseTrainer.train

    def timed(self: BaseTrainer) -> None:
        found.update(measured(steps, lambda: original(self)))

    BaseTrainer.train = timed  # type: ignore[method-assign]
    try:
        train.main([*arguments, f"trainer.save_dir={folder}", "trainer.verbosity=1", "runtime.device=cpu"])
    finally:
        BaseTrainer.train = original  # type: ignore[method-assign]
    return found


def cell(values: Sequence[float]) -> str:
    return f"{median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def compare(name: str, folder: Path, data_dir: str, *, repeats: int) -> None:
    """Measure both sides of a job in turns, and print their figures."""
    hand, ours = list[Figures](), list[Figures]()
    for _ in range(repeats):
        steps, by_hand, arguments = JOBS[name](folder, data_dir)
        hand.append(measured(steps, by_hand))
        ours.append(by_train_py(steps, arguments, folder))
    process_group = get_process_group()
    if not process_group.is_main_process:
        return
    print(f"\n{name}, {steps} steps of {BATCH}, {process_group.world_size} processes, load {os.getloadavg()[0]:.1f}")
    for figure in ("us", "cpu", "bytes"):
        left, right = [run[figure] for run in ours], [run[figure] for run in hand]
        ratio = median(left) / median(right)
        print(f"  {figure:5} this project {cell(left)}, by hand {cell(right)}: {ratio:.3f}")
    parameters = sum(p.numel() for p in (TwoLayerNet() if name == "two_layer" else LeNet()).parameters())
    expected = 4 * parameters * 2 * (process_group.world_size - 1)  # each process 2 (N - 1) / N times all of them
    print(f"  bytes of the gradients alone {expected}, {parameters} parameters", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="data", help='for lenet: folder that holds "cifar-10-batches-py"')
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side (default: 5)")
    parser.add_argument("--jobs", choices=JOBS, nargs="+", default=["two_layer"])
    options = parser.parse_args()
    process_group = get_process_group()
    process_group.connect(600)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(process_group.broadcast_object(lambda: name))
        for name in options.jobs:
            compare(name, folder, str(Path(options.data_dir).resolve()), repeats=options.repeats)
    process_group.finish()
    return process_group.exit(0)


if __name__ == "__main__":
    sys.exit(main())
