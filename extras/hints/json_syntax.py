"""Why a text is not JSON, where the parser names only what it expected."""

import json
import re

_NUMBER = re.compile(r"-?[\d.eE+-]+\Z")
_WORD = re.compile(r"[^\s,:\[\]{}]*")


def json_mistake(text: str, error: json.JSONDecodeError) -> tuple[int, str]:
    """Where and why a text is not JSON."""
    before, rest = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    reason = error.msg.removesuffix(" starting at").removesuffix(" at")
    if not rest:
        return len(before), "the text ends here, but a value or a closing bracket is missing"
    if rest.startswith(("//", "/*", "#")):
        return error.pos, "JSON does not allow comments: remove it"
    if "trailing comma" in reason:  # since Python 3.13
        return error.pos, "trailing comma: remove it"
    if before.endswith(",") and rest[0] in "]}":
        return len(before) - 1, "trailing comma: remove it"
    if reason == "Extra data":
        return error.pos, "unexpected text after the end of the JSON object; is this the wrong file?"
    start = error.pos
    if rest[0].isalnum() or rest[0] == ".":  # 1. or 0x1F
        number = _NUMBER.search(text, max(0, start - 40), start)
        start = number.start() if number else start
    if "delimiter" in reason and start == error.pos:
        return start, f"expected a {'colon' if ':' in reason else 'comma'} before this"
    if "delimiter" in reason or reason == "Expecting value":
        word = _WORD.match(text, start)
        shown = repr(word[0][:40]) if word and word[0] else "this"
        return start, f"{shown} is not a JSON value: true, false, null, a number such as 0.5, or text in double quotes"
    if "property name" in reason:
        return error.pos, 'expected a key in double quotes here, as in "name": ...'
    if "escape" in reason:
        return error.pos, "a backslash is written twice in JSON; in a path, use / instead, on Windows too"
    return error.pos, f"invalid string: {reason[0].lower()}{reason[1:]}"
