"""References in a config: what they become, where their mistakes are shown, and that a run needs them only once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import train
from base.data import TensorSource
from data_loader.random_tensor import RandomTensorLoader
from tests.configs import sound
from tests.conftest import load_script
from tests.helpers import ROOT, Fit, equal, fork, registering
from utils.config import LoadedConfig, load_config, to_json
from utils.errors import ConfigError, UserError
from utils.registry import DATA_LOADERS

Load = Callable[..., LoadedConfig]


class Telling(RandomTensorLoader):
    """Tells what it has."""

    drawn = 0

    def facts(self) -> dict[Any, Any]:
        return {"num_classes": self.num_classes, "counts": [20.0, 20.0, 10.0], "name": "few", "rate": 0.5, 7: "seven"}

    def training_data(self, *, augment: bool) -> TensorSource:
        type(self).drawn += 1
        return super().training_data(augment=augment)


_telling = registering((DATA_LOADERS, Telling))


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads the sound config with some values replaced, by dotted path."""

    def run(*overrides: str, **values: Any) -> LoadedConfig:
        config = sound()
        for key, value in values.items():
            at: Any = config
            *parents, last = key.split("__")
            for parent in parents:
                at = at[parent]
            at[last] = value
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config, indent=2))
        return load_config(path, overrides)

    return run


def test_a_variable_may_be_anything_and_refer_to_others(load: Load) -> None:
    variables = {
        "EIGHT": 8,
        "WIDTH": 4,
        "LOSS": {"type": "cross_entropy", "args": {}},
        "TEN": "${BATCH}",
        "BATCH": 10,
        "N": "abc",
    }
    config = load(
        variables=variables,
        name="run-${N}-${WIDTH}",
        loss="${LOSS}",
        model__args__hidden_features="${WIDTH}",
        data_loader__args__batch_size="${TEN}",
        data_loader__args__input_shape=["${EIGHT}"],
    ).config
    assert (config.name, config.loss and config.losses[""].type) == ("run-abc-4", "cross_entropy")
    assert config.model.args["hidden_features"] == 4
    assert config.data_loader.args["batch_size"] == 10
    assert config.data_loader.args["input_shape"] == [8]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("3", "trainer__epochs", 3),
        ("12", "name", "12"),
        ('"x"', "name", "x"),
        ("[8]", "data_loader__args__input_shape", [8]),
        ("1e-3", "optimizer__args__lr", 0.001),
        ("a ${NAME} b", "trainer__save_dir", "a ${NAME} b"),
    ],
)
def test_the_environment_is_read_as_an_override_is(
    load: Load, monkeypatch: pytest.MonkeyPatch, text: str, key: str, value: Any
) -> None:
    monkeypatch.setenv("VALUE_OF_TEST", text)
    config: Any = load(**{key: "${env:VALUE_OF_TEST}"}).config.model_dump()
    for part in key.split("__"):
        config = config[part]
    assert config == value


def test_a_default_stands_for_a_variable_that_is_not_there(load: Load) -> None:
    assert load(trainer__epochs="${env:NOT_THERE:7}").config.trainer.epochs == 7
    assert load(trainer__save_dir="${env:NOT_THERE:/a:b}/runs").config.trainer.save_dir == "/a:b/runs"
    assert load(name="x${env:NOT_THERE:}").config.name == "x"
    assert load(name="x${env:NOT_THERE:1e3}").config.name == "x1e3"  # the text as it is, inside a longer string


def test_a_config_that_is_not_run_needs_no_environment(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='"NOT_THERE" is not set'):
        load(data_loader__args__batch_size="${env:NOT_THERE}")
    lenient = load_config(tmp_path / "config.json", ["optimizer.args.lr=-1"], partial=True, dry_run=False)
    assert lenient.config.name == "digits"


