"""What an editor and --list know of settings and components that are arguments."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from torch import nn

from extras.schema.catalogue import listing
from extras.schema.json_schema import config_schema
from tests.base.test_nested_arguments import Backbone, Block, Nested, model
from tests.helpers import Json, registering, temporarily
from utils.registry import MODELS
from utils.schema import Changeable

pytestmark = pytest.mark.slow


_registered = registering((MODELS, Backbone, Nested), scope="module")


@pytest.fixture(scope="module")
def schema(_registered: None) -> Json:
    return config_schema()


@pytest.fixture(scope="module")
def validator(schema: Json) -> Any:
    return jsonschema.Draft7Validator(schema)


@pytest.mark.parametrize(
    ("args", "valid"),
    [
        ({}, True),
        ({"head": {"classes": 3, "block": {"width": 2}}, "blocks": [{"width": 1}]}, True),
        ({"head": {"clases": 3}}, False),
        ({"head": {"classes": "${data.num_classes}"}}, True),
        ({"blocks": [{"bias": True}]}, False),
        ({"named": {"a": {"width": "x"}}}, False),
        ({"named": {"a": {"width": 1}}}, True),
        ({"backbone": {"type": "Backbone", "args": {"width": 3}}}, True),
        ({"backbone": {"type": "Backbone", "args": {"widht": 3}}}, False),
        ({"backbone": {"type": "Nope"}}, False),
        ({"backbone": {"type": "Backbone", "weights": "a.pth"}}, False),
        ({"experts": ["Backbone"]}, True),
        ({"experts": ["${env:EXPERT}"], "blocks": [{"width": "${env:WIDTH}"}]}, True),
        ({"experts": ["Nope"]}, False),
    ],
)
def test_an_editor_knows_the_nested_keys(
    write_config: Callable[..., Path], validator: Any, args: dict[str, Any], valid: bool
) -> None:
    config = json.loads(write_config(model=model(**args)).read_text())
    assert validator.is_valid(config) == valid


class Annotated(nn.Module):
    """An annotation says what happens on resume, and nothing of the value."""

    def __init__(
        self,
        *,
        block: Block | None = None,
        same_block: Changeable[Block | None] = None,
        part: nn.Module | None = None,
        same_part: Changeable[nn.Module | None] = None,
    ) -> None:
        super().__init__()


def test_an_annotation_changes_nothing_of_an_optional_object() -> None:
    with temporarily(MODELS, Annotated):
        known = config_schema()["definitions"]["model.Annotated"]["properties"]
    assert known["same_block"] == known["block"]
    assert known["same_part"] == known["part"]


def test_an_editor_explains_a_field(schema: Json) -> None:
    found = schema["definitions"]["model.Nested"]["properties"]["default"]
    assert "number of its features" in json.dumps(found)


def test_the_list_shows_them() -> None:
    shown = listing("Nested")
    assert "backbone: Module, must be given" in shown
    assert "head: Head, must be given" in shown
