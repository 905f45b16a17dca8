"""The strict JSON parser: what is JSON is read as the standard library reads it, what is not is told with its place."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.config.located_json import MAX_BYTES, parse, read
from utils.errors import ConfigError

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


@given(VALUES, st.sampled_from([None, 1, "\t"]))
def test_what_is_json_is_read_as_it_stands(value: Any, indent: int | str | None) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    read = parse(text, "x")
    assert json.dumps(read.value) == json.dumps(value)
    for path, place in read.values.items():
        part = value
        for key in path:
            part = part[key]
        assert json.JSONDecoder().raw_decode(text, place.at)[0] == part


@given(st.text(max_size=30))
def test_what_is_no_json_is_an_error_with_a_place(text: str) -> None:
    said = ""
    try:
        parse(text, "x")
        json.loads(text)
    except ConfigError as error:
        said = str(error)
    assert not said or said.startswith("x:1:") or "\n" in text


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ('{"a": 1,}', "1:8", "no trailing commas"),
        ('{"a": [1,\n2,\n]}', "2:2", "no trailing commas"),
        ('{"a": 1, // b\n}', "1:10", "no comments"),
        ('{"a": 1 /* b */}', "1:9", "no comments"),
        ('{"a": NaN}', "1:7", "NaN is no JSON"),
        ('{"a": -Infinity}', "1:7", "-Infinity is no JSON"),
        ('{"a": 1, "a": 2}', "1:10", "second time; the first is in line 1"),
        ("{'a': 1}", "1:2", "double quotes"),
        ('{"a": None}', "1:7", "JSON writes null"),
        ('{"a": 01}', "1:7", "no JSON value"),
        ('{"a": 1e999}', "1:7", "too large"),
        ('{"a": 1234567890123456789}', "1:7", "more than 18 digits"),
        ('{"a": "\\ud800"}', "1:7", "surrogate"),
        ('{"a" 1}', "1:6", "a colon"),
        ('{"a": 1 "b": 2}', "1:9", "comma"),
        ('{"a": [1, 2', "1:7", "never closed"),
        ('{"a": "b\n"}', "1:9", "string is broken"),
        ("[" * 100_000, "1:34", "deeper than 32"),
        ("{} {}", "1:4", "second one"),
        ("", "1:1", "nothing here"),
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
        (b'{"a": "\xff"}', "1:8: this is no text"),
        (b"\x00\x01\x02", "wrong file"),
        (b"name: x\n", "wrong file"),
        (b"[" * 10_000_000, f"more than {MAX_BYTES:,} bytes"),
    ],
)
def test_what_is_no_text_or_no_config_is_told_apart(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "file", "file")


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path("\0")):
        with pytest.raises(ConfigError, match="cannot be read"):
            read(path, "x")
    (tmp_path / "config.json").touch()
    with pytest.raises(ConfigError, match="-r goes on with it"):
        read(tmp_path, "x")


def test_a_caret_points_at_the_place_in_a_long_line() -> None:
    text = '{"a": [' + "1, " * 5000 + "nul]}"
    with pytest.raises(ConfigError) as caught:
        parse(text, "x")
    _, line, caret = str(caught.value).splitlines()
    assert line[caret.index("^") :].startswith("nul")
    assert len(line) < 120


def test_many_values_in_one_line_take_no_more_than_their_text() -> None:
    assert len(parse("[" + "1, " * 200_000 + "1]", "x").value) == 200_001
