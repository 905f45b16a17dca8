"""``python train.py --list [NAME]``: what a config may name."""

import inspect
import json
import textwrap
from collections.abc import Iterator
from typing import Any

from extras.schema import docstrings
from utils.arguments import NotJson, describe, json_type
from utils.config.schedulers import FROM_RUN_LENGTH
from utils.errors import UserError
from utils.registry import METRICS, REGISTRIES, WRITERS, Registry
from utils.schema import FORMER_NAMES
from utils.text import closest
from utils.user_code import where

WIDTH = 110


def listing(name: str = "") -> str:
    """All components, or the whole of one. Raises UserError if there is none of that name."""
    listed = [(kind, registry) for kind, registry in REGISTRIES.items() if kind != "validation"]  # a data loader
    listed.append(("trainer.writers", WRITERS))
    if not name:
        return "\n".join(line for kind, registry in listed for line in _kind(kind, registry))
    found = [(kind, registry) for kind, registry in listed if registry.get(name)]
    if not found:
        raise UserError(f'there is no component "{name}"; {_further(name)}')
    return "\n\n".join("\n".join(_whole(kind, registry, name)) for kind, registry in found)


def _further(name: str) -> str:
    """What to do about an unknown name, whatever kind it was meant to be."""
    if name in FORMER_NAMES:
        return f"here it is {FORMER_NAMES[name]}"
    close = closest(name, [known for registry in (*REGISTRIES.values(), WRITERS) for known in registry.names()])
    return METRICS.of_task(name, {}) or (f'did you mean "{close}"?' if close else "python train.py --list shows all")


def _kind(kind: str, registry: Registry) -> Iterator[str]:
    plural = f"{registry.kind}es" if registry.kind.endswith("s") else f"{registry.kind}s"
    yield f'{plural}, for "{kind}"\n'
    for name in registry.names():
        yield f"  {_call(registry, name, indent=4)}"
        if said := docstrings.paragraph(registry[name]):
            yield textwrap.indent(textwrap.shorten(said, WIDTH, placeholder=" ..."), "      ")
    yield ""


def _call(registry: Registry, name: str, *, indent: int) -> str:
    """The name with its arguments and their defaults, as in LeNet(in_channels=3, ...)."""
    shown = [
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={_json(parameter.default)}"
        for parameter in registry.parameters(name).values()
        if json_type(parameter.annotation) is not NotJson and parameter.name not in registry.options
    ]
    text = f"{name}({', '.join(shown)})"
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * (indent + 4), break_long_words=False)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def _whole(kind: str, registry: Registry, name: str) -> Iterator[str]:
    component = registry[name]
    yield f'{name}, {"an" if registry.kind[0] in "aeiou" else "a"} {registry.kind} for "{kind}" ({where(component)})\n'
    known = registry.parameters(name)
    own = name in registry.own()  # the library's are long, and full of LaTeX
    said = (
        docstrings.without_arguments(component, known) if own else textwrap.fill(docstrings.paragraph(component), WIDTH)
    )
    yield textwrap.indent(said or "It has no docstring.", "  ")
    texts = docstrings.arguments(component, known)
    yield '\n  "args":' if known else "\n  It takes no arguments."
    for parameter in known.values():
        yield f"    {parameter.name}: {_type_and_default(name, parameter)}"
        if parameter.name in texts:
            yield textwrap.fill(texts[parameter.name], WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)
    yield f'\n  "{kind}": {_example(kind, name, list(known.values()))}'


def _type_and_default(name: str, parameter: inspect.Parameter) -> str:
    kind = describe(parameter.annotation)
    if json_type(parameter.annotation) is NotJson:
        return f"{kind} (JSON cannot give it)"
    if FROM_RUN_LENGTH.get(name) == parameter.name:
        return f"{kind}, taken from the length of the run"
    if parameter.default is parameter.empty:
        return f"{kind}, must be given"
    return f"{kind} = {_json(parameter.default)}"


def _example(kind: str, name: str, parameters: list[inspect.Parameter]) -> str:
    """How a config names the component, with the arguments that it must be given."""
    required = [p.name for p in parameters if p.default is p.empty and FROM_RUN_LENGTH.get(name) != p.name]
    given = ", ".join(f'"{key}": ...' for key in required)
    args = f', "args": {{{given}}}' if required else ""
    text = f'{{"type": "{name}"{args}}}'
    return f"[{text}]" if kind in ("metrics", "trainer.writers") else text
