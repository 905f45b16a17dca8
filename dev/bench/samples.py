"""What a user's own map-style data set costs a sample, beside torch's DataLoader: ``python dev/bench/samples.py``.

Both sides take turns in one process, a tenth of an epoch each, and keep their worker processes. CPU time, that of the
workers included (Linux).
"""

import argparse
import gc
import itertools
import os
import random
import sys
import time
from collections.abc import Generator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from base.data.batches import Batches
from base.data.orders import Shuffled
from base.data.sample_source import SampleSource
from dev.bench.own_data import Photographs, Rows


class RowsWithNoise(Rows):
    """The same, with a number from each global generator."""

    def __getitem__(self, index: int) -> Any:
        row, target = super().__getitem__(index)
        return row + (random.random() + np.random.rand()) * torch.rand(()), target


class RowsWithOwnNoise(Rows):
    """Rows, with a number from a generator that the data set keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def __getitem__(self, index: int) -> Any:
        row, target = super().__getitem__(index)
        return row + self.generator.random(), target


class Arrays(Rows):
    """The same as NumPy arrays, with a number as the label."""

    def __init__(self) -> None:
        super().__init__()
        self.arrays, self.labels = self.rows.numpy(), self.targets.tolist()

    def __getitem__(self, index: int) -> Any:
        return self.arrays[index], self.labels[index]


class Texts(Dataset[int]):
    """A Python list of a million strings, of which a worker touches each once a pass: how much does it copy?"""

    def __init__(self) -> None:
        self.texts = [f"text number {number}" for number in range(1_000_000)]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> int:
        return len(self.texts[index])


def by_hand(dataset: Dataset[Any], batch: int, workers: int) -> Generator[Any, None, None]:
    """Batches without end."""
    loader = DataLoader(dataset, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    while True:
        yield from loader


def ours(dataset: Dataset[Any], batch: int, workers: int) -> Generator[Any, None, None]:
    """Batches without end, loaded by the epoch."""
    source = SampleSource(dataset)
    batches = Batches(source, batch_size=batch, order=Shuffled(len(source), 0), num_workers=workers)
    while True:
        yield from batches.one_pass()


def turns(dataset: Dataset[Any], batch: int, workers: int, count: int) -> list[list[float]]:
    """Microseconds a sample of each turn, for the loop by hand and for ours."""
    size = max(1, len(dataset) // (10 * batch))  # type: ignore[arg-type]  # batches
    loaded, started, taken = [], [], [list[float](), list[float]()]
    for load in (by_hand, ours):
        before = children()
        loaded.append(load(dataset, batch, workers))
        take(loaded[-1], size)  # starts the workers
        started.append(children() - before)
    used = [seconds(pids) for pids in started]
    for turn in range(2 * count):
        side = turn % 2
        start = time.process_time()
        take(loaded[side], size)
        here = time.process_time() - start
        now = seconds(started[side])  # what the workers did since this side's last turn, when they load ahead
        taken[side].append((here + now - used[side]) / (size * batch) * 1e6)
        used[side] = now
    for batches in loaded:
        batches.close()
    gc.collect()  # workers that are started later must not find what is left of these
    return taken


def take(batches: Generator[Any, None, None], count: int) -> None:
    for _ in itertools.islice(batches, count):
        pass


def children() -> set[int]:
    """Processes that this one has started."""
    return {int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def seconds(pids: set[int]) -> float:
    """CPU time of some processes."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def growth(epochs: int, workers: int) -> None:
    """Prints the memory that is a worker's own after each epoch, in MB: the median of all workers."""
    dataset = Texts()
    for load in (ours, by_hand):
        before = children()
        batches = load(dataset, 1000, workers)
        print(f"{load.__name__}:", end="", flush=True)
        for _ in range(epochs):
            take(batches, len(dataset) // 1000)
            print(f" {median(own_memory(pid) for pid in children() - before):.0f}", end="", flush=True)
        print()
        batches.close()


def own_memory(pid: int) -> float:
    """The pages that a process shares with no other, in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--turns", type=int, default=100, help="of each side (default: 100)")
    made.add_argument("--growth", type=int, metavar="EPOCHS", help="instead: the memory of four workers")
    options = made.parse_args()
    torch.set_num_threads(1)
    if options.growth:
        growth(options.growth, 4)
        return
    print("| data set | workers | batch | by hand, us | ours, us | ratio |\n|---|---|---|---|---|---|")
    for dataset, workers, batch in itertools.product(
        (Rows(), Arrays(), Photographs(), RowsWithNoise(), RowsWithOwnNoise()), (0, 2), (16, 64)
    ):
        hand, own = turns(dataset, batch, workers, options.turns)
        name = (type(dataset).__doc__ or "").split("\n")[0].rstrip(".")
        cells = [f"{median(side):.2f} ({min(side):.2f} to {max(side):.2f})" for side in (hand, own)]
        ratio = median(own) / median(hand)
        print(f"| {name} | {workers} | {batch} | {cells[0]} | {cells[1]} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
