"""dev/bench/parts.py times the parts of a step, whatever the methods that it watches are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.slow


def test_the_parts_of_a_step_are_timed(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "dev/bench/parts.py",
        "-c",
        "config.json",
        "trainer.epochs=1",
        "trainer.steps_per_epoch=3",
    ]
    done = subprocess.run(
        [*command, f"trainer.save_dir={tmp_path}", "trainer.pictures_every=0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert min(found[part] for part in ("data", "forward", "backward", "optimizer", "metrics", "logging")) > 0
