"""What KEY=SPACE means, and what is wrong with one."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from extras.sweep.spaces import check_monitor, check_spaces, combinations, grid_size, parse_space, parse_spaces
from utils.config import load_config
from utils.errors import ConfigError, UserError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0..4", ("0", "1", "2", "3", "4")),
        ("-1..1", ("-1", "0", "1")),
        ("7..7", ("7",)),
        ("32,64, 128", ("32", "64", "128")),
        ('["accuracy"],[]', ('["accuracy"]', "[]")),
        ('{"type": "SGD", "args": {"lr": 1}},Adam', ('{"type": "SGD", "args": {"lr": 1}}', "Adam")),
        ('"a,b","c\\",d"', ('"a,b"', '"c\\",d"')),
        ("null,0.1", ("null", "0.1")),
        ("[0.9,0.99]", ("[0.9,0.99]",)),
    ],
)
def test_finite_spaces(text: str, values: tuple[str, ...]) -> None:
    assert parse_space(f"some.key={text}").values == values


def test_ranges() -> None:
    space = parse_space("optimizer.args.lr=log:1e-4..1e-1")
    assert (space.low, space.high, space.log, space.finite) == (1e-4, 1e-1, True, False)
    assert space.ends() == ("0.0001", "0.1")
    assert parse_space("a=lin:-.5..2").low == -0.5


def test_a_single_value_holds_for_all_trials() -> None:
    fixed, spaces = parse_spaces(["trainer.epochs=3", "seed=0..0", "metrics=[]"])
    assert fixed == ["trainer.epochs=3", "metrics=[]"]
    assert [space.values for space in spaces] == [("0",)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a=1,,2"], "empty value between two commas"),
        (["a=1,1"], "the value 1 is given twice"),
        (["a=1,2", "a=3,4"], "a is given twice"),
        (["a=1", "a=3,4"], "a is given twice"),
        (["name=a,b"], "name must be the same in all trials"),
        (["trainer.monitor=min loss,max accuracy"], "trainer.monitor must be the same in all trials"),
        (["0..4"], "invalid space '0..4'; expected KEY=SPACE"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spaces(words)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("4..0", "0..10000", "0.1..0.2", "0..x", "0..", "0..4..2", "0...4", "0 .. 4"),
        *("log:0..1", "log:-1..1", "log:1..", "log:1..0.1", "lin:1..1", "lin:1..1e999", "lgo:1..2"),
    ],
)
def test_a_malformed_range(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"space a={re.escape(text)}: expected integers as in 0\.\.4"):
        parse_space(f"a={text}")


@pytest.mark.parametrize("text", ["../data", "/data/../more", "..", "v1..v2", '"0..x"', "logcosh", "log/today"])
def test_a_text_that_is_not_a_range(text: str) -> None:
    assert parse_space(f"data_loader.args.data_dir={text}").values == (text,)


def test_the_grid() -> None:
    _, spaces = parse_spaces(["seed=0..1", "a=x,y,z"])
    assert grid_size(spaces) == 6
    assert [" ".join(f"{key}={value}" for key, value in each.items()) for each in combinations(spaces)][:4] == [
        "seed=0 a=x",
        "seed=0 a=y",
        "seed=0 a=z",
        "seed=1 a=x",
    ]
    with pytest.raises(UserError, match="set how many to try with --trials N"):
        grid_size(parse_spaces(["a=lin:0..1"])[1])
    with pytest.raises(UserError, match="12,000 points"):
        grid_size(parse_spaces(["a=0..3999", "b=1,2,3"])[1])


def check(config: Path, *words: str) -> list[bool]:
    """Which of the spaces take integers alone."""
    fixed, spaces = parse_spaces(words)
    return [space.integer for space in check_spaces(config, fixed, spaces)[1]]


def test_the_config_says_what_is_an_integer(write_config: Callable[..., Path]) -> None:
    found = check(write_config(), "model.args.hidden_features=log:2..64", "optimizer.args.lr=lin:0..1", "seed=1,2")
    assert found == [True, False, False]


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["seeds=0..4"], ['unknown key "seeds"; did you mean "seed"?']),
        (["optimizer.args.lr=lin:-1..1"], ["override optimizer.args.lr=-1", "Invalid learning rate"]),
        (["optimizer.args.lr=0.1,-1"], ["override optimizer.args.lr=-1"]),
        (["optimizer.args.lr=0.1,-1,oops"], ["override optimizer.args.lr=-1"]),
        (["trainer.epochs=lin:1..2.5"], ["trainer.epochs"]),
        (["model.type=TwoLayerNet,LeNet"], ["with model.type=LeNet", 'LeNet has no argument "in_features"']),
        (
            ["data_loader.args.validation_split=0,10", "trainer.monitor=min nothing"],
            ['no value is logged as "nothing"'],
        ),
    ],
)
def test_values_that_the_config_refuses(
    write_config: Callable[..., Path], words: list[str], messages: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        check(write_config(), *words)
    assert [message for message in messages if message not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("space", "monitor", "comparable"),
    [
        ("loss=MSELoss,L1Loss", "val_loss", False),
        ("loss=MSELoss,L1Loss", "val_one", False),
        ("loss=MSELoss,L1Loss", "val_accuracy", True),
        ("loss.one.args.label_smoothing=0,0.1", "loss", False),
        ("loss.one.args.label_smoothing=0,0.1", "one", False),
        ("loss.one.args.label_smoothing=0,0.1", "val_other", True),
        ("loss.one.weight=1,2", "val_loss", False),
        ("loss.one.weight=1,2", "val_one", True),
        ("optimizer.args.lr=1,2", "val_loss", True),
    ],
)
def test_values_of_different_losses_are_not_compared(
    write_config: Callable[..., Path], space: str, monitor: str, comparable: bool
) -> None:
    losses = {"one": "cross_entropy", "other": "MultiMarginLoss"}
    config = load_config(write_config(loss=losses), [f"trainer.monitor=min {monitor}"]).config
    refused = pytest.raises(UserError, match=f"cannot be compared by {monitor}; monitor a metric instead, e.g. ")
    with contextlib.nullcontext() if comparable else refused:
        check_monitor(config, parse_spaces([space])[1])
