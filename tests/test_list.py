"""``train.py --list``: everything that a config may name is in it, with what it takes."""

import pytest

import train
from inspection import docstrings
from inspection.catalogue import listing
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
    assert "validation_split: float >= 0 < 1 or int >= 0 = 0.1" in text
    assert "part of the training data that is held out" in text
    assert '"data_loader": {"type": "CIFAR10Loader", "args": {"batch_size": ...}}' in text
    assert "total_steps: int or null, taken from the length of the run" in listing("OneCycleLR")
    assert '"metrics": [{"type": "F1Score", "args": {"task": ...}}]' in listing("F1Score")


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(UserError, match='there is no component "Lenett"; did you mean "LeNet"'):
        listing("Lenett")
    with pytest.raises(UserError, match="--list shows all"):
        listing("qqqqqqq")


def test_it_prints_and_exits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(["--list", "LeNet"])
    assert ended.value.code == 0
    assert "kernel_size: 3 or 5 = 5" in capsys.readouterr().out


@pytest.mark.parametrize("further", [["seed=1"], ["-c", "config.json"], ["--check"], ["-r"], ["--bs", "3"]])
def test_nothing_that_it_would_ignore_goes_with_it(further: list[str]) -> None:
    with pytest.raises(UserError, match="--list goes alone"):
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
