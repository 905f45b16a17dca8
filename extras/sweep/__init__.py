"""``sweep.py``: trials over a space of the config's values, each a run like any other.

command        the command line, and what it starts or continues
spaces         KEY=SPACE, checked as overrides are
sweep_folder   trials and outcomes on the disk, which alone say what is done
search         the next trial's values, and what is pruned: a grid, or Optuna
coordinator    claims trials, starts their processes, records how they end
trial_process  the process of a trial, which is ``train.py -r`` on its run
display        the live table
ranking        trials in their order, over seeds and folds, as the rows of tables
results        the final table, sweep.csv and best.json
report         report.md and report.html, with the figures
"""

import argparse
from typing import Any

from utils.cli import loading


def sweep(options: argparse.Namespace) -> Any:
    """Run or continue a sweep; see ``command.sweep``. Imported only then: the server of trials imports this package."""
    with loading():
        from extras.sweep import command

    return command.sweep(options)
