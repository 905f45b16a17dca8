"""What a config can contain, from the schema and the signatures of all components.

catalogue    train.py --list
json_schema  config.schema.json, with which editors complete and check configs
__main__     docs/config.md, and the table of keys in the README
docstrings   the texts shown by all of these
``make schema`` runs this package, which writes the files.
"""

from extras.schema.catalogue import listing

__all__ = ["listing"]
