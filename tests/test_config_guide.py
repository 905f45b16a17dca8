"""The examples of docs/config_guide.md work as printed."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from tests import forked
from tests.helpers import PATIENCE, ROOT, blocks, copy_project, state
from utils.config.located_json import parse

pytestmark = pytest.mark.slow

GUIDE = ROOT / "docs" / "config_guide.md"
WEIGHTS, REFERENCES, NESTED = blocks(GUIDE, "json")
(MODEL,) = blocks(GUIDE, "python")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the guide's model in it."""
    target = copy_project(tmp_path_factory.mktemp("guide"))
    (target / "model" / "with_head.py").write_text(MODEL)
    return target


def trained(project: Path, block: str, *overrides: str) -> Path:
    """The run of a config of the guide, a file in docs/."""
    (project / "docs" / "example.json").write_text(block)
    arguments = ["-c", "docs/example.json", "trainer.epochs=1", *overrides]
    done = forked.run("train.py", *arguments, cwd=project, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    name = re.sub(r"\$\{WIDTH\}", "50", parse(block, "guide").value["name"])
    return next((project / "saved" / name).iterdir())


def test_the_guides_weights(project: Path) -> None:
    file = project / "docs_example" / "weights.pth"
    file.parent.mkdir()
    width = json.loads((ROOT / "configs" / "two_layer_net.json").read_text())["model"]["args"]["hidden_features"]
    torch.save({"hidden.weight": torch.ones(width, 1000)}, file)
    run = trained(project, WEIGHTS, "optimizer.args.lr=1e-30")
    assert torch.equal(state(run)["model"]["fc1.weight"], torch.ones(width, 1000))


def test_the_guides_references(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "RUNS" not in os.environ
    config = json.loads((trained(project, REFERENCES) / "config.json").read_text())
    assert config["model"]["args"]["hidden_features"] == 50
    assert config["trainer"]["save_dir"] == "saved"


def test_the_guides_nested_arguments(project: Path) -> None:
    assert "backbone.fc1.weight" in state(trained(project, NESTED))["model"]
