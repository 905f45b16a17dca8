"""docs/notebook.ipynb runs without changes, and has the outputs that a reader sees.

python -m tests.docs.test_notebook    # runs it and writes its outputs again
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests.helpers import PATIENCE, ROOT

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "notebook.ipynb"
NEEDED = ("base", "configs", "data_loader", "extras", "logger", "model", "trainer", "utils")
MOST_BYTES = 60_000


def execute(project: Path) -> Any:
    """The notebook after it was run in a copy of the project."""
    for folder in NEEDED:
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", project / "train.py")
    (project / "docs").mkdir()
    notebook = nbformat.read(PAGE, as_version=4)
    place = {"metadata": {"path": str(project / "docs")}}
    executed = nbclient.NotebookClient(
        notebook, timeout=PATIENCE, resources=place, coalesce_streams=True, record_timing=False
    ).execute()
    for cell in executed["cells"]:
        if "outputs" in cell:  # stderr says how long the pictures took to read, if it is long
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
    return executed


def outputs(notebook: Any) -> list[list[str]]:
    """What kinds of outputs each cell of code has."""
    return [
        [output["output_type"] if "data" not in output else max(output["data"]) for output in cell["outputs"]]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def text(notebook: Any) -> str:
    """All that its cells have printed."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return "".join(output.get("text", "") for cell in cells for output in cell["outputs"])


def test_it_runs_as_it_stands(tmp_path: Path) -> None:
    executed = execute(tmp_path)
    assert outputs(executed) == outputs(nbformat.read(PAGE, as_version=4))
    printed = text(executed)
    assert "done after 5 epochs" in printed
    assert not re.search(r"step \d+/", printed), "the progress bar is gone when an epoch ends"


def test_its_outputs_look_right_where_it_is_read() -> None:
    kept = nbformat.read(PAGE, as_version=4)
    nbformat.validate(kept)
    assert outputs(kept) == [[], [], [], ["stream"], ["text/plain"], ["text/plain"], ["stream"]]
    images = [output["data"] for cell in kept["cells"] for output in cell.get("outputs", ()) if "data" in output]
    assert all("image/png" in data for data in images)
    printed = text(kept)
    assert "\r" not in printed
    assert "\x1b" not in printed
    assert not re.search(r"(?<!\w)/\w", re.sub(r"\d+/\d+|http://\S+", "", printed)), "no paths of somebody's machine"
    assert PAGE.stat().st_size < MOST_BYTES


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(execute(Path(folder)), PAGE)
