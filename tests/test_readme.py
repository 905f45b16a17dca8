"""What the README shows works as it stands there."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from utils.located_json import parse

README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the README's model, data and metric in it."""
    target = tmp_path_factory.mktemp("readme") / "project"
    left_out = shutil.ignore_patterns(".git", ".venv", "saved", "data", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, target, ignore=left_out)
    my_net, my_data, my_metric = PYTHON
    (target / "model" / "my_net.py").write_text(my_net)
    (target / "data_loader" / "my_data.py").write_text(my_data)
    with (target / "model" / "metric.py").open("a") as file:
        file.write("\n\n" + my_metric)
    return target


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train.py", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, check=False)


def test_a_model_of_ones_own(project: Path) -> None:
    done = run(project, 'model={"type": "MyNet", "args": {"in_features": 1000}}', "--lr=1e-5", "trainer.epochs=2")
    assert done.returncode == 0, done.stderr
    wrong = run(project, 'model={"type": "MyNet", "args": {"in_features": "many"}}')
    assert wrong.returncode == 2
    assert "should be an integer" in wrong.stderr


def test_data_and_a_metric_of_ones_own(project: Path) -> None:
    config = {
        "name": "own",
        "data_loader": {
            "type": "MyLoader",
            "args": {"batch_size": 16, "validation_split": 0.2, "num_workers": 2},
        },
        "model": {"type": "LeNet"},
        "loss": "cross_entropy",
        "metrics": ["accuracy", "confidence"],
        "optimizer": "Adam",
        "trainer": {"epochs": 2, "monitor": "max val_confidence"},
    }
    (project / "own.json").write_text(json.dumps(config))
    done = run(project, "-c", "own.json")
    assert done.returncode == 0, done.stderr
    assert "confidence" in done.stdout


def test_configs_in_the_readme_are_json() -> None:
    for block in re.findall(r"```json\n(.*?)```", README, flags=re.DOTALL):
        assert parse(block, "README.md").value["name"]


def test_messages_in_the_readme_are_what_is_printed(project: Path) -> None:
    for command, message in re.findall(r"\$ python train\.py (.*)\n(error: .*)\n", README):
        assert run(project, *command.split()).stderr.strip() == message


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"`((?:base|utils|trainer|model|logger|configs|docs)/[\w./]+)`", README):
        if name not in ("model/my_net.py",):
            assert (ROOT / name).exists(), name
