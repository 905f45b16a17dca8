"""``train.py --check``: everything a run needs is built, and one batch goes through all of it.

preflight runs the checks in order; data_checks and model_checks hold them, each giving a CheckResult.
"""

from extras.check.preflight import preflight

__all__ = ["preflight"]
