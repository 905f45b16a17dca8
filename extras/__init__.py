"""Everything that only observes, reports or searches. The core never needs it: any folder here can be deleted.

advice/         warnings about likely mistakes while a run trains
check/          train.py --check
hints/          what an unknown key or name in a config probably means
dry_run/        argument ranges that only torch knows, before a run reads its data
early/          messages for typos and repeated --list output before torch is imported
schema/         train.py --list, config.schema.json and the tables of keys
tensorboard/    what TensorBoard shows besides the curves
curves/         curves.png in each run folder
report/         test.py's report: tables, figures, predictions
compare/        test.py --compare
predict/        predict.py
export/         export.py
sweep/          sweep.py
writers/        writers that a config can name: CSV, MLflow, Weights & Biases

Each folder's ``__init__.py`` exports what the scripts call, found through utils/extras.py. No folder needs another:
``classification``, ``document``, ``drawing``, ``layers``, ``letters``, ``pen``, ``picture_grid``, ``records``,
``spreadsheets`` and ``untouched`` are shared, and without curves/ or report/ their figures are left out of the report
and of TensorBoard.
"""
