"""How fast is training, and what would the best loop written by hand take? Prints one table: ``make bench``.

Each row is a job. Both sides run in turns, each time in a process of its own; shown are the medians, in brackets the
smallest and the largest, and the ratio of the medians. Lightning, ignite and accelerate have rows where installed.
"""

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent.parent
# what the loops by hand do, in full: the config itself may change
CIFAR10 = (
    *("-c", "configs/cifar10_lenet.json", "trainer.epochs=1", 'metrics=["accuracy"]'),
    *("data_loader.args.batch_size=64", "data_loader.args.flip=false"),
)
BATCH_4 = (
    *(*CIFAR10, "data_loader.args.batch_size=4", "data_loader.args.validation_split=0", "trainer.steps_per_epoch=3000"),
    *("trainer.log_every_steps=500", "trainer.monitor=min loss"),
)
CROP_FLIP = (*CIFAR10, "data_loader.args.crop=4", "data_loader.args.flip=true")
WIDE = (
    *("-c", "config.json", "--lr=1e-12", "trainer.epochs=1", "trainer.steps_per_epoch=4"),
    *("data_loader.args.num_samples=1024", "data_loader.args.target_shape=[100000]", "model.args.out_features=100000"),
)
TWO_LAYER = ("-c", "config.json", "trainer.epochs=4")
FIVE = ("trainer.epochs=5",)
WINDOWS = ("data_loader.type=OwnWindows",)
STREAM = ("data_loader.type=OwnStream", "trainer.steps_per_epoch=625")
SMALL_BATCH = "data_loader.args.batch_size=16"
WORKERS = "data_loader.args.num_workers=2"


def large_batch(size: int) -> tuple[str, ...]:
    return (*CIFAR10, f"data_loader.args.batch_size={size}")


@dataclass
class Row:
    """One line of the table."""

    title: str
    figure: str
    """Which figure of a run: "loop" (s), "step" (us), "start" (s to the end of the first step), "whole" (s of the whole
    process and of its workers), "peak" (MB) or "faults" (thousands of minor page faults)."""
    limit: str
    """What the ratio, or for start-up and memory the difference, should not exceed."""
    by_hand: str
    """The job of hand_written.py, or of jobs.py for the configs in dev/bench/configs."""
    ours: tuple[str, ...]
    """Arguments of train.py."""
    instead: tuple[str, ...] = ()
    """Arguments of train.py to compare with, for a job without a hand-written loop."""

    @property
    def needs_cifar10(self) -> bool:
        return self.ours[: len(CIFAR10)] == CIFAR10

    @property
    def other(self) -> tuple[str, ...]:
        """The command of the other side."""
        script = "jobs.py" if self.ours[1].startswith("dev/bench/") else "hand_written.py"
        return self.instead or (f"dev/bench/{script}", self.by_hand)


def real(title: str, config: str, by_hand: str, limit: str, *overrides: str) -> tuple[Row, Row]:
    """The rows of a job of jobs.py: its loop, and the whole process."""
    ours = ("-c", f"dev/bench/configs/{config}.json", *overrides)
    return Row(title, "loop", limit, by_hand, ours), Row(f"{title}, whole process", "whole", "+ 0.4", by_hand, ours)


def own(title: str, config: str, by_hand: str, *overrides: str) -> tuple[Row, Row]:
    """The same for a user's data set."""
    return real(f"own {title}", config, by_hand, "x 1.05", *overrides)


