"""Warnings about likely mistakes while a run trains. Without this folder, a run trains the same and says less.

Advice is the observer that base/outputs.py attaches to every run:
  advice        after the first training batch: what is not trained, and outputs and targets that do not fit the loss;
                after the first step: parts that differ between processes; after an epoch: values that are NaN
  changes       code, versions and machine that differ from those of the last start; inputs prepared differently
  known_errors  errors in a step and in an optimizer whose cause is known; a last batch of one sample, tried before
  causes        the usual causes of errors in a step, and the samples behind a loss that is not finite
Mistakes that end a run with an error are found by the training loop itself, in base/training/first_batch.py.
"""

from extras.advice.advice import Advice, first_batch_warnings
from extras.advice.causes import broken_samples, step_advice, usual_cause
from extras.advice.changes import changed_facts_of_test, report_changes
from extras.advice.known_errors import causes_in_optimizer, explained

__all__ = [
    "Advice",
    "broken_samples",
    "causes_in_optimizer",
    "changed_facts_of_test",
    "explained",
    "first_batch_warnings",
    "report_changes",
    "step_advice",
    "usual_cause",
]
