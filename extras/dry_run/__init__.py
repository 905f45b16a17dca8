"""Argument ranges that only torch and torchmetrics know, checked before any data is read.

Without this folder, a run refuses them where it builds the component.

dry_run  builds the components of torch for a dummy parameter
utils/config/load.py calls it. It imports torch, which takes seconds.
"""

from extras.dry_run.dry_run import dry_run_problems

__all__ = ["dry_run_problems"]
