"""The strict JSON parser: JSON is read as the standard library reads it, anything else is an error at its location."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.config.located_json import parse
from utils.config.sources import MAX_BYTES, read_object
from utils.errors import ConfigError
from utils.schema import KeyPath

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def parts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """A value and everything in it, by path."""
    yield path, value
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in members:
        yield from parts(inner, (*path, key))


@given(VALUES, st.sampled_from([None, 1, "\t"]))
def test_json_is_read_as_the_standard_library_reads_it(value: Any, indent: int | str | None) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    document = parse(text, "x")
    assert json.dumps(document.value) == json.dumps(value)
    for path, part in parts(value, ()):
        assert json.JSONDecoder().raw_decode(text, document.locate(path).offset)[0] == part
        if path and isinstance(path[-1], str):
            assert json.JSONDecoder().raw_decode(text, document.locate(path, of_key=True).offset)[0] == path[-1]


@given(st.text(max_size=30))
def test_anything_else_is_an_error_with_a_location(text: str) -> None:
    error_message = ""
    try:
        parse(text, "x")
        json.loads(text)
    except ConfigError as error:
        error_message = str(error)
    assert not error_message or error_message.startswith("x:1:") or "\n" in text


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ('{"a": 1,}', "1:8", "trailing comma"),
        ('{"a": [1,\n2,\n]}', "2:2", "trailing comma"),
        ('{"a": 1, // b\n}', "1:10", "no comments"),
        ('{"a": 1 /* b */}', "1:9", "no comments"),
        ('{"a": NaN}', "1:7", "NaN is not valid JSON"),
        ('{"a": -Infinity}', "1:7", "-Infinity is not valid JSON"),
        ('{"a": 1, "a": 2}', "1:10", 'duplicate key "a"; it is already in line 1'),
        ("{'a': 1}", "1:2", "double quotes"),
        ('{"a": None}', "1:7", "JSON writes null"),
        ('{"a": 01}', "1:7", "not a JSON value"),
        ('{"a": 1e999}', "1:7", "too large"),
        ('{"a": 1234567890123456789}', "1:7", "more than 18 digits"),
        ('{"a": "\\ud800"}', "1:7", "surrogate"),
        ('{"a" 1}', "1:6", "a colon"),
        ('{"a": 1 "b": 2}', "1:9", "comma"),
        ('{"a": [1, 2', "1:7", "never closed"),
        ('{"a": "b\n"}', "1:9", "invalid string"),
        ("[" * 100_000, "1:34", "deeper than 32"),
        ("{} {}", "1:4", "second one"),
        ("", "1:1", "the file is empty"),
        ("{", "1:1", 'this "{" is never closed'),
        ('{"a": [\n', "1:7", 'this "[" is never closed'),
        ('{"a"\n\n', "1:5", "the text ends here; a colon is expected after"),
        ('{"a":\n\n', "1:6", "the text ends here; a value is expected"),
        ('{"a": 1,\n', "1:1", 'this "{" is never closed'),
    ],
)
def test_the_place_and_the_reason(text: str, place: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "x")
    assert str(caught.value).startswith(f"x:{place}: ")
    assert message in str(caught.value).splitlines()[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04....", "zip archive"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        (b'{"a": "\xff"}', "1:8: not valid UTF-8"),
        (b"\x00\x01\x02", "wrong file"),
        (b"name: x\n", "wrong file"),
        (b"[" * 10_000_000, f"at most {MAX_BYTES:,} bytes"),
    ],
)
def test_other_kinds_of_files_are_recognised(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read_object(tmp_path / "file", "file")


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path("\0")):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_object(path, "x")
    (tmp_path / "config.json").touch()
    with pytest.raises(ConfigError, match="use -r to resume it"):
        read_object(tmp_path, "x")


def test_a_caret_points_at_the_place_in_a_long_line() -> None:
    text = '{"a": [' + "1, " * 5000 + "nul]}"
    with pytest.raises(ConfigError) as caught:
        parse(text, "x")
    _, line, caret = str(caught.value).splitlines()
    assert line[caret.index("^") :].startswith("nul")
    assert len(line) < 120


def test_many_values_in_one_line_take_no_more_than_their_text() -> None:
    assert len(parse("[" + "1, " * 200_000 + "1]", "x").value) == 200_001
