"""``export.py``: the model of a run as a file that needs none of this project's code.

calls finds what the model is called with, formats has a class for each kind of file, exporting makes one, reads it
again and compares it with the model.
"""

from extras.export.exporting import export
from extras.export.formats import FORMATS

__all__ = ["FORMATS", "export"]
