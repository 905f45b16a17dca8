"""``export.py``: exports the model of a run to a file that does not need this project's code.

calls records what the model is called with, formats has the functions of each format, exporting writes a file, reads it
back and compares it with the model.
"""

from extras.export.exporting import export

__all__ = ["export"]