def test_a_plain_dollar_brace_is_escaped_and_stays_so_in_the_run(load: Load, tmp_path: Path) -> None:
    config = load(trainer__save_dir="$${HOME}/$$${x}", variables={"x": 1}, seed="${x}").config
    assert config.trainer.save_dir == "${HOME}/$${x}"
    (tmp_path / "again.json").write_text(to_json(config, folder=tmp_path))
    assert load_config(tmp_path / "again.json").config == config
    assert '"variables"' not in to_json(config)
    assert load(trainer__save_dir="$${").config.trainer.save_dir == "${"


def test_overrides_may_hold_references_and_set_variables(load: Load) -> None:
    loaded = load("variables.N=3", "trainer.epochs=${N}", "seed=${env:NOT_THERE:5}", variables={"N": 1})
    assert (loaded.config.trainer.epochs, loaded.config.seed) == (3, 5)


def test_an_inherited_variable_is_overridden(tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text(json.dumps({**sound(), "variables": {"N": 2}, "seed": "${N}"}))
    (tmp_path / "child.json").write_text(json.dumps({"extends": "base.json", "variables": {"N": 9}}))
    assert load_config(tmp_path / "child.json").config.seed == 9


MANY_TIMES = {"X0": 1, **{f"X{number}": [f"${{X{number - 1}}}"] * 10 for number in range(1, 10)}}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"seed": "${SED}", "variables": {"SEED": 1}, "name": "${SEED}x"}, 'seed: .*"SED"; did you mean "SEED"'),
        ({"seed": "${SED}"}, 'unknown variable "SED"; the config has no "variables"'),
        ({"seed": "${env:NOT_THERE}"}, r'environment variable "NOT_THERE" is not set. .*"\$\{env:NOT_THERE:DEFAULT\}"'),
        ({"seed": "${A}", "variables": {"A": "${B}", "B": ["${A}"]}}, "circular variables: A -> B -> A"),
        ({"seed": "${A"}, "is not a reference; possible forms"),
        ({"seed": "${A-B}"}, "is not a reference; possible forms"),
        ({"seed": "${}"}, "is not a reference; possible forms"),
        ({"seed": "${A}", "variables": {"A": "x"}}, r'seed: should be an integer, got "x"'),
        ({"seed": "${A.B}"}, "is not a reference; possible forms"),
        ({"name": "a${A}", "variables": {"A": None}}, "null, which cannot be part of a string"),
        ({"name": "a${A}", "variables": {"A": {}}}, "{}, which cannot be part of a string"),
        ({"name": "a${A}", "variables": {"A": [1]}}, r"\[1\], which cannot be part of a string"),
        ({"variables": {"A": 1}}, r'variables\.A: "\$\{A\}" is not used'),
        ({"variables": {"A B": 1}}, r"variables\.A B: a name has letters, digits and _"),
        ({"variables": [1]}, "variables: should be an object"),
        ({"seed": "${data.num_classes}"}, "seed: .*only arguments of other components"),
        ({"data_loader__args__batch_size": "${data.num_classes}"}, "batch_size: .*only arguments of other"),
        ({"trainer__epochs": "${env:NOT_THERE:[1}"}, r"epochs: .*:1:3: the text ends here"),
        ({"seed": "${X9}", "variables": MANY_TIMES}, r"seed: variables contain one another more than 10,000 times"),
    ],
)
def test_a_mistake_is_shown_at_the_line_of_the_reference(load: Load, values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load(**values)
    assert "mistakes in the config" not in str(caught.value)
    assert "config.json:" in str(caught.value)
    assert " | " in str(caught.value)


def test_a_variable_whose_use_is_replaced_is_no_mistake(load: Load, tmp_path: Path) -> None:
    values = {"seed": "${A}", "variables": {"A": "${B}", "B": "${env:NOT_THERE}"}}
    assert load("seed=3", **values).config.seed == 3
    extending = tmp_path / "extending.json"
    extending.write_text('{"extends": "config.json", "seed": 4}')
    assert load_config(extending).config.seed == 4
    with pytest.raises(ConfigError, match=r'override variables\.A=2: variables\.A: "\$\{A\}" is not used'):
        load("seed=3", "variables.A=2", **values)
    with pytest.raises(ConfigError, match=r'variables\.C: "\$\{C\}" is not used'):
        load("seed=3", variables={"C": 1})


# ------------------------------------------------------------------ facts of the data


TELLING: dict[str, Any] = {
    "type": "Telling",
    "args": {"num_samples": 50, "num_test_samples": 20, "input_shape": [6], "num_classes": 3, "batch_size": 8},
}
ASKING: dict[str, Any] = {
    "data_loader": TELLING,
    "model": {
        "type": "TwoLayerNet",
        "args": {"in_features": 6, "hidden_features": 5, "out_features": "${data.num_classes}"},
    },
    "loss": {"type": "CrossEntropyLoss", "args": {"weight": "${COUNTS}"}},
}


@pytest.mark.slow
def test_what_the_data_tell_and_the_environment_are_needed_once(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, write_config: Callable[..., Path]
) -> None:
    monkeypatch.setenv("RATE_OF_TEST", "0.05")
    optimizer = {"type": "SGD", "args": {"lr": "${env:RATE_OF_TEST}"}}
    keys = {**ASKING, "optimizer": optimizer, "variables": {"COUNTS": "${data.counts}"}}
    whole = fit("trainer.epochs=2", **keys).run_dir
    written = json.loads((whole / "config.json").read_text())
    assert written["model"]["args"]["out_features"] == 3
    assert written["loss"]["args"]["weight"] == [20.0, 20.0, 10.0]
    assert written["optimizer"]["args"]["lr"] == 0.05
    monkeypatch.delenv("RATE_OF_TEST")

    def not_asked(self: Any) -> dict[str, Any]:
        raise AssertionError("a resume does not ask")

    monkeypatch.setattr(Telling, "facts", not_asked)
    half = fork(whole, 0)
    train.main(["-r", str(half)])
    equal(whole, half)
    load_script("test").main(["-r", str(half)])
    config = write_config(**keys)
    found = train.main(["-r", "-c", str(config)])  # which run it is needs neither of them
    assert found.run_dir.parent == whole.parent


def test_what_the_data_tell_may_be_an_argument_that_a_metric_needs(fit: Fit) -> None:
    score: dict[str, Any] = {"type": "F1Score", "args": {"task": "multiclass", "num_classes": "${data.num_classes}"}}
    keys = {**ASKING, "loss": "cross_entropy"}
    assert "F1Score" in fit("trainer.epochs=1", **keys, metrics=[score]).last
    with pytest.raises(ConfigError, match=r"metrics\.0\.args\.num_classes: "):
        fit(**keys, metrics=[{**score, "args": {**score["args"], "num_classes": "${data.rate}"}}])


def test_what_the_data_tell_may_be_an_override_of_a_resume(fit: Fit) -> None:
    run = fit(**{**ASKING, "loss": "cross_entropy"}).run_dir
    resumed = train.main(
        ["-r", str(run), "optimizer.args.lr=${data.rate}", "model.args.out_features=${data.num_classes}"]
    )
    assert resumed.run_dir == run


def test_a_runs_own_config_may_refer_to_what_the_data_tell(fit: Fit) -> None:
    run = fit("trainer.epochs=1", **{**ASKING, "loss": "cross_entropy"}).run_dir
    config = json.loads((run / "config.json").read_text())
    config["model"]["args"]["out_features"] = "${data.num_classes}"
    (run / "config.json").write_text(json.dumps(config))
    assert train.main(["-r", str(run), "trainer.epochs=2"]).epochs == 2


def test_a_resume_takes_a_variable_where_it_refers_to_one(fit: Fit) -> None:
    run = fit("trainer.epochs=1").run_dir
    assert train.main(["-r", str(run), "variables.EPOCHS=2", "trainer.epochs=${EPOCHS}"]).epochs == 2
    with pytest.raises(ConfigError, match="is not used"):
        train.main(["-r", str(run), "variables.EPOCHS=3"])


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        (
            "${data.num_clases}",
            r'out_features: the data loader does not provide "num_clases"; did you mean "num_classes"',
        ),
        ("${data.class_weights}", 'does not provide "class_weights"; it needs integer targets of shape'),
        ("${data.7}", 'out_features: should be an integer, got "seven"'),
        ("${data.name}", r'out_features: should be an integer, got "few"'),
        ("${data.rate}", "out_features: should be an integer, got 0.5"),
        ("${data.num_classes}0", r'out_features: should be an integer, got "30"'),
    ],
)
def test_the_values_are_checked_once_the_data_are_there(
    fit: Fit, tmp_path: Path, capsys: Any, reference: str, says: str
) -> None:
    pytest.importorskip("extras.check")
    args = {"in_features": 6, "hidden_features": 5, "out_features": reference}
    keys = {**ASKING, "loss": "cross_entropy", "model": {"type": "TwoLayerNet", "args": args}}
    with pytest.raises(ConfigError, match=says) as caught:
        fit(**keys)
    assert f'"out_features": "{reference}"' in str(caught.value)
    with pytest.raises(ConfigError, match=says):
        train.main(["--check", "-c", str(tmp_path / "config.json")])
    assert not (tmp_path / "saved").exists()


