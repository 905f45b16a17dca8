"""Mutate configs many times over; each must be refused with a location, or train a first step.

    python -m dev.fuzz_config 10000

A traceback, a hang, or a message without a location ends in status 1, with the seed that reproduces it.
"""

import argparse
import json
import logging
import re
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import train
from base.base_trainer import BaseTrainer
from base.data.images.cache import Images
from base.data.images.image_loader import ImageLoader
from data_loader.cifar10 import CIFAR10Loader
from data_loader.image_folder import ImageFolderLoader
from tests.configs import SOUND
from tests.utils.config.mutations import mutant
from utils.config import load_config
from utils.errors import TrainingError, UserError
from utils.paths import PROJECT
from utils.registry import import_components

# more kinds of components than the bundled configs name
RICH = json.dumps(
    {
        **json.loads(SOUND),
        "loss": {"type": "CrossEntropyLoss", "args": {"label_smoothing": 0.1, "reduction": "sum"}},
        "metrics": [
            {"type": "accuracy", "name": "acc"},
            {"type": "F1Score", "args": {"task": "multiclass", "num_classes": 3, "average": "macro"}},
        ],
        "optimizer": {"type": "AdamW", "args": {"lr": 0.01, "betas": [0.9, 0.99], "weight_decay": 0.1, "eps": 1e-8}},
        "lr_scheduler": {
            "type": "SequentialLR",
            "args": {
                "schedulers": [
                    {"type": "LinearLR", "args": {"start_factor": 0.1, "total_iters": 2}},
                    {"type": "CosineAnnealingLR", "args": {"eta_min": 1e-4}},
                ],
                "milestones": [2],
            },
            "interval": "step",
        },
        "trainer": {
            "epochs": 3,
            "accumulate_steps": 2,
            "clip_grad_norm": 1.0,
            "monitor": "max val_acc",
            "early_stop": 2,
        },
        "runtime": {"device": "cpu", "precision": "bf16"},
    }
)

HARMLESS = ("trainer.tensorboard=false", "trainer.verbosity=0", "runtime.compile=false")
SECONDS, MEMORY = 60, 6 * 2**30
LOCATED = re.compile(r"^(\d+ mistakes in the config:\n\n)?[^\n]*config\.json:\d+:\d+: ")


class _TooLong(BaseException):
    """Not an Exception, so that nothing takes it for a mistake in a config."""


@contextmanager
def _time_limit() -> Iterator[None]:
    def late(*_: object) -> None:
        raise _TooLong

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def _first_step(self: BaseTrainer) -> None:
    """Instead of training to the end."""
    self.model.train()
    for step in self.training.batches.load_steps(self.remaining_steps()):
        self.optimizer_step(step)
        break
    self.training.batches.close()


def _small_images(self: ImageLoader, *_: object, **__: object) -> Images:
    """Instead of reading files."""
    size = min(self.size, 64)
    return Images(torch.zeros(64, size, size, 3, dtype=torch.uint8), torch.arange(64) % 10)


def outcome(path: Path, folder: Path) -> str:
    """The outcome of one config."""
    try:
        load_config(path)
    except UserError as error:
        return "refused, located" if LOCATED.match(str(error)) else f"NO LOCATION: {error}"
    try:
        train.main(["-c", str(path), f"trainer.save_dir={folder}", *HARMLESS])
    except UserError as error:
        if LOCATED.match(str(error)):
            return "refused when built, located"
        first_batch = re.search(r"the first (\w+ )?batch", str(error)) or str(error).startswith("metrics: ")
        return "refused at the first batch" if first_batch else f"NO LOCATION: {error}"
    except TrainingError:
        return "started, and the loss was not finite"
    return "started"


def run(count: int, first: int) -> int:
    """Number of configs with an outcome that must not happen."""
    texts = [path.read_text() for path in sorted([PROJECT / "config.json", *PROJECT.glob("configs/*.json")])]
    texts += [SOUND, RICH]
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "config.json"
        for seed in range(first, first + count):
            kind, data = mutant(texts[seed % len(texts)], seed)
            path.write_bytes(data)
            try:
                with _time_limit():
                    ended = outcome(path, Path(made) / "runs")
            except _TooLong:
                ended = f"HANGS: more than {SECONDS} s"
            except Exception as error:
                ended = f"TRACEBACK: {type(error).__name__}: {error}"
            if ended[:2].isupper():
                print(f"seed {seed} ({kind}): {ended}", flush=True)
                ended = ended.split(":")[0]
            counts[kind, ended] += 1
    for ended in sorted({ended for _, ended in counts}):
        kinds = {kind: number for (kind, how), number in sorted(counts.items()) if how == ended}
        print(f"{sum(kinds.values()):>6}  {ended}: {', '.join(f'{kind} {number}' for kind, number in kinds.items())}")
    return sum(number for (_, ended), number in counts.items() if ended[:2].isupper())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=10_000)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import_components()
    BaseTrainer.train = _first_step  # type: ignore[method-assign]
    CIFAR10Loader.read = ImageFolderLoader.read = _small_images  # type: ignore[method-assign]
    ImageFolderLoader.class_names = tuple("abcdefghij")  # type: ignore[assignment]
    return 1 if run(options.count, options.first) else 0


if __name__ == "__main__":
    sys.exit(main())
