"""What a command can answer before torch is imported, which takes seconds: a typo in the config, and a cached --list.

typos   mistakes in keys and names, if they are surely all that the checks of utils/config would find
names   the names that a config may give, read from the sources instead of imported
cache   the text of an earlier --list, while nothing that it was made from has changed

Where anything is not certain, nothing is answered, and the command goes its usual way, as it does without this folder.
"""

from extras.early.answer import answer
from extras.early.cache import keep_listing

__all__ = ["answer", "keep_listing"]
