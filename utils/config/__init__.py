"""From the text of a config file to a checked Config, or to one error that lists the mistakes with their lines.

The stages, in order:

    load            order of the checks, and conflicts between keys
    sources         the file, with the one it extends below it and KEY=VALUE overrides on top
    located_json    strict JSON, and the line of each value
    references      "${NAME}", "${env:NAME}" and "${data.NAME}" replaced by values
    problems        keys and types (utils.schema), names (utils.registry), arguments (utils.arguments)
    extras/dry_run  argument ranges that only torch knows
    ineffective     keys that have no effect, because of others or in a command
    schedulers      schedulers laid out over the length of the run
    resume          the config of a resumed run compared with that of its checkpoint

sources and located_json stop at the first mistake. The others yield Problems (a path and a message each). Those of
references and problems are reported together; only without any, those of dry_run and the conflicts are.
"""

from utils.config.load import LoadedConfig, as_json, load_config, located, to_json

__all__ = ["LoadedConfig", "as_json", "load_config", "located", "to_json"]
