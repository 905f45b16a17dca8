"""Any folder of extras/ can be deleted, or all of it: training, resume and test.py's numbers stay, and what is gone
says so in one line where it is asked for."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import forked
from tests.helpers import PATIENCE, ROOT

pytestmark = pytest.mark.slow

FOLDERS = sorted(path.parent.name for path in ROOT.glob("extras/*/__init__.py"))
NEEDED = ("base", "data_loader", "extras", "logger", "model", "trainer", "utils")
OPTIONS = ["trainer.epochs=2", "trainer.monitor=min loss", "trainer.save_every_steps=3", "trainer.steps_per_epoch=4"]
GONE = {
    "writers": (
        ["train.py", 'trainer.writers=["csv"]'],
        'error: override trainer.writers=["csv"]: trainer.writers.0: unknown writer "csv"; expected one of: '
        "tensorboard; extras/writers is not in this project\n",
    ),
    "dry_run": (
        ["train.py", "optimizer.type=Adam", 'optimizer.args={"lr": -1}'],
        'error: override optimizer.args={"lr": -1}: optimizer.args: Adam cannot be built: Invalid learning rate: -1\n',
    ),
    "hints": (
        ["train.py", 'optimizer.args={"lr": }'],
        'error: override optimizer.args={"lr": }:1:8: not valid JSON: Expecting value\n'
        '    1 | {"lr": }\n               ^\n',
    ),
    "sweep": (["sweep.py", "seed=0..1"], "error: sweep.py needs extras/sweep, which is not in this project\n"),
    "check": (["train.py", "--check"], "error: --check needs extras/check, which is not in this project\n"),
    "schema": (["train.py", "--list"], "error: --list needs extras/schema, which is not in this project\n"),
    "compare": (
        ["test.py", "--compare", "saved"],
        "error: --compare needs extras/compare, which is not in this project\n",
    ),
    "predict": (
        ["predict.py", "-r", "RUN", "config.json"],
        "error: predict.py needs extras/predict, which is not in this project\n",
    ),
    "export": (["export.py", "-r", "RUN"], "error: export.py needs extras/export, which is not in this project\n"),
}
NOTES = {
    "tensorboard": "TensorBoard gets only the curves: extras/tensorboard is not in this project\n",
    "report": "TensorBoard gets no pictures of evaluations: extras/report is not in this project\n",
}


# runs each [script, argument ...] by its main, as the command does, and prints [status, output, errors] of each
COMMANDS = """
import contextlib, glob, io, json, runpy, sys
from utils import cli
results = []
for script, *words in json.loads(sys.argv[1]):
    words = [glob.glob("saved/*/*")[0] if word == "RUN" else word for word in words]
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as errors:
        status = cli.run(runpy.run_path(script)["main"], words)
    results.append([status, output.getvalue(), errors.getvalue()])
print(json.dumps(results))
"""


def run(project: Path, *commands: list[str]) -> list[tuple[int, str, str]]:
    """Commands one after the other in one process: status, output and errors of each."""
    script = project / "commands.py"
    script.write_text(COMMANDS)
    done = forked.run(script, json.dumps(commands), cwd=project, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return [(status, output, errors) for status, output, errors in json.loads(done.stdout)]


def results(
    project: Path, *asked: list[str]
) -> tuple[str, dict[str, float], list[dict[str, float]], str, list[tuple[int, str, str]]]:
    """The notes of training about TensorBoard; test.py's numbers; the epochs of the run; what test.py prints; and what
    further commands give."""
    first = ["train.py", "trainer.epochs=1", *OPTIONS[1:]]
    commands = [first, ["train.py", "-r", "RUN", *OPTIONS], ["test.py", "-r", "RUN"], *asked]
    (status, trained, errors), *others = run(project, *commands)
    for result in ((status, trained, errors), *others[:2]):
        assert (result[0] or 0, result[2]) == (0, "")
    (folder,) = project.glob("saved/*/*")
    metrics = json.loads((folder / "test" / "metrics.json").read_text())
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: record[name] for name in ("epoch", "step", "loss")} for record in epochs]
    assert list(folder.glob("events.out.tfevents.*"))
    assert list(folder.glob("events.out.tfevents.*test"))
    notes = "".join(line for line in trained.splitlines(keepends=True) if line.startswith("TensorBoard"))
    return notes, {name: metrics[name] for name in ("step", "samples", "loss")}, kept, others[1][1], others[2:]


@dataclass
class Whole:
    """The project with all of extras/, compiled, and what it gives."""

    project: Path
    metrics: dict[str, float]
    epochs: list[dict[str, float]]
    printed: str


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    project = tmp_path_factory.mktemp("whole") / "project"
    for folder in NEEDED:
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "test.py", "predict.py", "export.py", "sweep.py", "config.json"):
        shutil.copy(ROOT / name, project / name)
    notes, metrics, epochs, printed, _ = results(project)
    assert notes == ""
    shutil.rmtree(project / "saved")
    return Whole(project, metrics, epochs, printed.splitlines()[1])


@pytest.mark.parametrize("folder", [*FOLDERS, "all of it"])
def test_the_rest_works_without(folder: str, tmp_path: Path, whole: Whole) -> None:
    project = shutil.copytree(whole.project, tmp_path / "project")
    missing = FOLDERS if folder == "all of it" else [folder]
    shutil.rmtree(project / "extras" / ("" if folder == "all of it" else folder))
    if folder != "all of it":  # as git leaves it, of which Python makes a package without a file
        (project / "extras" / folder / "__pycache__").mkdir(parents=True)

    gone = [GONE[name] for name in GONE if name in missing]
    notes, metrics, epochs, printed, answers = results(project, *(command for command, _ in gone))
    assert notes == (NOTES["tensorboard"] if len(missing) > 1 else NOTES.get(folder, ""))
    assert (metrics, epochs, printed.splitlines()[1]) == (whole.metrics, whole.epochs, whole.printed)
    assert ("no report: extras/report is not in this project" in printed) == ("report" in missing)
    assert bool(list(project.glob("saved/*/*/curves.png"))) == ("curves" not in missing)
    assert answers == [(2, "", message) for _, message in gone]
