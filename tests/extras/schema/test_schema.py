"""config.schema.json and docs/config.md: up to date, valid, and as strict as the loader about structure."""

import json
import random
import runpy
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from pydantic import PositiveInt, ValidationError

from extras.schema.__main__ import MOST_USED, config_table, texts
from tests.configs import BUNDLED, OURS, SOUND, message, sound, without_references
from tests.utils.config.mutations import VALUES, move, remove, renamed_keys, several
from utils.arguments import NotJson, describe, json_type
from utils.config.problems import component_problems
from utils.errors import UserError
from utils.paths import PROJECT
from utils.registry import METRICS, REGISTRIES
from utils.schema import Config, TrainerConfig

Schema = dict[str, Any]

# to JSON Schema 1.0 is an integer; the loader is stricter
STRICT_VALIDATOR = jsonschema.validators.extend(
    jsonschema.Draft7Validator,
    type_checker=jsonschema.Draft7Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int),
)


@pytest.fixture(scope="module")
def schema() -> Schema:
    loaded: Schema = json.loads((PROJECT / "config.schema.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def validator(schema: Schema) -> Any:
    """An implementation that shares nothing with ours."""
    return jsonschema.Draft7Validator(schema)


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    """What make schema would write."""
    return texts()


def same_libraries(schema: Schema) -> bool:
    """Whether the installed libraries are those that the schema was generated with. Others may have other arguments."""
    return all(version(name).startswith(f"{recorded}.") for name, recorded in schema["madeWith"].items())


def own_part(schema: Schema) -> Schema:
    """What does not depend on the versions of the libraries."""
    own = {f"{kind}.{name}" for kind, registry in REGISTRIES.items() for name in registry.own()}
    names = [name for name in schema["definitions"] if name in own]
    return {"definitions": {name: schema["definitions"][name] for name in names}, "properties": schema["properties"]}


@pytest.mark.slow
def test_it_is_up_to_date(schema: Schema, written: dict[str, str]) -> None:
    """All of it where the libraries are those it was generated with, else the project's own components and keys."""
    new = json.loads(written["config.schema.json"])
    part = (lambda whole: whole) if same_libraries(schema) else own_part
    assert part(new) == part(schema), "run make schema to update it"


@pytest.mark.slow
def test_the_table_of_keys_is_up_to_date(written: dict[str, str]) -> None:
    for name in ("docs/config.md", "README.md"):
        assert written[name] == (PROJECT / name).read_text(encoding="utf-8"), f"run make schema to update {name}"
    for key in TrainerConfig.model_fields:
        assert f"| `trainer.{key}` |" in written["docs/config.md"]
    assert len(config_table(*MOST_USED).splitlines()) == 2 + len(MOST_USED), "a key of the README is none"
    assert "| `trainer.profile_steps` | list of int > 0 or null |" in written["docs/config.md"]
    assert "| `trainer.ema` | object | `null` | refused |" in written["docs/config.md"]


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (list[PositiveInt] | None, "list of int > 0 or null"),
        (list[int | str], "list of (int or str)"),
        (Sequence[float], "list of float"),
        (tuple[int, ...], "list of int"),
        (tuple[float | None, float], "[float or null, float]"),
    ],
)
def test_a_type_is_written_as_a_reader_writes_it(annotation: Any, text: str) -> None:
    assert describe(annotation) == text


def test_it_is_a_schema(schema: Schema) -> None:
    jsonschema.Draft7Validator.check_schema(schema)
    for reference in references(schema):
        assert reference.removeprefix("#/definitions/").split("/")[0] in schema["definitions"]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from references(item)


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_bundled_configs_are_valid_and_name_it(path: Any, validator: Any) -> None:
    config = json.loads(path.read_text())
    assert [error.message for error in validator.iter_errors(config)] == []
    assert (path.parent / config["$schema"]).resolve() == PROJECT / "config.schema.json"


