"""Whether a long run costs more a step, or more to resume, than a short one: ``python dev/bench/growth.py [STEPS]``.

Trains a small net for 1,000 and for STEPS (default 100,000) steps, then resumes each for 1,000 more.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train
from base.base_trainer import BaseTrainer

marks: dict[str, float] = {}
train_all = BaseTrainer.train


def timed(self: BaseTrainer) -> None:
    marks["begun"] = start = time.perf_counter()
    before = self.progress.steps
    train_all(self)
    marks["step"] = (time.perf_counter() - start) / (self.progress.steps - before) * 1e6


def row(epochs: int, folder: str) -> str:
    config = ["trainer.steps_per_epoch=1000", f"trainer.save_dir={folder}", "runtime.device=cpu", "trainer.verbosity=0"]
    run = train.main(["-c", "configs/linear_regression.json", *config, f"trainer.epochs={epochs}"]).run_dir
    step = marks["step"]
    events = sum(path.stat().st_size for path in run.glob("events.*")) / epochs
    lines = (run / "metrics.jsonl").stat().st_size / epochs
    checkpoints = sum(path.stat().st_size for path in (run / "checkpoints").glob("step-*")) / 1e3
    start = time.perf_counter()
    train.main(["-r", str(run), f"trainer.epochs={epochs + 1}"])
    resume = (marks["begun"] - start) * 1e3
    figures = f"{step:.0f} | {marks['step']:.0f} | {resume:.0f} | {events:.0f} | {lines:.0f} | {checkpoints:.0f}"
    return f"| {epochs * 1000:,} | {figures} |"


if __name__ == "__main__":
    BaseTrainer.train = timed  # type: ignore[method-assign]
    title = "steps | us a step | us a step after the resume | ms to resume"
    print(f"| {title} | bytes of events per 1,000 steps | of metrics.jsonl | kB of checkpoints |\n|{'---|' * 7}")
    with tempfile.TemporaryDirectory() as folder:
        row(1, folder)  # what only the first run pays
        for epochs in (1, int(sys.argv[1]) // 1000 if len(sys.argv) > 1 else 100):
            print(row(epochs, folder))
