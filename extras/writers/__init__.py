"""Where a run can be written beside TensorBoard: one file each, by ``trainer.writers``. docs/writers.md describes them.

csv_files   metrics.csv and steps.csv in the run's folder
mlflow_run  a run in an MLflow store
wandb_run   a run of Weights & Biases
delivery    what the last two share: a thread that sends, and a journal by which each step is sent once

Every file of this folder is imported, so that another one that registers a writer is known too.
"""

import importlib
import pkgutil

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
