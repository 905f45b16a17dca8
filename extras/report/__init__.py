"""The report of test.py, and the evaluation statistics that it and TensorBoard's pictures are based on.

EvaluationStats observes an evaluation and accumulates statistics of classification or regression batch by batch;
EvaluationReport also writes predictions.csv meanwhile, and at the end report.md and report.html with the figures;
Tested describes what was tested. description writes the report's head, document renders both formats.
"""

from extras.report.description import Tested
from extras.report.evaluation_report import EvaluationReport
from extras.report.evaluation_stats import EvaluationStats

__all__ = ["EvaluationReport", "EvaluationStats", "Tested"]
