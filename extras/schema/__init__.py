"""What a config may contain, from the schema and from the signatures of all components.

catalogue    train.py --list
json_schema  config.schema.json, which lets an editor complete and check configs
config_table docs/config.md and the README's table of keys
docstrings   the texts that all of them show
``make schema`` runs the package, which writes the files.
"""

from extras.schema.catalogue import listing

__all__ = ["listing"]
