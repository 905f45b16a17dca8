"""Any folder of extras/ can be deleted, or all of it: training, resume and test.py's numbers stay, and what is gone
says so in one line where it is asked for."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests import forked
from tests.helpers import PATIENCE, ROOT

pytestmark = pytest.mark.slow

FOLDERS = sorted(path.parent.name for path in ROOT.glob("extras/*/__init__.py"))
NEEDED = ("base", "data_loader", "extras", "logger", "model", "trainer", "utils")
OPTIONS = ["trainer.epochs=2", "trainer.monitor=min loss", "trainer.save_every_steps=3", "trainer.steps_per_epoch=4"]
GONE = {
    "check": (["train.py", "--check"], "error: --check needs extras/check, which is not in this project\n"),
    "schema": (["train.py", "--list"], "error: --list needs extras/schema, which is not in this project\n"),
    "compare": (
        ["test.py", "--compare", "saved"],
        "error: --compare needs extras/compare, which is not in this project\n",
    ),
}
NOTES = {
    "tensorboard": "TensorBoard gets only the curves: extras/tensorboard is not in this project\n",
    "report": "TensorBoard gets no pictures of evaluations: extras/report is not in this project\n",
}


def run(project: Path, *words: str) -> CompletedProcess[str]:
    return forked.run(*words, cwd=project, timeout=PATIENCE)


def results(project: Path) -> tuple[str, dict[str, float], list[dict[str, float]], str]:
    """The notes of training about TensorBoard; test.py's numbers; the epochs of the run; what test.py prints."""
    trained = run(project, "train.py", "trainer.epochs=1", *OPTIONS[1:])
    assert trained.returncode == 0, trained.stderr
    resumed = run(project, "train.py", "-r", *OPTIONS)
    assert resumed.returncode == 0, resumed.stderr
    (folder,) = project.glob("saved/*/*")
    tested = run(project, "test.py", "-r", str(folder))
    assert tested.returncode == 0, tested.stderr
    assert tested.stderr == ""
    metrics = json.loads((folder / "test" / "metrics.json").read_text())
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: record[name] for name in ("epoch", "step", "loss")} for record in epochs]
    assert list(folder.glob("events.out.tfevents.*"))
    assert list(folder.glob("test/events.out.tfevents.*"))
    assert trained.stderr == resumed.stderr == ""
    notes = "".join(line for line in trained.stdout.splitlines(keepends=True) if line.startswith("TensorBoard"))
    return notes, {name: metrics[name] for name in ("step", "samples", "loss")}, kept, tested.stdout


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
    for name in ("train.py", "test.py", "config.json"):
        shutil.copy(ROOT / name, project / name)
    notes, metrics, epochs, printed = results(project)
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

    notes, metrics, epochs, printed = results(project)
    assert notes == (NOTES["tensorboard"] if len(missing) > 1 else NOTES.get(folder, ""))
    assert (metrics, epochs, printed.splitlines()[1]) == (whole.metrics, whole.epochs, whole.printed)
    assert ("no report: extras/report is not in this project" in printed) == ("report" in missing)
    for name, (command, message) in GONE.items():
        if name in missing:
            asked = run(project, *command)
            assert (asked.returncode, asked.stdout, asked.stderr) == (2, "", message)
