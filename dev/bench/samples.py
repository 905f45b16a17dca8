"""What a user's own map-style data set costs a sample, beside torch's DataLoader: ``python dev/bench/samples.py``.

Both sides take turns in one process, and start their worker processes for each turn. CPU time, that of the workers
included.
"""

import argparse
import itertools
import os
import random
import resource
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from base.data.batches import Batches
from base.data.sample_source import SampleSource
from dev.bench.jobs import Photographs, Rows


class RowsWithNoise(Rows):
    """The same, with a number from each global generator."""

    def __getitem__(self, index: int) -> Any:
        row, target = super().__getitem__(index)
        return row + (random.random() + np.random.rand()) * torch.rand(()), target


class Texts(Dataset[int]):
    """A Python list of a million strings, of which a worker touches each once a pass: how much does it copy?"""

    def __init__(self) -> None:
        self.texts = [f"text number {number}" for number in range(1_000_000)]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> int:
        return len(self.texts[index])


def cpu() -> float:
    """Seconds of this process, and of those that it started and that have ended."""
    # os.times counts in ticks of 10 ms
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def seconds(load: Callable[..., Iterable[Any]], *arguments: Any) -> float:
    start = cpu()
    for _ in load(*arguments):
        pass
    return cpu() - start


def by_hand(dataset: Dataset[Any], batch: int, workers: int, passes: int) -> Iterable[Any]:
    loader = DataLoader(dataset, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return itertools.chain.from_iterable(loader for _ in range(passes))


def ours(dataset: Dataset[Any], batch: int, workers: int, passes: int) -> Iterable[Any]:
    batches = Batches(SampleSource(dataset), batch_size=batch, shuffle=True, seed=0, num_workers=workers)
    for _ in range(passes):  # an epoch each
        yield from batches.one_pass()
    batches.close()


def growth(epochs: int, workers: int) -> None:
    """Prints the memory that is a worker's own after each epoch, in MB: the median of all workers."""
    dataset = Texts()
    for side, load in (("ours", ours), ("by hand", by_hand)):
        sizes = []
        made = iter(load(dataset, 1000, workers, epochs))
        for _ in range(epochs):
            for _ in itertools.islice(made, len(dataset) // 1000):
                pass
            sizes.append(median(own_memory()))
        print(f"{side}: {', '.join(f'{size:.0f}' for size in sizes)}", flush=True)
        for _ in made:
            pass
        del made


def own_memory() -> list[float]:
    """Of each child process, in MB: the pages that it shares with no other."""
    children = [int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    found = []
    for child in children:
        lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
        found.append(sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024)
    return found


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--turns", type=int, default=9, help="of each side (default: 9)")
    made.add_argument("--growth", type=int, metavar="EPOCHS", help="instead: the memory of four workers")
    options = made.parse_args()
    torch.set_num_threads(1)
    if options.growth:
        growth(options.growth, 4)
        return
    print("| data set | workers | batch | by hand, us | ours, us | ratio |\n|---|---|---|---|---|---|")
    for dataset in (Rows(), Photographs(), RowsWithNoise()):
        for workers, batch in ((0, 64), (2, 64)):
            taken: dict[Any, list[float]] = {by_hand: [], ours: []}
            # the more, the less the start of the workers counts
            repeated = 4 if workers else 1
            for _, load in itertools.product(range(options.turns), (by_hand, ours)):
                spent = seconds(load, dataset, batch, workers, repeated)
                taken[load].append(spent / (repeated * len(dataset)) * 1e6)
            hand, own = median(taken[by_hand]), median(taken[ours])
            spread = [f"{median(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in taken.values()]
            name = (type(dataset).__doc__ or "").split("\n")[0].rstrip(".")
            print(f"| {name} | {workers} | {batch} | {spread[0]} | {spread[1]} | {own / hand:.3f} |", flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
