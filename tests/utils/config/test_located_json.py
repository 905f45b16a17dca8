"""The strict JSON parser: JSON is read as the standard library reads it, anything else is an error at its location."""

from pathlib import Path

import pytest

from utils.config.located_json import parse
from utils.config.sources import MAX_BYTES, read_object
from utils.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ('{"a": 1,}', "1:8", "trailing comma"),
        ('{"a": [1,\n2,\n]}', "2:2", "trailing comma"),
        ('{"a": 1, // b\n}', "1:10", "does not allow comments"),
        ('{"a": 1 /* b */}', "1:9", "does not allow comments"),
        ('{"a": NaN}', "1:7", "NaN is not valid JSON"),
        ('{"a": -Infinity}', "1:7", "-Infinity is not valid JSON"),
        ('{"a": 1, "a": 2}', "1:10", 'duplicate key "a"; already given in line 1'),
        ("{'a': 1}", "1:2", "double quotes"),
        ('{"a": None}', "1:7", "in JSON, write null"),
        ('{"a": 01}', "1:7", "01 is not a JSON number; write 1"),
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
        ('{"a"\n\n', "1:5", "the text ends here; expected a colon after"),
        ('{"a":\n\n', "1:6", "the text ends here; expected a value"),
        ('{\u00a0"a": 1}', "1:2", "an invisible character, U+00A0: remove it"),
        ('{"a": 1,\u200b "b": 2}', "1:9", "an invisible character, U+200B: remove it"),
        ("{\u201ca\u201d: 1}", "1:2", 'a typographic quotation mark; in JSON, write "'),
        ('{"a": \u201cb\u201d}', "1:7", 'a typographic quotation mark; in JSON, write "'),
        ('{"a": .5}', "1:7", ".5 is not a JSON number; write 0.5"),
        ('{"a": 5.}', "1:7", "5. is not a JSON number; write 5.0"),
        ('{"a": +1e-3}', "1:7", "+1e-3 is not a JSON number; write 0.001"),
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
        (b"PK\x03\x04....", "wrong file"),
        ('{"a": 1}'.encode("utf-16"), "the file is in UTF-16; save it as UTF-8"),
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
    with pytest.raises(ConfigError, match="in it, or -r to resume"):
        read_object(tmp_path, "x")


def test_a_caret_points_at_the_place_in_a_long_line() -> None:
    text = '{"a": [' + "1, " * 5000 + "nul]}"
    with pytest.raises(ConfigError) as caught:
        parse(text, "x")
    _, line, caret = str(caught.value).splitlines()
    assert line[caret.index("^") :].startswith("nul")
    assert len(line) < 120


@pytest.mark.slow
def test_many_values_in_one_line_take_no_more_than_their_text() -> None:
    assert len(parse("[" + "1, " * 200_000 + "1]", "x").value) == 200_001
