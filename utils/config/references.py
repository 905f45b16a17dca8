"""References in a config: "${NAME}" from "variables", "${env:NAME}" of the environment, "${data.NAME}" of the data.

They are replaced before all checks, so every check sees the values; messages show the line of the reference.
Facts of the data are known only once the data loader is built: until then, arguments that refer to one are not checked.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from utils.config.located_json import Document
from utils.config.sources import value_at
from utils.errors import ConfigError, Problem
from utils.schema import KeyPath
from utils.text import hint

_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)(\}?)")
_NAME = re.compile(r"\w+")
_ENVIRONMENT = re.compile(r"env:(\w+)(?::(.*))?", re.DOTALL)
FORMS = '"${NAME}" of "variables", "${env:NAME}", "${env:NAME:DEFAULT}" and "${data.NAME}"; a plain "${" is "$${"'
TOO_EARLY = "facts of the data are known only after loading it: only arguments of other components can refer to them"
CLASS_FACTS = ("num_classes", "class_counts", "class_weights")
CLASSES = 'it needs integer targets of shape (N,), in a TensorSource or as "targets" of the data set'
MOST_USED = 10_000  # variables in one config: those that contain others could need any amount of memory


class _Pending(Exception):  # noqa: N818  (not an error: the data loader is not built yet)
    pass


def escaped(value: Any) -> Any:
    """A value in which no string can be read as a reference, as a config would write it."""
    return _map_strings(lambda text, path: text.replace("${", "$${"), value)


def _map_strings(function: Callable[[str, KeyPath], Any], value: Any, path: KeyPath = ()) -> Any:
    """A value with the function applied to every string in it and the path of the string."""
    if isinstance(value, dict):
        return {key: _map_strings(function, item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_strings(function, item, (*path, index)) for index, item in enumerate(value)]
    return function(value, path) if isinstance(value, str) else value


class References:
    """Replaces the references in one config.

    facts: of the data; None if the data loader is not built yet.
    partial: for a config that will not be run; its environment variables may be unset.
    After ``resolved``, ``pending`` has the paths that are still unresolved, and ``problems`` the mistakes.
    """

    def __init__(self, document: Document, facts: Mapping[str, Any] | None, *, partial: bool = False) -> None:
        self.document, self.facts, self.partial = document, facts, partial
        self.pending: list[KeyPath] = []
        self.problems: list[Problem] = []
        self._used: list[str] = []
        found = document.value.get("variables")
        self.variables: dict[str, Any] = found if isinstance(found, dict) else {}

    def resolved(self) -> Document:
        """The config with its references replaced, and without its variables."""
        value = self.document.value
        if not isinstance(value.get("variables", {}), (dict, type(None))):
            self.problems.append(Problem(("variables",), 'should be an object: {"NAME": VALUE, ...}'))
        values = _map_strings(self._resolve, {key: item for key, item in value.items() if key != "variables"})
        for name in self.variables.keys() - {*self._used}:
            if self._was_replaced(name):
                continue
            message = f'"${{{name}}}" is not used' if _NAME.fullmatch(name) else "a name has letters, digits and _"
            self.problems.append(Problem(("variables", name), message))
        return Document(values, self.document.sources)

    def _was_replaced(self, name: str) -> bool:
        """Whether a file uses a variable of a file, in a value that an override or an extending config replaced."""
        texts = [source.text or "" for source in self.document.sources.values()]
        is_override = self.document.is_override(("variables", name))
        return not is_override and any(f"${{{name}}}" in text for text in texts)

    def _resolve(self, text: str, path: KeyPath) -> Any:
        """A string of the config with its references replaced. Fills ``problems`` and ``pending``."""
        try:
            return self._replaced(text, path, ())
        except ConfigError as error:
            self.problems.append(Problem(path, str(error).partition("\n")[0]))
        except _Pending:
            if "args" not in path[:-1] or (path[0] == "data_loader" and not self.partial):
                self.problems.append(Problem(path, TOO_EARLY))
            self.pending.append(path)
        return text

    def _replaced(self, text: str, path: KeyPath, inside: tuple[str, ...]) -> Any:
        """A string with its references replaced. inside: the variables being expanded."""
        whole = _REFERENCE.fullmatch(text)
        if whole and whole[0] != "$${":
            return self._value(whole, path, inside)
        return _REFERENCE.sub(lambda found: self._text(found, path, inside), text)

    def _text(self, found: re.Match[str], path: KeyPath, inside: tuple[str, ...]) -> str:
        """The text that replaces a reference inside a longer string."""
        if found[0] == "$${":
            return "${"
        if environment := _ENVIRONMENT.fullmatch(found[1]):
            return self._environment(environment, found[0])
        value = self._value(found, path, inside)
        if isinstance(value, str):
            return value
        if value is None or isinstance(value, (dict, list)):
            raise ConfigError(f"{found[0]} is {json.dumps(value)[:60]}, which cannot be part of a string")
        return json.dumps(value)

    def _value(self, found: re.Match[str], path: KeyPath, inside: tuple[str, ...]) -> Any:
        name = found[1]
        if environment := _ENVIRONMENT.fullmatch(name):
            return value_at(self.document.value, path, self._environment(environment, found[0]), found[0])
        kind, dot, fact = name.partition(".")
        if kind == "data" and dot:
            return self._fact(fact)
        if not found[2] or not _NAME.fullmatch(name):
            raise ConfigError(f'"{found[0][:40]}" is not a reference; possible forms: {FORMS}')
        self._used.append(name)
        if len(self._used) > MOST_USED:
            raise ConfigError(f"variables contain one another more than {MOST_USED:,} times")
        if name not in self.variables:
            known = hint(name, self.variables) if self.variables else 'the config has no "variables"'
            raise ConfigError(f'unknown variable "{name}"; {known}')
        if name in inside:
            raise ConfigError(f"circular variables: {' -> '.join([*inside, name])}")
        return _map_strings(lambda text, _: self._replaced(text, path, (*inside, name)), self.variables[name])

    def _environment(self, found: re.Match[str], written: str) -> str:
        """The value of an environment variable, or the default given in the reference."""
        text = os.environ.get(found[1], found[2])
        if text is None and self.partial:
            raise _Pending
        if text is None:
            default = f'"{written[:-1]}:DEFAULT}}"'
            raise ConfigError(f'the environment variable "{found[1]}" is not set. Set it, or give a default: {default}')
        return text

    def _fact(self, name: str) -> Any:
        if self.facts is None:
            raise _Pending
        if name not in self.facts:
            needs = f"{CLASSES}, or define facts()" if name in CLASS_FACTS else hint(name, self.facts)
            raise ConfigError(f'the data loader does not provide "{name}"; {needs}')
        value = self.facts[name]
        value = value.tolist() if hasattr(value, "tolist") else value
        try:
            return json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigError(f'the fact "{name}" of the data is not a number, string or list: {error}') from error
