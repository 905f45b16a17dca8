"""From the text of a config file to a checked Config. Nothing else is read, and nothing is written.

The way of a config, one file for each step:

    located_json    the text of a file to values, and the source location of each
    extends         merged over the config that it extends
    overrides       KEY=VALUE of the command line, applied
    utils.schema    keys, types and ranges; schema_problems says what is wrong with them
    components      names (utils.registry) and arguments (utils.arguments: by the signatures)
    dry_run         the ranges that only torch knows
    load            the order of all this, and how the parts fit each other

The first three stop at the first mistake. The others give Problems, each a path and a message, which are shown
together, each with its source line.
"""

from utils.config.load import LoadedConfig, load_config, to_json

__all__ = ["LoadedConfig", "load_config", "to_json"]
