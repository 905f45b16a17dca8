"""From the text of a config file to a checked Config, or to one error that shows every mistake at its line.

The way through it:

    load            the order of all checks, and conflicts between keys
    sources         the file, over the one that it extends, under KEY=VALUE overrides
    located_json    strict JSON, and the line of each of its values
    references      "${NAME}", "${env:NAME}" and "${data.NAME}" become values
    problems        keys and types (utils.schema), names (utils.registry), arguments (utils.arguments)
    dry_run         the ranges that only torch knows
    schedulers      schedulers laid out over the length of the run

sources and located_json stop at the first mistake. The others yield Problems, each a path and a message, which are
shown together.
"""

from utils.config.load import LoadedConfig, load_config, to_json

__all__ = ["LoadedConfig", "load_config", "to_json"]
