"""Loading a config: every mistake is found, those of one kind all at once, each at its line."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.configs import BUNDLED, SOUND, message, sound
from tests.helpers import needs_extra
from utils.config import load_config, to_json
from utils.config.sources import value_at
from utils.errors import ConfigError
from utils.paths import PROJECT
from utils.registry import LOSSES, METRICS, OPTIMIZERS, SCHEDULERS
from utils.schema import Config, ModelConfig, OptimizerConfig, RuntimeConfig, TrainerConfig, WeightsConfig
from utils.schema_fields import keys_of


@pytest.fixture
def explain(tmp_path: Path) -> Callable[..., str]:
    """The error message about a config, given as text or as a value; empty if it is valid."""

    def load(config: str | dict[str, Any], *overrides: str) -> str:
        path = tmp_path / "config.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config, indent=1))
        return message(path, *overrides)

    return load


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_bundled_configs_are_sound(path: Path) -> None:
    assert message(path) == ""


def test_all_mistakes_at_once_in_the_order_of_the_file(explain: Callable[..., str]) -> None:
    config = sound() | {"nmae": 1, "seed": -1}
    config["optimizer"]["args"] = {"lr": "high", "momentun": 0.9}
    config["metrics"] = ["accuracy", {"type": "acuracy"}]
    config["lr_scheduler"]["args"]["pct_start"] = None
    lines = explain(config, "trainer.epochs=0").splitlines()
    found = [line.split(": ")[1] for line in lines if line.startswith(("override", "..", "/")) or ".json:" in line]
    places = ["metrics.1.type", "optimizer.args.lr", "optimizer.args.momentun", "lr_scheduler.args.pct_start"]
    assert found == [*places, "nmae", "seed", "trainer.epochs"]


def test_ranges_and_conflicts_are_checked_once_names_and_types_are_right(explain: Callable[..., str]) -> None:
    config = sound()
    config["optimizer"]["args"]["lr"] = -1
    config["trainer"]["monitor"] = "min val_los"
    mistakes = explain(config)
    assert mistakes.startswith("2 mistakes in the config:")
    assert "optimizer.args.lr: SGD rejects this" in mistakes
    assert 'trainer.monitor: no value is logged as "val_los"' in mistakes
    assert explain(config, "seed=-1") == "override seed=-1: seed: should be greater than or equal to 0, got -1"


def test_of_many_mistakes_the_first_are_shown(explain: Callable[..., str]) -> None:
    shown = explain(sound() | {"variables": {f"unused{number}": 1 for number in range(100)}})
    assert shown.startswith("100 mistakes in the config:")
    assert shown.endswith("... and 80 more")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optimizer", {"type": "SGD", "args": {"nesterov": True}}, "optimizer.args.nesterov: SGD rejects this"),
        pytest.param(
            *("trainer", {"writers": ["csv", {"type": "csv", "args": {}}]}, 'trainer.writers.1: "csv" is listed twice'),
            marks=needs_extra("writers"),
        ),
        (
            "lr_scheduler",
            "ChainedScheduler",
            'lr_scheduler.args: ChainedScheduler needs the argument "schedulers": list of LRScheduler',
        ),
        (
            "lr_scheduler",
            {"type": "ChainedScheduler", "args": {"schedulers": ["ConstantLR"], "optimizer": None}},
            'lr_scheduler.args.optimizer: ChainedScheduler has no argument "optimizer"',
        ),
        ("optimizer", {"type": "Adam", "args": {"betas": [0.9, 1.5]}}, "optimizer.args.betas: Adam rejects this"),
        ("optimizer", {"type": "Adam", "args": {"capturable": True}}, "optimizer.args.capturable: Adam rejects this"),
        ("optimizer", {"type": "AdamW", "args": {"fused": True, "foreach": True}}, "AdamW rejects this"),
        ("optimizer", {"type": "LBFGS", "args": {"history_size": 0}}, "args.history_size: LBFGS rejects this"),
        ("optimizer", None, 'optimizer: should be a component: {"type": NAME, "args": {...}}, or just its name'),
        ("metrics", None, "metrics: should be a list, got null"),
        ("metrics", ["loss"], 'unknown metric "loss"'),
        ("metrics", [{"type": "accuracy", "name": "loss"}], 'logged as "loss", but that name is taken'),
        ("metrics", [{"type": "accuracy", "name": "seconds"}], 'logged as "seconds", but that name is taken'),
        ("metrics", [{"type": "accuracy", "name": "samples"}], 'logged as "samples", but that name is taken'),
        ("metrics", [{"type": "accuracy", "name": "lr_head"}], 'logged as "lr_head", but that name is taken'),
        ("metrics", [{"type": "F1Score", "args": {"task": "multiclass"}}], "F1Score rejects this"),
        (
            "lr_scheduler",
            {"type": "OneCycleLR", "args": {"max_lr": [0.1, 0.2]}},
            "lr_scheduler.args: OneCycleLR rejects",
        ),
        ("lr_scheduler", {"type": "OneCycleLR", "args": {"max_lr": 1, "epochs": 3}}, "args: OneCycleLR rejects this"),
        ("metrics", [{"type": "F1Score", "args": {"task": "binary", "k": 1}}], 'F1Score has no argument "k"'),
        (
            "loss",
            {"type": "CrossEntropyLoss", "args": {"weight": ["a"]}},
            'loss.args.weight.0: should be a number, got "a"',
        ),
        ("loss", "CTCLoss", 'unknown loss "CTCLoss"'),
        ("loss", {"type": "MSELoss", "args": {"reduce": False}}, 'MSELoss has no argument "reduce"'),
        (
            "trainer",
            {"clip_grad_value": 1e39},
            "trainer.clip_grad_value: should be less than or equal to 34",
        ),
        ("lr_scheduler", {"type": "StepLR", "args": {"step_size": 0}}, "args.step_size: should be greater than 0"),
        ("lr_scheduler", {"type": "CosineAnnealingLR", "args": {"T_max": -1}}, "args.T_max: should be greater than 0"),
        ("lr_scheduler", {"type": "LinearLR", "args": {"total_iters": 0}}, "total_iters: should be greater than 0"),
        ("lr_scheduler", {"type": "ExponentialLR", "args": {"gamma": -0.5}}, "the learning rate would be -0.005"),
        pytest.param(
            "lr_scheduler",
            "LambdaLR",
            'unknown scheduler "LambdaLR"; torch.optim.lr_scheduler has it, but a config cannot pass the function',
            marks=needs_extra("hints"),
        ),
        ("loss", "NLLLoss2d", 'unknown loss "NLLLoss2d"; did you mean "NLLLoss"?'),
        ("lr_scheduler", {"type": "ReduceLROnPlateau", "interval": "step"}, '"interval": "epoch"'),
        ("lr_scheduler", {"type": "SequentialLR", "args": {"milestones": [1]}}, 'needs the argument "schedulers"'),
        ("trainer", {"monitor": "off"}, 'trainer.monitor: should be "min NAME" or "max NAME"'),
        ("trainer", {"monitor": "min val_los"}, 'no value is logged as "val_los"; did you mean "val_loss"?'),
        ("trainer", {"early_stop": 3}, "early_stop needs a monitored value"),
        pytest.param("trainer", {"n_gpu": 1}, "; use ", marks=needs_extra("hints")),
        pytest.param("trainer", {"patience": 1}, 'use "early_stop", under "trainer"', marks=needs_extra("hints")),
        pytest.param("trainer", {"grad_clip": 1}, 'use "clip_grad_norm"', marks=needs_extra("hints")),
        pytest.param("optimizer", {"type": "SGD", "param_groups": []}, 'use "groups"', marks=needs_extra("hints")),
        pytest.param("trainer", {"max_epochs": 1}, 'use "epochs", under "trainer"', marks=needs_extra("hints")),
        pytest.param("metrics", ["acc"], 'use "accuracy"', marks=needs_extra("hints")),
        ("metrics", ["nll_loss"], 'unknown metric "nll_loss"; expected one of: '),
        ("loss", "cosine", 'unknown loss "cosine"; expected one of: '),
        ("trainer", {"cosine": 1}, 'unknown key "cosine"; expected one of: type, args, epochs'),
        pytest.param("trainer", {"beta": 1}, "belongs under its args", marks=needs_extra("hints")),
        pytest.param("cuda", True, 'use "runtime": {"device": ...}', marks=needs_extra("hints")),
        ("model", {"type": "LeNet", "args": {"in_channels": 2}}, "should be 1 or 3, got 2"),
        ("trainer", {"verbosity": True}, "trainer.verbosity: should be an integer, got true"),
        ("trainer", {"epochs": 1.5}, "trainer.epochs: should be an integer, got 1.5"),
        ("runtime", {"device": "cuda:x"}, "runtime.device: should be"),
        ("runtime", [], "runtime: should be an object"),
        ("trainer", "Trainer", 'trainer: should be an object, such as {"type": "Trainer"}'),
        (
            "runtime",
            {"compile": "fast"},
            'compile: should be a boolean or "reduce-overhead" or "max-autotune", got "fast"',
        ),
        ("trainer", {"profile_steps": [1]}, "trainer.profile_steps: should have at least 2 items, got [1]"),
        ("trainer", {"save_dir": ""}, "trainer.save_dir: should have at least 1 character"),
        ("name", "../x", "name: should be a plain name"),
        *(
            (
                key,
                {"a b": sound()[key], "c": sound()[key]},
                f'{key}.a b: should be a plain name: letters, digits and _, got "a b"',
            )
            for key in ("optimizer", "loss")
        ),
        ("validation", {"": sound()["data_loader"]}, 'should be a plain name: letters, digits and _, got ""'),
        ("extends", 3, "extends: should be the path"),
    ],
)
@pytest.mark.usefixtures("without_accelerator")
def test_one_wrong_value(explain: Callable[..., str], key: str, value: Any, expected: str) -> None:
    text = explain(sound() | {key: value})
    assert expected in text
    assert not text[0].isdigit(), "one mistake is one message"


@needs_extra("hints")
def test_keys_of_other_frameworks_name_keys_that_exist() -> None:
    from extras.hints.former_names import FORMER_KEYS

    sections = (Config, OptimizerConfig, ModelConfig, TrainerConfig, RuntimeConfig)
    known = {key for section in sections for key in keys_of(section)} | {"lr"}
    named = {found[1] for former in FORMER_KEYS.values() if (found := re.match(r'"(\w+)"', former))}
    assert named <= known
    assert not FORMER_KEYS.keys() & known


@needs_extra("hints")
def test_metrics_of_other_projects_name_metrics_that_exist() -> None:
    from extras.hints.former_names import FORMER_NAMES

    named = {re.findall(r'"(\w+)"', instead)[0] for instead in FORMER_NAMES["metric"].values()} - {"type"}
    named |= {found[1] for each in FORMER_NAMES["metric"].values() if (found := re.search(r'"type": "(\w+)"', each))}
    assert len(named) > 6
    assert not [name for name in named if METRICS.get(name) is None]


SEVERAL = 'optimizer={"one": {"type": "SGD", "params": ["*"]}}'


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([SEVERAL, "runtime.strategy=fsdp"], 'runtime.strategy: several optimizers need "ddp"'),
        (
            [SEVERAL, "runtime.precision=fp16", "trainer.accumulate_steps=2"],
            "runtime.precision: with several optimizers and accumulate_steps > 1, the loss scale would change",
        ),
        (['lr_scheduler={"one": {"type": "ConstantLR"}}'], 'unknown optimizer "one"; the config has one optimizer'),
    ],
)
def test_keys_that_contradict_each_other(explain: Callable[..., str], overrides: list[str], expected: str) -> None:
    assert expected in explain(sound(), *overrides)
    for left_out in overrides:
        assert expected not in explain(sound(), *(each for each in overrides if each != left_out))


CHAINED = {"type": "ChainedScheduler", "args": {"schedulers": ["ConstantLR"]}}


@pytest.mark.parametrize(
    ("schedulers", "expected"),
    [
        (["CosineAnnealingLR", {"type": "LinearLR", "arg": {}}], 'schedulers.1.arg: unknown key "arg"'),
        (["CosineAnnealingLR", {"type": "LinearLr"}], 'unknown scheduler "LinearLr"; did you mean "LinearLR"?'),
        (["CosineAnnealingLR", {"type": "LinearLR", "args": {"start_factor": -1}}], "1.args.start_factor: LinearLR"),
        (["CosineAnnealingLR", 5], "schedulers.1: should be a string or an object, got 5"),
        ([], "SequentialLR rejects this"),
        (["CosineAnnealingLR"], "SequentialLR rejects this"),
        (["CosineAnnealingLR", "ConstantLR"], ""),
        (["CosineAnnealingLR", CHAINED], "schedulers.1: SequentialLR cannot switch to ChainedScheduler"),
        ([CHAINED, "ConstantLR"], ""),
    ],
)
def test_schedulers_made_of_others(explain: Callable[..., str], schedulers: list[Any], expected: str) -> None:
    args = {"schedulers": schedulers, "milestones": [1]}
    text = explain(sound() | {"lr_scheduler": {"type": "SequentialLR", "args": args}})
    assert expected in text
    assert bool(text) == bool(expected)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("l1_loss", 'did you mean "L1Loss"?'),
        ("huber_loss", 'did you mean "HuberLoss"?'),
        ("cross_entropy_los", 'did you mean "CrossEntropyLoss"?'),
        pytest.param(
            "binary_cross_entropy_with_logits", 'use torch.nn\'s "BCEWithLogitsLoss"', marks=needs_extra("hints")
        ),
    ],
)
def test_a_loss_of_torch_by_another_name(explain: Callable[..., str], name: str, meant: str) -> None:
    assert f'unknown loss "{name}"; {meant}' in explain(sound() | {"loss": name})


def test_a_misspelt_key_is_not_missing_as_well(explain: Callable[..., str]) -> None:
    assert "missing" not in explain(SOUND.replace('"model"', '"modle"'))
    assert "missing" not in explain(SOUND.replace('"type": "SGD"', '"tpye": "SGD"'))
    assert "needs" not in explain(SOUND.replace('"batch_size"', '"batchsize"'))


def test_a_key_beside_several_optimizers_is_one_mistake(explain: Callable[..., str]) -> None:
    each = {"type": "SGD", "args": {"lr": 0.1}}
    config = {**sound(), "optimizer": {"a": {**each, "params": ["fc1*"]}, "b": {**each, "params": ["fc2*"]}}}
    for override in ("optimizer.args.lr=0.1", 'optimizer.params=["fc*"]'):
        key = override.partition("=")[0].removesuffix(".lr")
        expected = f"{key}: belongs in each component: {key.replace('r.', 'r.a.')} and {key.replace('r.', 'r.b.')}"
        assert explain(config, override) == f"override {override}: {expected}"


def test_a_component_by_name_is_not_called_args(explain: Callable[..., str]) -> None:
    """Its arguments would be taken for those of a single one, also on resume."""
    config = {**sound(), "optimizer": {"args": {"type": "SGD", "params": ["*"]}, "b": {"type": "SGD"}}}
    assert "optimizer.args: belongs in each component: optimizer.b.args" in explain(config)


@needs_extra("hints")
def test_a_renamed_key_names_its_home(explain: Callable[..., str]) -> None:
    assert 'it belongs under "trainer"' in explain(sound() | {"epochs": 3})
    assert "it belongs under data_loader.args" in explain(sound() | {"batch_size": 3})
    assert 'did you mean "model"' not in explain(sound() | {"loss": "modell"})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.epochs=", "trainer.epochs: should be an integer"),
        ("trainer.epochs", "expected KEY=VALUE, e.g. trainer.epochs=5"),
        ("trainer..epochs=1", "invalid override"),
        ("metrics.7=accuracy", "metrics has 2 elements"),
        ("metrics.x=accuracy", "metrics has 2 elements"),
        ("trainer.writers.0.args.x=1", "trainer.writers: should be a list, got"),
        ("optimizer.groups.0=1", "optimizer.groups: should be a list, got"),
        ("loss.args.weight.0=1", "loss.args.weight: should be a list, got"),
        ("name.x=1", 'name has no keys; it is "digits"'),
        ("trainer.monitor.x=1", 'trainer.monitor has no keys; it is "min val_loss"'),
        ("runtime.args.x=1", 'runtime.args: unknown key "args"'),
        ("data_loader.type.x=1", 'data_loader.type has no keys; it is "RandomTensorLoader"'),
        ("model.5=1", 'model.5: unknown key "5"'),
        ("optimizer.params=5", "optimizer.params: should be a list, got 5"),
        ("loss=5", "loss: should be a component"),
        pytest.param("optimizer.lr=1", "it belongs under optimizer.args", marks=needs_extra("hints")),
        pytest.param(
            'optimizer.groups=[{"params": ["*"], "lr": 1}]',
            "it belongs under optimizer.groups.0.args",
            marks=needs_extra("hints"),
        ),
        ("metrics=[accuracy]", "Did the shell remove the quotes?"),
        ("loss=\udcff", "a character that cannot be printed"),
        pytest.param("extends=x.json", "it belongs at the top of a file", marks=needs_extra("hints")),
        ("lr_scheduler=None", "write null, as in JSON, or '\"None\"' for the text"),
        ("data_loader.args.shuffle=False", "write false, as in JSON"),
        ("optimizer.args.lr=NaN", 'should be a number, got "NaN"'),
        *(
            (f"{key}={number}", f"{number} is not a finite number of at most 64 bits")
            for key, number in (("data_loader.args.batch_size", 2**64), ("seed", 2**64), ("optimizer.args.lr", "1e999"))
        ),
        ("optimizer.args.lr=-1", "override optimizer.args.lr=-1: optimizer.args.lr: SGD rejects this"),
    ],
)
def test_overrides_are_checked_and_named(explain: Callable[..., str], override: str, expected: str) -> None:
    assert expected in explain(SOUND, override)
    assert override in explain(SOUND, override) or "\udcff" in override


@pytest.mark.parametrize("override", ["metrics=[accuracy]", "'metrics=[accuracy]'"])
def test_windows_has_its_own_way_of_quoting(
    explain: Callable[..., str], monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    monkeypatch.setattr("utils.config.sources.os", SimpleNamespace(name="nt"))
    assert r"""write "KEY=[\"a\"]" in cmd.exe, and 'KEY=[\"a\"]' in PowerShell""" in explain(SOUND, override)


def test_an_override_opens_a_bare_name(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(SOUND)
    loaded = load_config(
        path,
        [
            *("lr_scheduler=null", "loss.args.label_smoothing=0.1", "metrics.0.name=acc", "optimizer=Adam"),
            *("model.weights=a.pth", 'model.weights.skip=["fc*"]'),
        ],
    )
    assert loaded.config.model.weights == WeightsConfig(file="a.pth", skip=["fc*"])
    assert loaded.config.loss is not None
    assert loaded.config.losses[""].args == {"label_smoothing": 0.1}
    assert loaded.config.metrics[0].name == "acc"
    assert loaded.config.optimizers[""].args == {}


def test_the_written_config_is_the_config(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(SOUND)
    loaded = load_config(first, ["seed=7"]).config
    second.write_text(to_json(loaded))
    assert load_config(second).config == loaded
    assert loaded.seed == 7


def test_the_schema_path_is_relative_to_the_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"$schema": "./config.schema.json", **sound()}))
    folder = tmp_path / "saved" / "digits" / "now"
    named = json.loads(to_json(load_config(path).config, folder=folder))["$schema"]
    assert (folder / named).resolve() == (PROJECT / "config.schema.json").resolve()


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_optimizer_has_a_dry_run(explain: Callable[..., str], name: str) -> None:
    assert explain(sound() | {"optimizer": name, "lr_scheduler": None}) == ""
    wrong = sound() | {"optimizer": {"type": name, "args": {"lr": -1.0}}, "lr_scheduler": None}
    assert "rejects this" in explain(wrong)


def needs_nothing(name: str) -> bool:
    return all(parameter.default is not parameter.empty for parameter in LOSSES.parameters(name).values())


@pytest.mark.parametrize("name", [name for name in LOSSES.names() if needs_nothing(name)])
def test_every_loss_takes_outputs_and_targets_alone(explain: Callable[..., str], name: str) -> None:
    assert explain(sound() | {"loss": name}) == ""


def test_what_needs_more_than_outputs_and_targets_is_not_offered() -> None:
    assert not {"CTCLoss", "TripletMarginLoss", "AdaptiveLogSoftmaxWithLoss"} & set(LOSSES.names())
    assert not {"Metric", "MetricCollection", "MeanMetric", "BootStrapper"} & set(METRICS.names())
    assert {"F1Score", "AUROC", "MeanSquaredError"} <= set(METRICS.names())
    assert {"OneCycleLR", "StepLR", "ReduceLROnPlateau"} <= set(SCHEDULERS.names())


@pytest.mark.slow
@needs_extra("early")
def test_a_misspelt_key_does_not_wait_for_the_compiler(tmp_path: Path) -> None:
    """torch imports it with the first optimizer, which takes longer than everything else before the message."""
    (tmp_path / "config.json").write_text(SOUND.replace('"seed"', '"sed"').replace('"momentum"', '"momentun"'))
    code = (
        "import sys; from pathlib import Path; from tests.configs import message;"
        f"assert message(Path({str(tmp_path / 'config.json')!r})); assert 'torch._dynamo' not in sys.modules;"
        "assert 'torchmetrics' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("lr_scheduler.args.max_lr=.001", ("lr_scheduler", "args", "max_lr"), 0.001),
        ("lr_scheduler.args.max_lr=1.", ("lr_scheduler", "args", "max_lr"), 1.0),
        ("lr_scheduler.args.max_lr=+5e-3", ("lr_scheduler", "args", "max_lr"), 0.005),
        ("name=12345", ("name",), "12345"),
        ("name=1e5", ("name",), "1e5"),
        ("name=true", ("name",), "true"),
        ("$schema=3", ("schema_path",), "3"),
        ("trainer.save_dir=.5", ("trainer", "save_dir"), ".5"),
        ("trainer.monitor=null", ("trainer", "monitor"), None),
        ("trainer.epochs=3", ("trainer", "epochs"), 3),
    ],
)
def test_an_override_is_a_number_or_a_text_as_its_key_wants(
    tmp_path: Path, override: str, path: tuple[str, ...], value: Any
) -> None:
    file = tmp_path / "config.json"
    file.write_text(SOUND)
    found: Any = load_config(file, [override]).config.model_dump()
    for key in path:
        found = found[key]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("text", ["007", "2024_01_01", "9" * 20, "1.e999", "1_0.5"])
def test_what_may_be_a_name_is_not_read_as_a_number(text: str) -> None:
    assert value_at({}, ("variables", "X"), text, "") == text


@needs_extra("hints")
@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("MulticlassAccuracy", '"args": {"task": "multiclass", "num_classes": ...}}, whose defaults may differ'),
        ("BinaryF1Score", '{"type": "F1Score", "args": {"task": "binary"}}'),
        (
            {"type": "MulticlassAccuracy", "args": {"num_classes": 3}},
            '{"type": "Accuracy", "args": {"task": "multiclass", "num_classes": 3}}',
        ),
    ],
)
def test_a_metric_of_one_task_is_shown_as_a_config_gives_it(tmp_path: Path, metric: Any, says: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(SOUND)
    assert says in message(file, f"metrics={json.dumps([metric])}")


@needs_extra("hints")
@pytest.mark.parametrize(
    ("key", "name", "library"),
    [
        ("loss", "GaussianNLLLoss", "torch.nn"),
        ("loss", "CTCLoss", "torch.nn"),
        ("metrics", "BLEUScore", "torchmetrics"),
    ],
)
def test_a_name_that_the_library_has_for_other_inputs_says_so(
    write_config: Callable[..., Path], key: str, name: str, library: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write_config(**{key: [name] if key == "metrics" else name}))
    assert f'"{name}"; {library} has it, but a config cannot call it with just (outputs, targets)' in str(error.value)
    assert ('"loss" to null' in str(error.value)) is (key == "loss")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "args"),
    [("PeakSignalNoiseRatio", {"data_range": 1.0}), ("StructuralSimilarityIndexMeasure", {}), ("Perplexity", {})],
)
def test_a_metric_with_a_deprecated_name_is_that_of_its_package(name: str, args: dict[str, Any]) -> None:
    metric = METRICS[name]
    assert metric.__name__ == name
    metric(**args)  # without a warning
    assert name in METRICS.names()


def test_another_module_of_torch_is_not_a_loss(write_config: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match='unknown loss "Linear"; ') as error:
        load_config(write_config(loss="Linear"))
    assert "has it" not in str(error.value)


def test_without_the_folder_of_hints_the_closest_name_is_named(
    explain: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("utils.config.problems", "utils.registry"):
        monkeypatch.setattr(f"{module}.find_extra", lambda folder: None)
    assert 'unknown key "modle"; did you mean "model"?' in explain(SOUND.replace('"model"', '"modle"'))
    assert 'unknown key "arch"; expected one of: ' in explain(sound() | {"arch": 1})
    assert 'unknown loss "nll_los"; did you mean' in explain(sound() | {"loss": "nll_los"})
    assert "SGD" in explain(SOUND, "optimizer.type=SGDD")


def test_the_last_override_of_a_key_counts(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(SOUND)
    overrides = ["trainer.epochs=1", 'trainer={"epochs": 2}', "trainer.epochs=3"]
    assert load_config(path, overrides).config.trainer.epochs == 3


@pytest.mark.parametrize("later", ["optimizer=Adam", 'optimizer={"type": "SGD"}', "optimizer.args={}"])
def test_an_override_that_a_later_one_removes_is_refused(explain: Callable[..., str], later: str) -> None:
    """Otherwise a sweep over both would repeat the same trial for each of the values."""
    expected = f"override optimizer.args.lr=0.5: has no effect, since {later} replaces optimizer"
    assert explain(SOUND, "optimizer.args.lr=0.5", later).startswith(expected)
    assert "replaces optimizer" not in explain(SOUND, "optimizer.args.lr=0.5", later, "optimizer.args.lr=0.6")
    assert "replaces optimizer" not in explain(SOUND, later, "optimizer.args.lr=0.5")
    assert explain(SOUND, "optimizer.args.lr=0.5", later, "seed=1").startswith(expected)
