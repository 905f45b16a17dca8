"""``test.py --compare``: runs side by side, as a table, as CSV and as curves.

runs reads their folders, comparison ranks them and builds the table, curves draws the figure.
"""

from extras.compare.comparison import compare

__all__ = ["compare"]
