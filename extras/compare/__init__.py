"""Runs side by side: test.py --compare. ``runs`` reads their folders, ``comparison`` makes the table and the curves."""
