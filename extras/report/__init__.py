"""The report of test.py, and the statistics of an evaluation on which it and TensorBoard's pictures rest.

EvaluationStats observes an evaluation and adds up batch by batch what classification or regression shows of it;
EvaluationReport also writes predictions.csv meanwhile, and at the end report.md and report.html with the figures;
Tested says what it is a report of. description makes the report's head, document the two kinds of file.
"""

from extras.report.description import Tested
from extras.report.evaluation_report import EvaluationReport
from extras.report.evaluation_stats import EvaluationStats

__all__ = ["EvaluationReport", "EvaluationStats", "Tested"]