def test_what_the_data_tell_may_be_where_a_schedule_changes(load: Load) -> None:
    parts = {"schedulers": ["ConstantLR", "CosineAnnealingLR"], "milestones": ["${data.first}"]}
    loaded = load("optimizer.args.lr=0.5", lr_scheduler={"type": "SequentialLR", "args": parts})
    assert loaded.from_data == [("lr_scheduler", "args", "milestones", 0)]


def test_other_mistakes_are_found_before_the_data_are_read(fit: Fit) -> None:
    Telling.drawn = 0
    with pytest.raises(ConfigError, match=r'no argument "widht"(.|\n)*epochs'):
        fit("model.args.widht=3", "trainer.epochs=0", **{**ASKING, "loss": "cross_entropy"})
    assert Telling.drawn == 0


def test_a_loader_that_fails_to_tell_is_located(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Telling, "facts", lambda self: 1 / 0)
    with pytest.raises(UserError, match=r"data_loader\.args: Telling cannot be built: ZeroDivisionError"):
        fit(**{**ASKING, "loss": "cross_entropy"})
    monkeypatch.setattr(Telling, "facts", lambda self: {"num_classes": object()})
    with pytest.raises(ConfigError, match='"num_classes" of the data is not a number'):
        fit(**{**ASKING, "loss": "cross_entropy"})


