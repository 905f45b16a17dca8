"""Whatever only observes, reports or searches. The core never needs it: any folder here can be deleted.

check/          train.py --check
early/          a typo's message and a repeated --list before torch is imported
schema/         train.py --list, config.schema.json and the tables of keys
tensorboard/    what TensorBoard shows beside the curves
curves/         curves.png in each run folder
report/         test.py's report: tables, figures, predictions
compare/        test.py --compare
predict/        predict.py
export/         export.py
sweep/          sweep.py
writers/        writers that a config may name: CSV, MLflow, Weights & Biases

Each folder's ``__init__.py`` exports what the scripts call, which they find by utils/extras.py. No folder needs another
one: ``document``, ``drawing``, ``layers``, ``letters`` and ``records`` are shared, and without curves/ or report/ what
they draw is left out of the report and of TensorBoard.
"""
