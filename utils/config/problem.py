"""One mistake in a config, and all of them as one error that shows each where it stands."""

from collections.abc import Sequence
from dataclasses import dataclass

from utils.config.located_json import Document, KeyPath
from utils.errors import ConfigError


@dataclass(frozen=True)
class Problem:
    """Where it stands in the config and what is wrong. at_key: the key itself is the mistake, not its value."""

    path: KeyPath
    message: str
    at_key: bool = False


def config_error(document: Document, problems: Sequence[Problem]) -> ConfigError:
    """All problems as one error, in the order in which they stand in the file; those of overrides come last."""
    placed = [(document.place(p.path, of_key=p.at_key), p) for p in dict.fromkeys(problems)]
    placed.sort(key=lambda item: (item[0].line == 0, item[0].source, item[0].line, item[0].column))
    shown = [place.show(f"{dotted(p.path)}: {p.message}" if p.path else p.message) for place, p in placed]
    count = f"{len(shown)} mistakes in the config:\n\n" if len(shown) > 1 else ""
    return ConfigError(count + "\n\n".join(shown))


def dotted(path: KeyPath) -> str:
    """A path as an override writes it."""
    return ".".join(str(part) for part in path)