ROWS = [
    Row("two-layer net, 2,000 steps of 64", "loop", "x 1.05", "two-layer", (*TWO_LAYER, "trainer.steps_per_epoch=500")),
    Row(
        *("two-layer net, 10,000 steps of 64", "loop", "x 1.05", "two-layer, 10,000 steps"),
        (*TWO_LAYER, "trainer.steps_per_epoch=2500"),
    ),
    Row("LeNet on CIFAR10, batch 64, an epoch of 45,000 and validation of 5,000", "loop", "x 1.05", "lenet", CIFAR10),
    Row("the same, with crop and flip on our side alone", "loop", "x 1.15", "lenet", CROP_FLIP),
    *(
        Row(f"LeNet on CIFAR10, batch {size}, {what}", figure, limit, f"batch {size}", large_batch(size))
        for size in (512, 4096)
        for what, figure, limit in (
            ("an epoch", "loop", "x 0.97"),
            ("faults", "faults", "x 0.97"),
            ("peak memory", "peak", "+ 100"),
        )
    ),
    Row("LeNet on CIFAR10, batch 4, a step", "step", "x 1.10", "batch 4", BATCH_4),
    Row(
        *("start, two-layer net", "start", "+ 0.5", "start two-layer"),
        ("-c", "config.json", "trainer.epochs=1", "trainer.steps_per_epoch=1"),
    ),
    *real("ResNet-18, 48 steps of 64 photographs", "resnet18", "resnet18", "x 1.03"),
    *real("GPT of 4 layers, 24 steps of 32 texts", "gpt", "gpt", "x 1.03"),
    *real("segmentation, 2,560 steps of 16", "segmentation", "segmentation", "x 1.03"),
    *real("the end of 10 epochs", "epoch_end", "epoch end", "x 1.02"),
    *own("data set of 40,000 rows", "rows", "rows"),
    *own("data set of 40,000 rows, 5 epochs", "rows", "rows, 5 epochs", *FIVE),
    *own("data set of 40,000 windows of a table, 5 epochs", "rows", "windows, 5 epochs", *FIVE, *WINDOWS),
    *own("stream of 40,000 rows, 5 epochs", "rows", "stream, 5 epochs", *FIVE, *STREAM),
    *own("data set of 6,000 photographs", "photographs", "photographs"),
    *own("data set of 40,000 rows, batch 16", "rows", "rows, batch 16", SMALL_BATCH),
    *own("data set of 6,000 photographs, batch 16", "photographs", "photographs, batch 16", SMALL_BATCH),
    # the loader's processes do most of the work, which only the figure of the whole process counts
    *own("data set of 40,000 rows, 2 workers", "rows", "rows, 2 workers", WORKERS)[1:],
    *own("data set of 6,000 photographs, 2 workers", "photographs", "photographs, 2 workers", WORKERS)[1:],
    Row("start, LeNet on CIFAR10", "start", "+ 0.5", "start lenet", (*CIFAR10, "trainer.steps_per_epoch=20")),
    Row("peak memory, LeNet on CIFAR10", "peak", "+ 100", "lenet", CIFAR10),
    Row(
        *("peak memory, 16 micro-batches of 64 with 100,000 outputs, against 8", "peak", "+ 60", ""),
        (*WIDE, "trainer.accumulate_steps=16"),
        instead=(*WIDE, "trainer.accumulate_steps=8"),
    ),
]
SHORT = ("cifar10_lenet", "resnet18", "gpt")
"""The configs of a single epoch, which on an accelerator takes less time than the first kernels take to load."""
PEERS = ("lightning", "ignite", "accelerate")
PEERS_JOBS = ("two-layer", "lenet", "rows", "photographs")
UNITS = {"loop": "s", "step": "us", "start": "s", "whole": "s", "peak": "MB", "faults": "thousands"}


