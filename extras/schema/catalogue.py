"""``python train.py --list [NAME]``: the components a config can use."""

import inspect
import json
import textwrap
from collections.abc import Iterator
from typing import Any

from extras.schema import docstrings
from utils.arguments import NotJson, describe, json_type
from utils.config.schedulers import FROM_RUN_LENGTH
from utils.errors import UserError
from utils.registry import REGISTRIES, WRITERS, Registry
from utils.text import closest
from utils.user_code import where

LEAST_WIDTH = 20


def listing(name: str = "", *, width: int = 110) -> str:
    """All components, those of a kind ("models"), or the details of one, in lines of this width.

    Raises UserError for an unknown name.
    """
    width = max(width, LEAST_WIDTH)
    listed = [(kind, registry) for kind, registry in REGISTRIES.items() if kind != "validation"]  # a data loader
    listed.append(("trainer.writers", WRITERS))
    found = [(kind, registry) for kind, registry in listed if name and registry.get(name)]
    if found:
        return "\n\n".join("\n".join(_whole(kind, registry, name, width)) for kind, registry in found)
    of_kind = [each for each in listed if name.lower().replace(" ", "_") in _kind_names(*each)]
    if name and not of_kind:
        known = [known for _, registry in listed for known in (*registry.names(), registry.plural())]
        close = closest(name, known)
        further = f'did you mean "{close}"?' if close else "python train.py --list shows all"
        raise UserError(f'unknown component "{name}"; {further}')
    return "\n".join(line for kind, registry in of_kind or listed for line in _kind(kind, registry, width)).rstrip("\n")


def _kind_names(kind: str, registry: Registry) -> set[str]:
    """The names by which users can refer to a kind, as in "model", "models"."""
    return {kind, registry.kind.replace(" ", "_"), registry.plural().replace(" ", "_")}


def _kind(kind: str, registry: Registry, width: int) -> Iterator[str]:
    yield f'{registry.plural()}, for "{kind}"\n'
    for name in registry.names():
        yield _call(registry, name, width)
        if said := docstrings.paragraph(registry[name]):
            yield textwrap.indent(textwrap.shorten(said, width - 6, placeholder=" ..."), "      ")
    yield ""


def _call(registry: Registry, name: str, width: int) -> str:
    """The name with its arguments and defaults, as in LeNet(in_channels=3, ...)."""
    shown = [
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={_json(parameter.default)}"
        for parameter in registry.parameters(name).values()
        if json_type(parameter.annotation) is not NotJson
    ]
    return _wrapped(f"{name}({', '.join(shown)})", width, 2, 8)


def _wrapped(text: str, width: int, first: int, more: int) -> str:
    """Text wrapped at a width: the first line indented by ``first`` columns, further lines by ``more``."""
    return textwrap.fill(text, width, initial_indent=" " * first, subsequent_indent=" " * more, break_on_hyphens=False)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def _whole(kind: str, registry: Registry, name: str, width: int) -> Iterator[str]:
    component = registry[name]
    article = "an" if registry.kind[0] in "aeiou" else "a"
    yield _wrapped(f'{name}, {article} {registry.kind} for "{kind}" ({where(component)})', width, 0, 4) + "\n"
    known = registry.parameters(name)
    own = name in registry.own()  # the libraries' are long and full of LaTeX
    said = docstrings.without_arguments(component, known) if own else docstrings.paragraph(component)
    for line in docstrings.unwrapped(said or "It has no docstring."):
        indent = 2 + len(line) - len(line.lstrip())
        yield _wrapped(line.strip(), width, indent, indent)
    texts = docstrings.arguments(component, known)
    yield '\n  "args":' if known else "\n  It takes no arguments."
    for parameter in known.values():
        yield _wrapped(f"{parameter.name}: {_type_and_default(name, parameter)}", width, 4, 10)
        if parameter.name in texts:
            yield _wrapped(texts[parameter.name], width, 8, 8)
    yield "\n" + _wrapped(f'"{kind}": {_example(kind, name, list(known.values()))}', width, 2, 6)


def _type_and_default(name: str, parameter: inspect.Parameter) -> str:
    kind = describe(parameter.annotation)
    if json_type(parameter.annotation) is NotJson:
        return f"{kind} (JSON cannot express it)"
    if FROM_RUN_LENGTH.get(name) == parameter.name:
        return f"{kind}, taken from the length of the run"
    if parameter.default is parameter.empty:
        return f"{kind}, must be given"
    return f"{kind} = {_json(parameter.default)}"


def _example(kind: str, name: str, parameters: list[inspect.Parameter]) -> str:
    """How to write the component in a config, with its required arguments."""
    required = [p.name for p in parameters if p.default is p.empty and FROM_RUN_LENGTH.get(name) != p.name]
    given = ", ".join(f'"{key}": ...' for key in required)
    args = f', "args": {{{given}}}' if required else ""
    text = f'{{"type": "{name}"{args}}}'
    return f"[{text}]" if kind in ("metrics", "trainer.writers") else text
