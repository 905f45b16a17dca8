"""``sweep.py``: trials over a space of config values, each a run like any other.

command        the command line, and what it starts or resumes
spaces         KEY=SPACE, checked like overrides
sweep_folder   trials and outcomes on disk, the only record of what is done
search         the next trial's values, and pruning: a grid, or Optuna
coordinator    claims trials, starts their processes, records how they end
trial_process  a running trial, and its process: ``train.py -r`` on its run
display        the live table
results        trials as table rows, and grouped over seeds and folds; sweep.csv, best.json, report.md and report.html
figures        the figures of the report
"""

import argparse
from typing import Any

from utils.cli import loading


def sweep(options: argparse.Namespace) -> Any:
    """Run or continue a sweep; see ``command.sweep``. Imported late: a trial's process imports this package first."""
    with loading():
        from extras.sweep import command

    return command.sweep(options)
