"""curves.png of a run: training and validation of each metric in one panel, drawn from metrics.jsonl.

CurvesWriter draws it during training, curves_png once; both use picture, which draws with Pillow alone, since importing
matplotlib takes as long as a short training.
"""

from extras.curves.curves_writer import CurvesWriter, curves_png

__all__ = ["CurvesWriter", "curves_png"]
