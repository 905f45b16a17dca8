"""curves.png of a run: training and validation of each metric in one panel, drawn from metrics.jsonl.

curves_writer   ``CurvesWriter`` keeps it up to date during training, ``curves_png`` draws it once
picture         the drawing, with Pillow alone: importing matplotlib takes as long as a short training
"""

from extras.curves.curves_writer import CurvesWriter, curves_png

__all__ = ["CurvesWriter", "curves_png"]
