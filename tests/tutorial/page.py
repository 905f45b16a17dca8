"""A page of the tutorial, run from top to bottom: its files are written, its commands run, their output compared.

REWRITE=1 python -m pytest tests/tutorial    # writes into the pages what their commands print now
"""

import contextlib
import io
import itertools
import re
import runpy
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import train
from base.training.training_log import TrainingLog
from data_loader.cifar10 import CIFAR10Loader
from tests.conftest import load_script
from tests.helpers import ROOT, make_module, own_components
from utils import cli

TUTORIAL = ROOT / "docs" / "tutorial.md"
KOREAN = ROOT / "docs" / "tutorial.ko.md"
FILE = re.compile(r"```(\w+)\n# (\S+)\n(.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console( cifar10)?\n(.*?)```", re.DOTALL)
EITHER = re.compile(r"```(?:console|python|json).*?```", re.DOTALL)
RUN = re.compile(r"saved/\w+/\d{8}-\d{6}(?:-\d+)?")
TIME = re.compile(r"\d+(\.\d+)? (ms|s|min)\b|\d+:\d\d|(?<=\.py:)\d+")
OPERATION = re.compile(r"\b(mm|addmm): (?=mat1)")  # with which torch begins its messages since 2.15
PROGRESS = re.compile(r" +http://localhost:.*|epoch \d+/\d+  step .*|evaluating .*|training .*")
CLASSES = CIFAR10Loader.class_names
NOT_RUN = ("tensorboard",)  # a server
STOPPED_AT = 250
Command = tuple[str, str]
"""A command line and its output."""


def commands(block: str) -> list[Command]:
    """The commands of a console block, each with the lines that follow it."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def write(folder: Path, path: str, text: str, page: str) -> None:
    """Save a file as a reader does; those of the project's folders are imported, too."""
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_text(text)
    if path.startswith(("model/", "data_loader/", "trainer/")):
        make_module(path, text, page)


class Walk:
    """Somebody who follows a page in a folder: the commands with what they print."""

    def __init__(self, page: Path, folder: Path, cifar10: Path) -> None:
        self.page, self.folder, self.cifar10 = page, folder, cifar10
        self.runs: dict[str, str] = {}
        """Of each run on the page, the real one."""
        self.printed: list[tuple[str, list[Command]]] = []
        """Of each console block, its kind and what its commands print."""
        shutil.copytree(ROOT / "configs", folder / "configs")
        (folder / "by_hand").mkdir()
        (folder / "data").symlink_to(cifar10)

    def go(self) -> None:
        with following(self.folder):
            for block in EITHER.finditer(self.page.read_text(encoding="utf-8")):
                if file := FILE.fullmatch(block[0]):
                    write(self.folder, file[2], file[3], self.page.name)
                elif console := CONSOLE.fullmatch(block[0]):
                    kind = console[1] or ""
                    self.printed.append(
                        (kind, [(words, self.run(words, said)) for words, said in commands(console[2])])
                    )

    def run(self, line: str, said: str) -> str:
        """Run a command; what it prints, with the page's names of runs and without progress."""
        words = [self.real(word) for word in shlex.split(line)]
        if words[0] in NOT_RUN:
            return said
        assert words[0] == "python", line
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            if words[1].startswith("by_hand/"):
                runpy.run_path(words[1], run_name="__main__")
            else:
                with interrupted() if "^C\n" in said else contextlib.nullcontext():
                    self.call(words[1].removesuffix(".py"), words[2:])
        text = output.getvalue().replace(f"{self.folder}/", "").replace(f"{ROOT}/", "")
        lines = [line.rstrip() for line in text.splitlines() if not PROGRESS.fullmatch(line)]
        text = RUN.sub(lambda found: self.named(found[0]), "".join(f"{line}\n" for line in lines))
        return text.replace("warning: stopped", "^C\nwarning: stopped")  # as a terminal shows the key

    def call(self, script: str, words: list[str]) -> None:
        """A script of the project, with what keeps it in the folder and on the CPU."""
        own = []
        if script == "train" and "-r" not in words:
            own = ["runtime.device=cpu"]
            if any("cifar10" in word for word in words):
                own.append(f"data_loader.args.data_dir={self.cifar10}")
        if script == "train" and not any(word.startswith("saved/") for word in words):
            own.append(f"trainer.save_dir={self.folder / 'saved'}")
        cli.run(train.main if script == "train" else load_script(script).main, [*words, *own])

    def real(self, word: str) -> str:
        return RUN.sub(lambda found: self.runs[found[0]], word)

    def named(self, run: str) -> str:
        """The page's name of a real run: they are numbered."""
        names = {real: name for name, real in self.runs.items()}
        if run not in names:
            names[run] = f"{run.rpartition('/')[0]}/20261126-{120000 + len(self.runs) + 1}"
            self.runs[names[run]] = run
        return names[run]


