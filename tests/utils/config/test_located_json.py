"""The strict JSON parser: JSON is read as the standard library reads it, anything else is an error at its location."""

from pathlib import Path

import pytest

from utils.config.located_json import parse
from utils.config.sources import MAX_BYTES, read_object
from utils.errors import ConfigError
from utils.text import width


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ('{"a": 1,}', "1:8", "trailing comma"),
        ('{"a": [1,\n2,\n]}', "2:2", "trailing comma"),
        ('{"a": 1, // b\n}', "1:10", "does not allow comments"),
        ('{"a": 1 /* b */}', "1:9", "does not allow comments"),
        ('{"a": NaN}', "1:7", "NaN is not a finite number"),
        ('{"a": -Infinity}', "1:7", "-Infinity is not a finite number"),
        ('{"a": 1, "a": 2}', "1:10", 'duplicate key "a"; already given in line 1'),
        ("{'a': 1}", "1:2", "a key in double quotes"),
        ('{"a": None}', "1:7", "'None' is not a JSON value: true, false, null"),
        ('{"a": \u201cb\u201d}', "1:7", "is not a JSON value"),
        ('{"a": .5}', "1:7", "'.5' is not a JSON value"),
        ('{"a": 01}', "1:7", "'01' is not a JSON value"),
        ('{"a": -1.}', "1:7", "'-1.' is not a JSON value"),
        ('{"a": [0x1F, 2]}', "1:8", "'0x1F' is not a JSON value"),
        ('{"a": 1e999}', "1:7", "1e999 is not a finite number of at most 64 bits"),
        ('{"a": 12345678901234567890}', "1:7", "not a finite number of at most 64 bits"),
        ('{"a": 1' + "0" * 5000 + "}", "1:1", "digits"),
        ('{"a": "\\ud800"}', "1:7", "surrogate"),
        ('{"\\u0000": 1}', "1:2", "NUL"),
        ('{"a" 1}', "1:6", "a colon"),
        ('{"a": 1 "b": 2}', "1:9", "a comma"),
        ('{"a": [1, 2', "1:12", "the text ends here"),
        ('{"a": "b\n"}', "1:9", "invalid string"),
        ('{"a": "b', "1:7", "invalid string: unterminated"),
        (r'{"a": "C:\data"}', "1:10", "in a path, use / instead"),
        ("[" * 40 + "]" * 40, "1:33", "deeper than 32"),
        ("[" * 100_000, "1:1", "cannot be read"),
        ("{} {}", "1:4", "text after the end"),
        ("", "1:1", "the text ends here"),
        ('{"a":\n\n', "1:6", "the text ends here"),
        ('{\u00a0"a": 1}', "1:2", "a key in double quotes"),
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
        (b"PK\x03\x04....", "not a JSON value"),
        (b'{"a": "\xff"}', "1:1: not valid UTF-8"),
        (b"[1]", "wrong file"),
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
    with pytest.raises(ConfigError, match="in it, and -r resumes this run"):
        read_object(tmp_path, "x")


def test_a_caret_points_at_the_place_in_a_long_line() -> None:
    text = '{"a": [' + "1, " * 5000 + "nul]}"
    with pytest.raises(ConfigError) as caught:
        parse(text, "x")
    _, line, caret = str(caught.value).splitlines()
    assert line[caret.index("^") :].startswith("nul")
    assert len(line) < 120


def test_a_caret_points_at_the_place_after_wide_characters() -> None:
    with pytest.raises(ConfigError) as caught:
        parse('{"name": "실험", "epochs": nul}', "x")
    _, line, caret = str(caught.value).splitlines()
    assert width(line.partition("nul")[0]) == caret.index("^")


@pytest.mark.slow
def test_many_values_in_one_line_take_no_more_than_their_text() -> None:
    assert len(parse("[" + "1, " * 200_000 + "1]", "x").value) == 200_001


def test_a_line_is_shown_without_what_a_terminal_would_obey() -> None:
    shown = str(parse('{"a":\t1, "b": "\u009b\u200e"}  ', "x.json").error(("b",), "no"))
    assert shown == 'x.json:1:10: b: no\n    1 | {"a": 1, "b": "  "}\n                 ^'