@pytest.mark.slow
@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_a_bundled_config_with_a_renamed_key_is_not_valid(path: Any, validator: Any) -> None:
    for change, text in renamed_keys(path.read_text()):
        assert not validator.is_valid(json.loads(text)), change


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "LeNett"),
        ("model", {"type": "LeNet", "args": {"kernel_size": 4}}),
        ("model", {"type": "LeNet", "arg": {}}),
        ("model", None),
        ("optimizer", {"type": "SGD", "args": {"lr": "0.1"}}),
        ("optimizer", {"type": "SGD", "args": {"momentun": 0.9}}),
        ("optimizer", {"type": "Adam", "args": {"betas": [0.9]}}),
        ("metrics", ["acuracy"]),
        ("metrics", [{"type": "F1Score", "args": {"task": "multiclas"}}]),
        ("metrics", "accuracy"),
        ("metrics", [{"args": {}}]),
        ("lr_scheduler", {"type": "SequentialLR", "args": {"milestones": [1], "schedulers": ["StepLr"]}}),
        ("trainer", {"epochs": 0}),
        ("trainer", {"type": "Trainr"}),
        ("runtime", {"precision": "fp64"}),
        ("name", "a/b"),
        ("loss", {"tpye": "mse_loss"}),
        ("loss", {"squares": "MSELoss", "distances": "L2Loss"}),
        ("seed", -1),
        ("extra", 1),
    ],
)
def test_what_is_structurally_wrong_is_not_valid(validator: Any, key: str, value: Any) -> None:
    assert validator.is_valid(sound())
    assert not validator.is_valid({**sound(), key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "width_${WIDTH}"),
        ("loss", {"squares": {"type": "MSELoss", "weight": 0.5}, "distances": "L1Loss"}),
        ("loss", {"squares": "MSELoss", "distances": "L1Loss"}),
    ],
)
def test_short_forms_and_references_within_a_name_are_valid(validator: Any, key: str, value: Any) -> None:
    assert validator.is_valid({**sound(), key: value})


def test_a_config_that_extends_another_gives_only_what_differs(validator: Any) -> None:
    changes: list[Schema] = [
        {"name": "more"},
        {"optimizer": {"args": {"lr": 0.1, "momentum": None}}},
        {"optimizer": {"type": "SGD", "args": {"momentum": None}}},
        {"lr_scheduler": None, "metrics": None, "trainer": {"epochs": None, "monitor": None}},
        {"model": {"type": "TwoLayerNet", "args": {"hidden_features": 3}}},
    ]
    for change in changes:
        assert validator.is_valid({"extends": "base.json", **change}), change
    wrong: list[Schema] = [
        {"optimizer": {"type": "SGD", "args": {"momentun": 0.9}}},
        {"optimizer": {"type": "SGD", "args": {"momentum": "0.9"}}},
        {"trainer": {"epoch": 1}},
        {"model": {"typ": "LeNet"}},
    ]
    for change in wrong:
        assert not validator.is_valid({"extends": "base.json", **change}), change


def completions(schema: Schema, value: Any, root: Schema) -> Iterator[tuple[str, str]]:
    """What an editor offers as keys of a value, with the text beside each: it follows every part that applies."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/definitions/")
        yield from completions(root["definitions"][name], value, root)
    for part in (*schema.get("allOf", ()), *schema.get("anyOf", ())):
        yield from completions(part, value, root)
    if "if" in schema:
        applies = jsonschema.Draft7Validator({**schema["if"], "definitions": root["definitions"]}).is_valid(value)
        yield from completions(schema.get("then" if applies else "else", {}), value, root)
    for key, inner in schema.get("properties", {}).items():
        yield key, inner.get("description", "")


def below(schema: Schema, key: str, value: Any, root: Schema) -> Iterator[Schema]:
    """The schemas that apply to the value of a key."""
    if "$ref" in schema:
        yield from below(root["definitions"][schema["$ref"].removeprefix("#/definitions/")], key, value, root)
    for part in (*schema.get("allOf", ()), *schema.get("anyOf", ())):
        yield from below(part, key, value, root)
    if "if" in schema:
        applies = jsonschema.Draft7Validator({**schema["if"], "definitions": root["definitions"]}).is_valid(value)
        yield from below(schema.get("then" if applies else "else", {}), key, value, root)
    if key in schema.get("properties", {}):
        yield schema["properties"][key]


def test_an_editor_completes_keys_and_shows_their_docstrings(schema: Schema) -> None:
    offered = dict(completions(schema, {}, schema))
    assert offered.keys() == {"extends", *(field.alias or name for name, field in Config.model_fields.items())}
    assert all(offered.values()), "each key has a description"
    (trainer,) = below(schema, "trainer", {}, schema)
    assert dict(completions(trainer, {}, schema)).keys() == TrainerConfig.model_fields.keys()


@pytest.mark.parametrize("kind", [kind for kind in REGISTRIES if kind not in ("trainer", "metrics")])
def test_an_editor_completes_the_arguments_of_every_component(schema: Schema, kind: str) -> None:
    registry = REGISTRIES[kind]
    defined = "data_loader" if kind == "validation" else kind
    described = {entry["const"]: entry["description"] for entry in schema["definitions"][f"{defined}.names"]["anyOf"]}
    names = registry.names() if same_libraries(schema) else list(registry.own())
    assert set(names) <= described.keys()
    assert described.keys() <= set(names) or not same_libraries(schema)
    (component,) = below(schema, kind, {}, schema)
    for name in registry.own():
        assert described[name], "its docstring is shown"
    for name in names:
        value = {"type": name, "args": {}}
        offered: set[str] = set()
        for args in below(component, "args", value, schema):
            offered |= {key for key, _ in completions(args, {}, schema)}
        parameters = registry.parameters(name).values()
        expected = {p.name for p in parameters if json_type(p.annotation) is not NotJson}
        assert offered == expected, name


class SGD(torch.optim.SGD):
    """torch's, with one more argument."""

    def __init__(self, params: Any, lr: float = 1e-3, momentum: float = 0, *, trust: float = 0.5) -> None:
        super().__init__(params, lr, momentum)


