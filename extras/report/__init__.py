"""The report of test.py, and the evaluation statistics that it and TensorBoard's pictures are based on.

evaluation_stats    observes an evaluation and recognises its task; statistics adds up batch by batch
evaluation_report   also collects the predictions, and writes report.md, report.html and predictions.csv
figures             the figures of a report
thumbnails          those that TensorBoard shows too
description         its head: what was tested
"""

from extras.report.description import Tested
from extras.report.evaluation_report import EvaluationReport
from extras.report.evaluation_stats import EvaluationStats

__all__ = ["EvaluationReport", "EvaluationStats", "Tested"]