@contextlib.contextmanager
def following(folder: Path) -> Iterator[None]:
    """Inside the folder, with the components that are registered there, until the block is left."""
    with torch.random.fork_rng(devices=[]), own_components(), contextlib.chdir(folder):
        yield


@contextlib.contextmanager
def interrupted() -> Iterator[None]:
    """Ctrl-C at a step in the middle of an epoch."""
    steps = itertools.count(1)
    log_step = TrainingLog.step

    def step(self: TrainingLog, loss: torch.Tensor | float, samples: int) -> None:
        log_step(self, loss, samples)
        if next(steps) == STOPPED_AT:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLog, "step", step)
        yield


def differences(expected: str, printed: str, *, numbers: bool, rel: float = 0.05) -> list[str]:
    """Where two outputs differ: in a word, or in a number by more than this part of it. Times do not count.

    numbers: whether they count. A line "..." in the expected output stands for any lines.
    """
    wanted, found = (OPERATION.sub("", TIME.sub("TIME", text)).splitlines() for text in (expected, printed))
    while "..." in wanted:
        gap = wanted.index("...")
        del wanted[gap]
        if "..." in wanted:  # the lines after this one begin where one is like the first of them
            like = (at for at in range(gap, len(found)) if alike(wanted[gap], found[at], numbers=False, rel=rel))
            after = next(like, len(found))
        else:
            after = len(found) - len(wanted[gap:])
        del found[gap:after]
    if len(wanted) != len(found):
        return [f"{len(wanted)} lines on the page, {len(found)} printed:", *found]
    return [
        f"{left!r} on the page, {right!r} printed"
        for left, right in zip(wanted, found, strict=True)
        if not alike(left, right, numbers=numbers, rel=rel)
    ]


def alike(left: str, right: str, *, numbers: bool, rel: float) -> bool:
    """numbers: False for what depends on the data: the best epoch, the class of a picture, "1 step" or "2 steps"."""
    pattern = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
    words = [re.sub(pattern, "#", line) for line in (left, right)]
    if not numbers:
        words = [re.sub(rf"\b(step)s\b|\b(best)$|(?<=,)({'|'.join(CLASSES)})(?=,)", "", line) for line in words]
        words = [line.replace("step", "") for line in words]
    if words[0].split() != words[1].split():
        return False
    if not numbers:
        return True
    pairs = zip(re.findall(pattern, left), re.findall(pattern, right), strict=True)
    values = [(float(one.replace(",", "")), float(other.replace(",", ""))) for one, other in pairs]
    return all(abs(a - b) <= rel * max(abs(a), abs(b)) for a, b in values)


def losses(output: str) -> list[float]:
    """The losses after 100, 200 ... 500 steps, as a script or the project prints them."""
    by_hand = re.findall(r"^\d00 (\S+)$", output, flags=re.MULTILINE)
    ours = re.findall(r"^ +\d/5 +\S+ +(\S+) ", output, flags=re.MULTILINE)
    return [float(loss) for loss in by_hand or ours]


def table(printed: list[str]) -> str:
    """The rows of the page's table of losses, from the output of each of the five."""
    columns = [losses(output) for output in printed]
    rows = zip(range(100, 600, 100), *columns, strict=True)
    return "".join(f"| {step} | " + " | ".join(f"{loss:.4g}" for loss in row) + " |\n" for step, *row in rows)


def five(printed: list[tuple[str, list[Command]]]) -> list[str]:
    """What the five versions of the net print, in the order of the page."""
    outputs = dict(reversed([command for _, block in printed for command in block]))  # the first of each
    scripts = [f"python by_hand/{name}.py" for name in ("one_numpy", "two_tensors", "three_autograd", "four_module")]
    return [outputs[line] for line in (*scripts, "python train.py --init-from by_hand/weights.pth")]


def rewritten(text: str, printed: list[tuple[str, list[Command]]]) -> str:
    """A page with what its commands print now, where that differs from what it says."""
    blocks = iter(printed)

    def block(found: re.Match[str]) -> str:
        kind, now = next(blocks)
        lines = ""
        for (line, before), (_, output) in zip(commands(found[2]), now, strict=True):
            same = kind or not differences(before, output, numbers=True, rel=0.001)
            lines += f"$ {line}\n{before if same else output}"
        return f"```console{kind}\n{lines}```"

    rows = re.compile(r"(?:^\| \d00 \|.*\n)+", re.MULTILINE)
    return rows.sub(lambda _: table(five(printed)), CONSOLE.sub(block, text), count=1)


def rewrite(walk: Walk) -> None:
    for page in filter(Path.exists, (TUTORIAL, KOREAN)):
        page.write_text(rewritten(page.read_text(encoding="utf-8"), walk.printed), encoding="utf-8")