def test_check_resolves(fit: Fit, write_config: Callable[..., Path], capsys: Any) -> None:
    pytest.importorskip("extras.check")
    train.main(["--check", "-c", str(write_config(**{**ASKING, "loss": "cross_entropy"}))])
    assert "(8, 3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "given", "valid"),
    [
        (("seed",), "${SEED}", True),
        (("seed",), "x", False),
        (("trainer", "epochs"), "${env:EPOCHS:3}", True),
        (("trainer", "clip_grad_norm"), "${CLIP}", True),
        (("model", "args", "hidden_features"), "${data.num_classes}", True),
        (("model", "args", "hidden_features"), "many", False),
        (("model", "args", "bias"), "${B}", True),
        (("data_loader", "args", "input_shape"), ["${N}"], True),
        (("data_loader", "args", "input_shape"), ["n"], False),
        (("model",), "${MODEL}", True),
        (("loss",), "${LOSS}", True),
        (("metrics",), ["${METRIC}"], True),
        (("optimizer", "type"), "${OPTIMIZER}", True),
        (("variables",), {"SEED": 3, "LIST": [1]}, True),
        (("variables",), [1], False),
    ],
)
def test_an_editor_takes_a_reference_where_it_wants_a_number(path: tuple[str, ...], given: Any, valid: bool) -> None:
    pytest.importorskip("extras.schema")
    config: Any = sound()
    config["model"]["type"] = "TwoLayerNet"
    at = config
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = given
    schema = json.loads((ROOT / "config.schema.json").read_text())
    assert jsonschema.Draft7Validator(schema).is_valid(config) == valid
