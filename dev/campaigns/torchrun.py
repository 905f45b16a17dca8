"""Bring several processes to grief under torchrun, and compare what their job ends with to one that was left alone.

python dev/campaigns/torchrun.py --kills 20

SIGKILL to random workers at random moments, which torchrun starts again; then the whole job killed and resumed by
other numbers of processes. Needs Linux, no data, and about twenty seconds a kill. Status 1 if anything did not hold.
"""

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

from tests.campaign import config, differences, logged
from tests.helpers import PATIENCE, ROOT, Json, lines, state

KILLS_A_JOB = 7
RESTARTS = 100


class Job:
    """train.py under torchrun, with what it printed in a file."""

    def __init__(self, running: subprocess.Popen[bytes], log: Path) -> None:
        self.running, self.log = running, log

    def workers(self) -> dict[int, int]:
        """Process ids of the workers by rank."""
        found = {}
        for children in Path(f"/proc/{self.running.pid}/task").glob("*/children"):
            try:
                for pid in map(int, children.read_text().split()):
                    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                    rank = next((word[5:] for word in words if word.startswith(b"RANK=")), None)
                    if rank is not None:
                        found[int(rank)] = pid
            except OSError:  # it has just ended
                continue
        return found

    def ended(self) -> bool:
        return self.running.poll() is not None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Whether the condition came to hold before the job ended."""
        end = time.monotonic() + PATIENCE
        while not self.ended() and time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.005)
        assert self.ended(), self.output()[-6000:]
        return False

    def end(self) -> int:
        """Wait for the end, and give the exit status."""
        try:
            return self.running.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs:\n{self.output()[-6000:]}") from None

    def kill(self) -> None:
        """End torchrun and its workers at once, as a machine that goes down does."""
        for pid in (self.running.pid, *self.workers().values()):
            os.kill(pid, signal.SIGKILL)
        self.running.wait()


@contextmanager
def started(folder: Path, launcher: Sequence[str], *arguments: str, inside: Sequence[str] = ()) -> Iterator[Job]:
    """A job, ended at the latest when the block is left. launcher: options of torchrun; inside: what runs that."""
    log = folder / f"torchrun-{len(list(folder.glob('torchrun-*')))}.log"
    command = [*inside, sys.executable, "-W", "ignore", "-m", "torch.distributed.run", *launcher]
    script = ["-m", "tests.killable", *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        running = subprocess.Popen([*command, *script], cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT)
    job = Job(running, log)
    try:
        yield job
    finally:
        if not job.ended():
            job.kill()


def local(count: int, restarts: int = 0) -> list[str]:
    """Options of torchrun for so many processes on this machine."""
    return ["--standalone", "--nproc-per-node", str(count), "--max-restarts", str(restarts)]


def write_config(folder: Path, name: str, **keys: Any) -> list[str]:
    """The arguments of a run. keys: sections to change."""
    made = config(folder, loader="SmallSamples", name=name, workers=1)
    made["trainer"] |= {"epochs": 24, "early_stop": None}
    for key, value in keys.items():
        made[key] = made[key] | value
    path = folder / f"{name}.json"
    path.write_text(json.dumps(made))
    return ["-c", str(path)]


def run_of(folder: Path, name: str) -> Path:
    runs = sorted((folder / name).glob("[0-9]*"))
    assert len(runs) == 1, f"a job that was started again did not find its run: {runs}"
    return runs[0]


def saved(folder: Path, name: str) -> int:
    """The step of a run's newest checkpoint; 0 if there is none."""
    steps = [int(path.stem[5:]) for path in (folder / name).glob("[0-9]*/checkpoints/step-*.pth")]
    return max(steps, default=0)


def trained(folder: Path, name: str, count: int, *arguments: str) -> Path:
    """A run to its end, without trouble."""
    with started(folder, local(count), *arguments) as job:
        assert job.end() == 0, job.output()
    return run_of(folder, name)


