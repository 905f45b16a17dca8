"""``test.py --compare``: runs side by side, as a table, as CSV and as curves.

runs reads their folders and ranks them, comparison builds the table, curves draws the figure.
"""

from extras.compare.comparison import compare

__all__ = ["compare"]
