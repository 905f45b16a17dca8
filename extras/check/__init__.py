"""``train.py --check``: builds everything a run needs and runs one batch through all of it.

preflight runs the checks in order; data_checks, first_loss, model_checks, exactness_checks and schedule_checks contain
them. Each returns what check_result defines: a verdict and how to print it.
"""

from extras.check.preflight import preflight

__all__ = ["preflight"]