def kill_workers(folder: Path, kills: int, seed: int) -> bool:
    """Kill workers one after the other, in jobs that torchrun starts again; whether all ended as one left alone."""
    alone = run_of(folder, "alone")
    moments, number, wrong = Counter[str](), 0, 0
    while moments.total() < kills:
        number += 1
        name, draw = f"killed-{number}", random.Random(seed + number)
        begun, before = time.monotonic(), moments.total()
        with started(folder, local(2, RESTARTS), *write_config(folder, name)) as job:
            while moments.total() < min(kills, before + KILLS_A_JOB) and (moment := kill_one(job, folder, draw)):
                moments[moment] += 1
            assert job.end() == 0, job.output()[-6000:]
        run = run_of(folder, name)
        found = differences(alone, run)
        resumed = len(json.loads((run / "environment.json").read_text()).get("resumed", []))
        wrong += bool(found)
        print(
            f"{name}: {moments.total() - before} kills, went on {resumed} times, {time.monotonic() - begun:.0f} s: "
            f"{found or 'equal bit for bit'}",
            flush=True,
        )
    print(
        f"{moments.total()} kills in {number} jobs ({dict(sorted(moments.items()))}), {wrong} jobs differ", flush=True
    )
    return not wrong


def kill_one(job: Job, folder: Path, draw: random.Random) -> str | None:
    """Kill a worker at a random moment, and wait until torchrun has started others. None if the job ended before."""
    if not job.wait(lambda: len(job.workers()) == 2):
        return None
    kind, rank = draw.choice(["start", "work", "work", "work"]), draw.randrange(2)
    workers, changed = job.workers(), logged(folder)
    if kind == "work" and not job.wait(changed):
        return None
    end = time.monotonic() + draw.uniform(0, 6 if kind == "start" else 1.5)
    if not job.wait(lambda: time.monotonic() >= end):
        return None
    try:
        os.kill(workers[rank], signal.SIGKILL)
    except OSError:
        return None
    job.wait(lambda: not set(workers.values()) & set(job.workers().values()))
    return f"{kind} rank {rank}"


def change_number(folder: Path) -> bool:
    """Kill whole jobs of 2, then 1, then 3 processes in the middle; whether the run ends as one of a single process."""
    # each process draws its own dropout; and AdamW makes as large a step of a gradient that is only rounding
    plain: Json = {"model": {"args": {"dropout": 0}}, "optimizer": {"type": "SGD", "args": {"lr": 0.01}}}
    one = trained(folder, "one", 1, *write_config(folder, "one", **plain))
    arguments, numbers = write_config(folder, "changed", **plain), (2, 1, 3, 2)
    at = 0
    for count in numbers[:-1]:
        with started(folder, local(count), *arguments) as job:
            aim = at + 10
            assert job.wait(lambda aim=aim: saved(folder, "changed") >= aim), job.output()  # type: ignore[misc]
            job.kill()
        at = saved(folder, "changed")
        arguments = ["-r", str(run_of(folder, "changed"))]
        print(f"{count} processes: killed, newest checkpoint of step {at}", flush=True)
    run = trained(folder, "changed", numbers[-1], *arguments)
    largest = 0.0
    for left, right in zip(lines(one), lines(run), strict=True):
        assert left.keys() == right.keys()
        largest = max(largest, *(abs(left[key] - right[key]) / max(abs(left[key]), 1e-6) for key in left))
    weights = [
        float((left - right).abs().max())
        for left, right in zip(state(one)["model"].values(), state(run)["model"].values(), strict=True)
    ]
    print(
        f"{numbers} processes: values differ by {largest:.1e} of themselves, weights by {max(weights):.1e}", flush=True
    )
    return largest < 1e-3 and math.isfinite(largest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of workers (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained(folder, "alone", 2, *write_config(folder, "alone"))
        held = kill_workers(folder, options.kills, options.seed)
        held = change_number(folder) and held
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
