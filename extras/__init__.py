"""Whatever only looks, reports or searches. The core never needs it: any folder here can be deleted.

check/          train.py --check
schema/         train.py --list, config.schema.json and the tables of keys
tensorboard/    what TensorBoard shows beside the curves
report/         test.py's report: tables, figures, predictions
compare/        test.py --compare
"""
