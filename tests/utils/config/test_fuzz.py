"""Whatever a config contains, it loads or is refused with a location. ``dev/fuzz_config.py`` goes further."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.configs import BUNDLED, SOUND, message, without_references
from tests.utils.config.mutations import mutant, renamed_keys
from utils.config.located_json import parse
from utils.errors import ConfigError
from utils.schema import KeyPath

pytestmark = pytest.mark.slow

LOCATED = re.compile(r"^(\d+ mistakes in the config:\n\n)?[^\n]*config\.json:\d+:\d+: ")


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_each_key_renamed_by_one_letter_is_refused(path: Path, tmp_path: Path) -> None:
    for change, text in renamed_keys(without_references(path)):
        (tmp_path / "config.json").write_text(text)
        error_message = message(tmp_path / "config.json")
        assert LOCATED.match(error_message), f"{change}: {error_message}"
        assert change.split(" -> ")[1] in error_message


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_a_mutated_config_loads_or_is_refused_with_a_location(tmp_path: Path, seed: int) -> None:
    (tmp_path / "config.json").write_bytes(mutant(SOUND, seed).data)
    error_message = message(tmp_path / "config.json")
    assert not error_message or LOCATED.match(error_message)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "args", "name", "x"]), inner),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(json.loads(SOUND))), JSON)
def test_any_json_in_place_of_a_key(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**json.loads(SOUND), key: value}))
    error_message = message(tmp_path / "config.json")
    assert not error_message or LOCATED.match(error_message)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40), st.text(max_size=20))
def test_any_override(tmp_path: Path, key: str, value: str) -> None:
    (tmp_path / "config.json").write_text(SOUND)
    override = f"{key}={value}"
    error_message = message(tmp_path / "config.json", override)
    assert not error_message or error_message.startswith(("override ", "invalid override "))


@pytest.mark.parametrize("override", ["trainr.epochs=5", "trainer.save_dir="])
def test_a_refused_override_is_named(tmp_path: Path, override: str) -> None:
    (tmp_path / "config.json").write_text(SOUND)
    assert message(tmp_path / "config.json", override).startswith(f"override {override}: ")


# ------------------------------------------------------------------ the strict JSON parser

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


@settings(max_examples=60, deadline=None)
@given(VALUES, st.sampled_from([None, 1, "\t"]))
def test_json_is_read_as_the_standard_library_reads_it(value: Any, indent: int | str | None) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    document = parse(text, "x")
    assert json.dumps(document.value) == json.dumps(value)
    offsets = document.sources[()].offsets
    for path, part in parts(value, ()):
        expected = path[-1] if path and isinstance(path[-1], str) else part
        assert json.JSONDecoder().raw_decode(text, offsets[path])[0] == expected


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_anything_else_is_an_error_with_a_location(text: str) -> None:
    error_message = ""
    try:
        parse(text, "x")
        json.loads(text)
    except ConfigError as error:
        error_message = str(error)
    assert not error_message or error_message.startswith("x:1:") or "\n" in text