def last_line(command: Sequence[str]) -> dict[str, float]:
    """Run a process and give the JSON that it printed last. Raises CalledProcessError if it fails."""
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def cpu_of_children() -> float:
    """Seconds of the processors that the processes started here have used, with those that they started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(command: Sequence[str], clock: str) -> dict[str, float]:
    """The figures of one run."""
    start, used = time.time(), cpu_of_children()
    marks = last_line(command)
    whole = time.time() - start if clock == "wall" else cpu_of_children() - used
    loop = marks["loop" if clock == "wall" else "cpu"]
    return {
        "loop": loop,
        "step": loop / marks["steps"] * 1e6,
        "start": marks["first_step"] - start if clock == "wall" else marks["first_cpu"],
        "whole": whole,
        "peak": marks["peak"],
        "faults": marks["faults"] / 1000,
    }


def places(command: Sequence[str], folder: str, options: argparse.Namespace) -> list[str]:
    """The overrides that say where a run of ours finds its data and leaves its files. No pictures at its end.

    On an accelerator, short jobs last ten epochs, as in the loops by hand.
    """
    overrides = [f"trainer.save_dir={folder}", "trainer.pictures_every=0", f"runtime.device={options.device}"]
    if command[1].startswith("configs/"):
        overrides.append(f"data_loader.args.data_dir={options.data_dir}")
    is_short = Path(command[1]).stem in SHORT and not any("steps_per_epoch" in each for each in command)
    if is_short and options.device != "cpu":
        overrides.append("trainer.epochs=10")
    return overrides


def parts_table(rows: Sequence[Row], options: argparse.Namespace) -> str:
    """Microseconds of a step of ours, by part, from one run of each job."""
    lines: list[str] = []
    for row in rows:
        if row.figure not in ("loop", "step") or row.ours[1].startswith("dev/bench/"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            full = ["dev/bench/parts.py", *row.ours, *places(row.ours, folder, options)]
            parts = last_line([*shlex.split(options.launcher), *full])
        if not lines:
            lines = [f"| us a step | {' | '.join(parts)} |", f"|---|{'---|' * len(parts)}"]
        lines.append(f"| {row.title} | {' | '.join(f'{value:.0f}' for value in parts.values())} |")
    return "\n".join(lines)


def peers(row: Row, device: str) -> list[tuple[str, ...]]:
    """The other frameworks that are installed and have this job, on the CPU."""
    has_job = device == "cpu" and row.figure == "loop" and row.ours != CROP_FLIP and row.by_hand in PEERS_JOBS
    return [(name, row.by_hand) for name in PEERS if has_job and find_spec(name)]


def peers_table(rows: Sequence[Row], figures: dict[tuple[str, ...], list[dict[str, float]]], device: str) -> str:
    """The other frameworks beside the loops by hand, in Markdown; empty if none is installed."""
    lines = ["\n", "| job | framework | s | ratio to by hand |", "|---|---|---|---|"]
    for row in rows:
        if not peers(row, device):
            continue
        by_hand = median(run["loop"] for run in figures[row.other])
        for peer in peers(row, device):
            taken = [run["loop"] for run in figures[peer]]
            lines.append(f"| {row.title} | {peer[0]} | {cell(taken)} | {median(taken) / by_hand:.2f} |")
    return "\n".join(lines) if len(lines) > 3 else ""


def measure(rows: Sequence[Row], options: argparse.Namespace) -> dict[tuple[str, ...], list[dict[str, float]]]:
    """Every command that the rows need, in turns, as often as asked."""
    figures: dict[tuple[str, ...], list[dict[str, float]]] = {}
    launcher = tuple(shlex.split(options.launcher))
    commands = dict.fromkeys(command for row in rows for command in (row.ours, row.other, *peers(row, options.device)))
    for repeat in range(options.repeats):
        for number, command in enumerate(commands, start=1):
            print(f"round {repeat + 1}/{options.repeats}, run {number}/{len(commands)}", file=sys.stderr)
            with tempfile.TemporaryDirectory() as folder:
                if command[0].endswith(".py"):
                    full = [*command, folder, options.data_dir, options.device]
                elif command[0] in PEERS:
                    full = ["dev/bench/peers.py", *command, folder, options.data_dir]
                else:
                    full = ["dev/bench/ours.py", *command, *places(command, folder, options)]
                figures.setdefault(command, []).append(run([*launcher, *full], options.clock))
    return figures


def cell(values: Sequence[float]) -> str:
    digits = 0 if median(values) > 20 else 2
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(rows: Sequence[Row], figures: dict[tuple[str, ...], list[dict[str, float]]]) -> str:
    """The table in Markdown."""
    lines = ["| job | unit | this project | by hand | ratio | difference | allowed |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        ours = [run[row.figure] for run in figures[row.ours]]
        by_hand = [run[row.figure] for run in figures[row.other]]
        ratio, difference = median(ours) / median(by_hand), median(ours) - median(by_hand)
        shown = f"{ratio:.3f} | {difference:+.2f}" if row.figure != "peak" else f"{ratio:.3f} | {difference:+.0f}"
        unit = UNITS[row.figure]
        lines.append(f"| {row.title} | {unit} | {cell(ours)} | {cell(by_hand)} | {shown} | {row.limit} |")
    return "\n".join(lines)


def machine() -> str:
    """One line that says on what it was measured."""
    import torch

    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        processor = "unknown processor"
    date, load = time.strftime("%Y-%m-%d"), os.getloadavg()[0]
    return (
        f"{date}, {processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {sys.version.split()[0]}, load at the start {load:.1f}"
    )


def main() -> None:
    made = argparse.ArgumentParser(
        prog="python -m dev.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--data-dir", help='folder that holds "cifar-10-batches-py"; without it, only random tensors')
    made.add_argument("--repeats", type=int, default=5, help="runs of each side (default: 5)")
    made.add_argument("--launcher", default=sys.executable, help="what runs a Python script (default: this Python)")
    made.add_argument("--rows", default="", help="only rows whose title holds this text")
    made.add_argument("--threads", type=int, help="threads of each run (default: what torch takes)")
    made.add_argument("--device", default="cpu", help="where both sides train (default: cpu), as in cuda")
    made.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: where others use the machine too")
    options = made.parse_args()
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # the runs inherit it
    if options.device != "cpu" and options.clock == "cpu":
        made.error("--clock cpu does not count what an accelerator does")
    options.data_dir = str(Path(options.data_dir).resolve()) if options.data_dir else ""
    rows = [row for row in ROWS if options.rows in row.title and (options.data_dir or not row.needs_cifar10)]
    print(machine() + f", {options.clock} clock, {options.repeats} runs of each side in turns\n")
    figures = measure(rows, options)
    print(table(rows, figures) + peers_table(rows, figures, options.device), flush=True)
    print("\n" + parts_table(rows, options), flush=True)


if __name__ == "__main__":
    main()
