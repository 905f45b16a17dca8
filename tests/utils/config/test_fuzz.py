"""Whatever a config contains, it loads or is refused with a location. ``dev/fuzz_config.py`` goes further."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.configs import SOUND, TEMPLATES, message
from tests.utils.config.mutations import mutant, renamed_keys

pytestmark = pytest.mark.slow

LOCATED = re.compile(r"^(\d+ mistakes in the config:\n\n)?[^\n]*config\.json:\d+:\d+: ")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_each_key_renamed_by_one_letter_is_refused(path: Path, tmp_path: Path) -> None:
    for change, text in renamed_keys(path.read_text()):
        (tmp_path / "config.json").write_text(text)
        error_message = message(tmp_path / "config.json")
        assert LOCATED.match(error_message), f"{change}: {error_message}"
        assert change.split(" -> ")[1] in error_message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(json.loads(SOUND))), JSON)
def test_any_json_in_place_of_a_key(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**json.loads(SOUND), key: value}))
    error_message = message(tmp_path / "config.json")
    assert not error_message or LOCATED.match(error_message)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
