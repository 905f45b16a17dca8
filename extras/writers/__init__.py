"""Where a run can be written besides TensorBoard, one file each, for ``trainer.writers``. See docs/writers.md.

csv_files   metrics.csv and steps.csv in the run's folder
mlflow_run  a run in an MLflow store
wandb_run   a run of Weights & Biases
delivery    shared by the last two: a thread that sends, and a journal that ensures each step is sent once

Every file in this folder is imported, so your own files that register a writer are found too.
"""

import importlib
import pkgutil

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
