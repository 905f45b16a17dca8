"""``export.py``: exports the model of a run to a file that does not need this project's code.

calls records what the model is called with, formats has a class for each format, exporting writes a file, reads it back
and compares it with the model.
"""

from extras.export.exporting import export
from extras.export.formats import FORMATS

__all__ = ["FORMATS", "export"]