class NewLoss(torch.nn.MSELoss):
    """One more loss."""


@pytest.mark.slow
def test_a_newer_torch_with_other_arguments_and_names_passes(schema: Schema, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.optim.SGD", SGD)
    monkeypatch.setattr("torch.nn.NewLoss", NewLoss, raising=False)
    for module, name in ((torch.optim, "SGD"), (torch.nn, "NewLoss")):
        if public := getattr(module, "__all__", None):
            monkeypatch.setattr(module, "__all__", [*public, name])
    monkeypatch.setattr(sys.modules[__name__], "version", lambda name: "99.0.0" if name == "torch" else version(name))

    config = {**sound(), "optimizer": {"type": "SGD", "args": {"trust": 0.1}}, "loss": "NewLoss"}
    assert component_problems(config) == []
    test_it_is_up_to_date(schema, texts())
    for kind in ("optimizer", "loss"):
        test_an_editor_completes_the_arguments_of_every_component(schema, kind)


def test_arguments_carry_docstring_default_and_range(schema: Schema) -> None:
    args = schema["definitions"]["data_loader.CIFAR10Loader"]["properties"]
    assert args["crop"]["default"] == 0
    assert args["crop"]["anyOf"][0]["minimum"] == 0
    assert "shift each image" in args["crop"]["description"]
    assert "part of the training data" in args["validation_split"]["description"], "inherited from the base class"
    assert "momentum factor" in schema["definitions"]["optimizer.SGD"]["properties"]["momentum"]["description"]
    if same_libraries(schema):
        assert {f"metrics.{name}" for name in METRICS.names()} <= schema["definitions"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("text", [SOUND, *map(without_references, BUNDLED)])
def test_the_schema_refuses_what_the_loader_finds_structurally_wrong(text: str, schema: Schema) -> None:
    """Except for what is missing or null, since the config may extend another one. What the loader takes is valid."""
    validator = STRICT_VALIDATOR(schema)
    for seed, change in enumerate(2 * VALUES):
        value = change(json.loads(text), random.Random(seed))
        if is_sound(value):
            assert validator.is_valid(value), json.dumps(value)
        elif change not in (remove, move, several) and "null" not in json.dumps(value):
            assert not validator.is_valid(value), json.dumps(value)


def is_sound(value: Any) -> bool:
    """Whether the loader finds each part of a config well made."""
    if not isinstance(value, dict):
        return False
    try:
        Config.model_validate_json(json.dumps(value))
    except ValidationError:
        return False
    return not component_problems(value)


def test_the_config_of_the_messages_is_valid(validator: Any) -> None:
    assert validator.is_valid(json.loads(SOUND))


# ------------------------------------------------------------------ what an editor shows


def test_every_argument_of_ours_is_described(schema: Schema) -> None:
    """A project may leave those of its own components without a description."""
    for kind, registry in REGISTRIES.items():
        for name in registry.own().keys() & {*OURS, "top_k_accuracy"}:
            if kind == "validation":
                continue
            for argument, about in schema["definitions"][f"{kind}.{name}"]["properties"].items():
                assert about.get("description"), f"{kind} {name}: {argument}"


def test_the_monitor_offers_the_loss_and_each_metric(schema: Schema, validator: Any, tmp_path: Path) -> None:
    offered = schema["properties"]["trainer"]["anyOf"][0]["properties"]["monitor"]["examples"]
    assert offered[:2] == ["min val_loss", "min loss"]
    assert {each.split()[1] for each in offered} == {
        f"{prefix}{name}" for prefix in ("", "val_") for name in ("loss", *METRICS.own())
    }
    assert {"max val_accuracy", "min val_mean_squared_error"} <= set(offered)
    for each in offered:
        config = {**sound(), "metrics": list(METRICS.own()), "trainer": {"monitor": each}}
        assert validator.is_valid(config)
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config))
        assert message(file) == "", each


def test_a_component_that_cannot_be_imported_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise UserError("model/mine.py cannot be imported")

    monkeypatch.setattr("utils.registry.import_components", fails)
    monkeypatch.setattr(sys, "argv", ["extras.schema"])
    monkeypatch.delitem(sys.modules, "extras.schema.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("extras.schema", run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: model/mine.py cannot be imported\n"


def test_a_project_without_docs_has_a_schema(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("extras.schema.__main__.PROJECT", tmp_path)
    assert list(texts()) == ["config.schema.json"]
