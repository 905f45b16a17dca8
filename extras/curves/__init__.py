"""curves.png of a run: training and validation of each metric in one panel, drawn from metrics.jsonl.

CurvesWriter draws it while a run trains, curves_png once; both by picture, which draws with Pillow alone: to import
matplotlib takes as long as a short training.
"""

from extras.curves.curves_writer import CurvesWriter, curves_png

__all__ = ["CurvesWriter", "curves_png"]
