"""``train.py --list``: everything that a config may name is in it, with what it takes."""

import re
from pathlib import Path

import pytest

import train
from extras.schema import docstrings, listing
from tests.configs import SOUND, message
from utils.errors import UserError
from utils.registry import DATA_LOADERS, OPTIMIZERS, REGISTRIES


def test_every_component_is_listed_with_its_arguments() -> None:
    text = listing()
    for registry in REGISTRIES.values():
        for name in registry.names():
            assert f"  {name}(" in text
    assert "LeNet(in_channels=3, kernel_size=5, num_classes=10, dropout=0.0)" in text
    assert "Classifies 32x32 images" in text
    assert "SGD(lr=0.001, momentum=0, " in text
    assert "Implements stochastic gradient descent" in text


def test_the_whole_of_one() -> None:
    text = listing("CIFAR10Loader")
    assert "data_loader/cifar10.py:" in text
    assert "validation_split: float >= 0 < 1 or int >= 0 or null = null" in text
    assert "held-out part of the training data" in text
    assert '"data_loader": {"type": "CIFAR10Loader", "args": {"batch_size": ...}}' in text
    assert "total_steps: int > 0 or null, taken from the length of the run" in listing("OneCycleLR")
    assert '"metrics": [{"type": "F1Score", "args": {"task": ...}}]' in listing("F1Score")


def test_schedulers_made_of_others_are_listed_with_them() -> None:
    assert "schedulers: list of LRScheduler, must be given" in listing("SequentialLR")


def test_a_paragraph_is_wrapped_as_a_whole() -> None:
    """Not each of its lines, which leaves a few words alone where the terminal is narrower than the docstring."""
    assert docstrings.unwrapped(f"{'a ' * 50}\nb\nc\n\n{'d ' * 50}\n    e") == [
        f"{'a ' * 50} b", "c", "", "d " * 50, "    e"
    ]  # fmt: skip
    items = ["- " + "a " * 50, "- b"]
    assert docstrings.unwrapped("\n".join(items)) == items
    paragraph = listing("ImageFolderLoader", width=100).split("\n\n")[2]
    assert [len(line) > 80 for line in paragraph.splitlines()] == [True, True, False]


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(UserError, match='unknown component "Lenett"; did you mean "LeNet"'):
        listing("Lenett")
    with pytest.raises(UserError, match="--list shows all"):
        listing("qqqqqqq")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "MulticlassAccuracy",
            '{"type": "Accuracy", "args": {"task": "multiclass", "num_classes": ...}}',
        ),
        (
            "MultilabelF1Score",
            '{"type": "F1Score", "args": {"task": "multilabel", "num_labels": ...}}',
        ),
        ("BinaryRecall", '{"type": "Recall", "args": {"task": "binary"}}'),
    ],
)
def test_a_metric_of_one_task_is_recognized_by_its_argument(tmp_path: Path, name: str, text: str) -> None:
    config = tmp_path / "config.json"
    config.write_text(SOUND.replace('"accuracy"', f'"{name}"'))
    assert f'unknown metric "{name}"; use {text}' in message(config)
    config.write_text(SOUND.replace('"accuracy"', text.replace("...", "3")))
    assert message(config) == ""


def test_an_argument_is_described_in_one_place() -> None:
    text = listing("ImageFolderLoader")
    assert text.count("height and width of the images in pixels") == text.count("data_dir/val if it exists") == 1
    assert "The array is rebuilt when a file is added" in text
    assert listing("SGD").startswith('SGD, an optimizer for "optimizer"')


def test_it_prints_and_returns(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--list", "LeNet"]) is None
    assert "kernel_size: 3 or 5 = 5" in capsys.readouterr().out


@pytest.mark.parametrize("further", [["seed=1"], ["-c", "config.json"], ["--check"], ["-r"], ["--bs", "3"]])
def test_nothing_that_it_would_ignore_goes_with_it(further: list[str]) -> None:
    with pytest.raises(UserError, match="--list cannot be combined with other options"):
        train.main(["--list", "LeNet", *further])


def test_what_docstrings_say_of_arguments() -> None:
    loader, sgd = DATA_LOADERS.get("CIFAR10Loader"), OPTIMIZERS.get("SGD")
    assert loader is not None
    assert sgd is not None
    said = docstrings.arguments(loader, DATA_LOADERS.parameters("CIFAR10Loader"))
    assert said.keys() == DATA_LOADERS.parameters("CIFAR10Loader").keys()
    assert said["std"] == said["mean"]
    said = docstrings.arguments(sgd, OPTIMIZERS.parameters("SGD"))
    assert said["momentum"].startswith("momentum factor")


@pytest.mark.parametrize("width", [30, 60, 110, 200])
@pytest.mark.parametrize("name", ["models", "CIFAR10Loader", "OneCycleLR"])
def test_no_line_is_wider_than_the_terminal(width: int, name: str) -> None:
    lines = listing(name, width=width).splitlines()
    unbroken = max(len(word) for line in lines for word in line.split()) + 10  # a signature's longest word
    assert max(map(len, lines)) <= max(width, unbroken)
    arguments = [line for line in lines if line.lstrip().startswith("LeNet(")]
    if name == "models" and width == 30:
        following = lines[lines.index(arguments[0]) + 1]
        assert len(following) - len(following.lstrip()) > len(arguments[0]) - len(arguments[0].lstrip())


@pytest.mark.parametrize("name", ["models", "model", "Models", "data loaders", "losses", "metrics", "schedulers"])
def test_the_components_of_a_kind(name: str) -> None:
    text = listing(name)
    kinds = re.findall(r'^[a-z ]+, for "(\w+)"$', text, re.MULTILINE)
    assert len(kinds) == 1
    assert kinds[0] in ("model", "data_loader", "loss", "metrics", "lr_scheduler")
    with pytest.raises(UserError, match='did you mean "models"'):
        listing("modells")
