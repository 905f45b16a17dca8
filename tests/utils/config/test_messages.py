"""The messages for typical mistakes, word for word: tests/golden/mistakes.md, for reading.

``python -m tests.utils.config.test_messages`` rewrites that file.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest

from tests.configs import SOUND, message
from tests.helpers import ROOT, needs_extra

GOLDEN = ROOT / "tests" / "golden" / "mistakes.md"


class Mistake(NamedTuple):
    title: str
    right: str = ""
    wrong: str = ""
    overrides: tuple[str, ...] = ()
    file: str | None = None


MISTAKES = [
    Mistake("A key is misspelt", '"monitor"', '"moniter"'),
    Mistake("A section is misspelt", '"trainer"', '"trianer"'),
    Mistake("A key is in the wrong place", '"steps_per_epoch": 4', '"lr": 0.1'),
    Mistake("A component is misspelt", '"TwoLayerNet"', '"TwoLayerNett"'),
    Mistake("A metric as the loss", '"cross_entropy"', '"accuracy"'),
    Mistake("An argument is misspelt", '"hidden_features"', '"hiden_features"'),
    Mistake("An argument of torch.optim is misspelt", '"momentum"', '"momentun"'),
    Mistake("An argument is missing", '"num_samples": 60, ', ""),
    Mistake("An argument has the wrong type", '"lr": 0.01', '"lr": "0.01"'),
    Mistake("The learning rate is negative", '"lr": 0.01', '"lr": -0.01'),
    Mistake("The batch size is zero", '"batch_size": 10', '"batch_size": 0'),
    Mistake("More than all of the data is held out", '"validation_split": 0.2', '"validation_split": 1.2'),
    Mistake("A duplicate key", '"momentum": 0.9', '"lr": 0.9'),
    Mistake("A trailing comma", '"momentum": 0.9}', '"momentum": 0.9,}'),
    Mistake("A comma is missing", '"name": "digits",', '"name": "digits"'),
    Mistake("A comment", '  "loss":', '  // the usual one\n  "loss":'),
    Mistake("Not a number", '"lr": 0.01', '"lr": NaN'),
    Mistake("Python in JSON", '"device": "cpu"', '"compile": True'),
    Mistake("The monitored value is not logged", "min val_loss", "max val_acuracy"),
    Mistake("Two metrics with the same name", '{"type": "top_k_accuracy", "args": {"k": 2}}', '"accuracy"'),
    Mistake("A torchmetrics metric", '"accuracy", {"type": "top_k_accuracy", "args": {"k": 2}}',
            '{"type": "F1Score", "args": {"task": "multiclas", "num_clases": 3}}'),
    Mistake("A key of victoresque/pytorch-template", '"model"', '"arch"'),
    Mistake("A loss of victoresque/pytorch-template", '"cross_entropy"', '"nll_loss"'),
    Mistake("No such device", '"cpu"', '"cudda"'),
    Mistake("An empty object for none", '{"type": "OneCycleLR", "args": {"max_lr": 0.05}, "interval": "step"}', "{}"),
    Mistake("An override is misspelt", overrides=("trainer.epoch=3",)),
    Mistake("An override without its section", overrides=("lr=0.1",)),
    Mistake("An override is out of range", overrides=("optimizer.args.lr=-1",)),
    Mistake("An override of just the type", overrides=("optimizer.type=Adam",)),
    Mistake("An override of one of several optimizers is misspelt",
            '{"type": "SGD", "args": {"lr": 0.01, "momentum": 0.9}}', '{"actor": "Adam", "critic": "SGD"}',
            overrides=("optimizer.actr.args.lr=1",)),
    Mistake("The shell removed the quotes", overrides=("metrics=[accuracy]",)),
    Mistake("A run's metrics instead of its config", file='{"epoch": 1, "loss": 0.5}\n{"epoch": 2, "loss": 0.4}\n'),
    Mistake("A Python file", file='import torch\n'),
    Mistake("JSON that is not a config", file='{"time": "12:00", "command": "python train.py"}\n'),
    Mistake("An unfinished file", file=SOUND[:130]),
    Mistake("Several at once", '"args": {"lr": 0.01, "momentum": 0.9}}', '"args": {"lr": "high"}, "intervall": 1}',
            ("trainer.epochs=0", "model.args.bias=1")),
]  # fmt: skip


def golden(folder: Path) -> str:
    """The file: each mistake, how it is made, and the message, on a machine without an accelerator."""
    with patch("torch.accelerator.current_accelerator", lambda **_: None):
        return "\n".join([*_head(), *(line for mistake in MISTAKES for line in _entry(mistake, folder))])


def _head() -> Iterator[str]:
    yield "# Messages for typical mistakes\n"
    yield "The mistakes are made in this config:\n"
    yield f"```json\n{SOUND}```\n"


def _entry(mistake: Mistake, folder: Path) -> Iterator[str]:
    assert mistake.file is not None or SOUND.count(mistake.right) >= 1
    text = SOUND.replace(mistake.right, mistake.wrong, 1) if mistake.right else SOUND
    (folder / "config.json").write_text(text if mistake.file is None else mistake.file)
    with chdir(folder):
        explanation = message(Path("config.json"), *mistake.overrides)
    assert explanation, f"{mistake.title} has no message"
    yield f"## {mistake.title}\n"
    if mistake.right:
        change = f"`{mistake.wrong.strip()}` in place of `{mistake.right.strip()}`" if mistake.wrong else ""
        yield (change if mistake.wrong else f"without `{mistake.right.strip()}`") + "\n"
    if mistake.overrides:
        yield f"on the command line: `{' '.join(mistake.overrides)}`\n"
    yield f"```text\n{explanation}\n```\n"


@needs_extra("hints")
@pytest.mark.usefixtures("without_accelerator")
def test_typical_mistakes_are_explained_word_for_word(tmp_path: Path) -> None:
    assert golden(tmp_path) == GOLDEN.read_text(), "read the diff, then: python -m tests.utils.config.test_messages"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        GOLDEN.write_text(golden(Path(made)))
    print(os.path.relpath(GOLDEN))
