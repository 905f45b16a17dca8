"""``train.py --check``: builds everything a run needs and runs one batch through all of it.

preflight runs the checks in order; data_checks and model_checks contain them, each returning a CheckResult.
"""

from extras.check.preflight import preflight

__all__ = ["preflight"]
