"""A faster start: answers before torch is imported, which takes seconds, and torch without its compiler.

answer  decides which of these to try
typos   mistakes in keys and names, if they are surely all that utils/config would find
names   the names a config can give, parsed from the sources instead of imported
cache   the output of an earlier --list, if nothing it depends on has changed
late_compiler   leaves torch's compiler unimported until something is compiled

If anything is uncertain, nothing is answered, and the command continues as it would without this folder.
"""

from extras.early.answer import answer
from extras.early.cache import keep_listing
from extras.early.late_compiler import import_compiler_late

__all__ = ["answer", "import_compiler_late", "keep_listing"]
