"""Kill sweeps again and again, continue them, and compare every trial with those of an uninterrupted sweep.

python dev/campaigns/sweep.py --kills 30

Each kill is a SIGKILL of a trial, of the sweep without its trials, or of all its processes. A grid of 12 trials runs
two at once; 12 trials chosen by TPE, with a pruner, one after the other. Status 1 if a trial's values, outcome,
metrics, weights or curves differ in a single bit, or if a trial is missing or there twice.
"""

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests import forked
from tests.campaign import differences, wait_for
from tests.conftest import small_config
from tests.helpers import PATIENCE, ROOT

WHAT = ("trial", "trial", "sweep", "all")
GRID = ("seed=0..2", "optimizer.args.lr=0.02,0.05,0.1,0.2", "--jobs", "2")
TPE = (
    *("optimizer.args.lr=log:1e-4..1", "model.args.hidden_features=log:2..64"),
    *("--trials", "12", "--pruner", "median"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of each of the two sweeps (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--only", choices=("grid", "tpe"), help="one of the two")
    options = parser.parse_args()
    sweeps = {"grid": GRID, "tpe": TPE}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, words in sweeps.items():
            if options.only in (None, name):
                failed += campaign(Path(folder) / name, name, words, options)
    return int(failed > 0)


def campaign(folder: Path, name: str, words: tuple[str, ...], options: argparse.Namespace) -> int:
    """Whether the sweep that was killed differs from the other."""
    alone, killed = (write_config(folder / which) for which in ("alone", "killed"))
    process = start("-c", str(alone), *words)
    output, errors = process.communicate(PATIENCE)
    assert process.returncode == 0, output + errors
    moments = kill(killed, words, options.kills, random.Random(options.seed))
    found = compare(sweep_of(alone), sweep_of(killed))
    shown = ", ".join(f"{count} of {what}" for what, count in sorted(moments.items()))
    print(f"{name}: {moments.total()} kills ({shown}): {found or 'equal bit for bit'}", flush=True)
    return bool(found)


def kill(config: Path, words: tuple[str, ...], at_least: int, draw: random.Random) -> Counter[str]:
    """Start a sweep, kill parts of it so often, and let it end. The trials may end before; then there are fewer kills.

    Returns what was killed how often.
    """
    done = Counter[str]()
    while True:
        sweep = sweep_of(config)
        process = start("-r", str(sweep)) if sweep else start("-c", str(config), *words)
        while done.total() < at_least and process.poll() is None:
            what = draw.choice(WHAT)
            if what == "trial" or draw.random() < 0.7:
                wait_for(functools.partial(has_trials, process.pid), process)
            time.sleep(draw.uniform(0, 5))  # also in the start of a sweep or of a trial
            running = trials_of(process.pid)
            if process.poll() is not None or (what == "trial" and not running):
                continue
            with contextlib.suppress(ProcessLookupError):
                if what == "trial":
                    os.kill(draw.choice(running), signal.SIGKILL)
                elif what == "sweep":
                    process.kill()
                else:
                    os.killpg(process.pid, signal.SIGKILL)
            done[what] += 1
            if what != "trial":
                break
        output, errors = process.communicate(PATIENCE)
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, output + errors
            return done


def start(*words: str) -> forked.Process:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return forked.Process("sweep.py", *words, cwd=ROOT, env=environment, session=True)


def trials_of(sweep: int) -> list[int]:
    """The processes of the trials of a sweep."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{sweep}/task/{sweep}/children").read_text().split()]
    return []


def has_trials(sweep: int) -> bool:
    return bool(trials_of(sweep))


def write_config(folder: Path) -> Path:
    """A small classification whose epochs take a moment."""
    folder.mkdir(parents=True)
    length = {"epochs": 8, "steps_per_epoch": 100, "save_every_steps": 25}
    return small_config(folder, trainer={**length, "monitor": "min val_loss", "tensorboard": True})


def sweep_of(config: Path) -> Path | None:
    """The one sweep that was started with a config."""
    found = sorted(config.parent.glob("saved/small/sweep-*"))
    assert len(found) <= 1, f"a killed sweep was not found again: {found}"
    return found[0] if found else None


def compare(left: Path | None, right: Path | None) -> list[str]:
    """What differs between the trials of two sweeps, figures of time aside."""
    assert left is not None
    assert right is not None
    names = [sorted(path.name for path in sweep.glob("trial-*")) for sweep in (left, right)]
    if names[0] != names[1]:
        return [f"trials: {names[0]} and {names[1]}"]
    found = []
    for name in names[0]:
        one, other = (json.loads((sweep / name / "trial.json").read_text()) for sweep in (left, right))
        if one != other:
            found.append(f"{name}: values")
        first, second = (json.loads((sweep / name / "outcome.json").read_text()) for sweep in (left, right))
        if {**first, "seconds": 0} != {**second, "seconds": 0}:
            found.append(f"{name}: outcome {first} and {second}")
        if (
            first["state"] == second["state"] == "complete"
        ):  # a pruned one is stopped at some step after the epoch that decided it
            found += [f"{name}: {what}" for what in differences(left / name, right / name)]
    return found


if __name__ == "__main__":
    sys.exit(main())
