"""Answers before torch, which takes seconds, is imported: typos in the config, and a cached --list.

answer  decides which of these to try
typos   mistakes in keys and names, if they are surely all that utils/config would find
names   the names a config can give, parsed from the sources instead of imported
cache   the output of an earlier --list, if nothing it depends on has changed

If anything is uncertain, nothing is answered, and the command continues as it would without this folder.
"""

from extras.early.answer import answer
from extras.early.cache import keep_listing

__all__ = ["answer", "keep_listing"]
