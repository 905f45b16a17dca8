"""Runs the checks and tests of a minimal project in a folder made for the purpose: ``make test-minimal``.

A project made by ``new_project.py --minimal`` has neither extras/ nor dev/, and its tests must pass all the same.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
PARALLEL = ["-n", "auto", "--maxprocesses", "8", "--dist", "loadfile", "--no-loadscope-reorder"]  # as in the Makefile


def main(arguments: list[str]) -> int:
    """arguments: of pytest. Returns the status of the first command that fails, else 0."""
    with TemporaryDirectory() as folder:
        project = Path(folder) / "minimal"
        for options, where in (
            (["new_project.py", "--minimal", str(project)], ROOT),
            (["-m", "ruff", "format", "--check", "."], project),
            (["-m", "ruff", "check", "."], project),
            (["-m", "mypy"], project),
            (["-m", "pytest", *PARALLEL, *arguments], project),
        ):
            if status := subprocess.run([sys.executable, *options], cwd=where).returncode:
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
