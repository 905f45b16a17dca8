"""A grid of two-layer nets by sweep.py, and the same runs by a shell loop: ``python -m dev.bench.sweep``.

Both run in turns, one trial at a time, from the start of the command to its end, the sweep's report included. Prints
the medians, in brackets the smallest and the largest, and their ratio, which should not exceed 1.1.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from statistics import median

from dev.bench.__main__ import ROOT, cell, machine


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.bench.sweep", description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="seeds of the grid (default: 20)")
    parser.add_argument("--repeats", type=int, default=3, help="of each side (default: 3)")
    options = parser.parse_args()
    print(f"{machine()}, {options.repeats} runs of each side in turns\n")
    taken: dict[str, list[float]] = {"sweep.py": [], "shell loop": []}
    for _ in range(options.repeats):
        for name in taken:
            with tempfile.TemporaryDirectory() as folder:
                taken[name].append(seconds(command(name, options.trials, folder)))
    ratio = median(taken["sweep.py"]) / median(taken["shell loop"])
    print("| job | unit | sweep.py | shell loop | ratio | allowed |\n|---|---|---|---|---|---|")
    cells = " | ".join(cell(times) for times in taken.values())
    print(f"| a grid of {options.trials} two-layer nets | s | {cells} | {ratio:.3f} | x 1.10 |")


def command(name: str, trials: int, folder: str) -> list[str]:
    """What runs seeds 0 to trials - 1 of config.json."""
    given = f"trainer.save_dir={folder}"
    if name == "sweep.py":
        return [sys.executable, "sweep.py", f"seed=0..{trials - 1}", given]
    loop = f'for seed in $(seq 0 {trials - 1}); do "{sys.executable}" train.py seed=$seed {given} || exit 1; done'
    return ["sh", "-c", loop]


def seconds(words: list[str]) -> float:
    start = time.monotonic()
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


if __name__ == "__main__":
    main()
