"""A data loader's own split that leaves out what the config says about it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from data_loader.random_tensor import RandomTensorLoader
from extras.check.data_checks import check_own_split


class EveryTenth(RandomTensorLoader):
    """Holds out every tenth sample, whatever the config says."""

    def split(self, count: int) -> tuple[Tensor, Tensor]:
        held_out = torch.arange(count) % 10 == 0
        return ~held_out, held_out


class Parts(EveryTenth):
    """Divides into as many parts as there are folds."""

    def split(self, count: int) -> tuple[Tensor, Tensor]:
        held_out = torch.arange(count) % (self.folds or 3) == 0
        return ~held_out, held_out


class Fewer(RandomTensorLoader):
    """Trains on every other sample of those that are not held out."""

    def split(self, count: int) -> tuple[Tensor, Tensor]:
        train, held_out = super().split(count)
        return train[::2], held_out


@pytest.mark.parametrize(
    ("kind", "args", "unused"),
    [
        (RandomTensorLoader, {"validation_split": 0.2}, ""),
        (EveryTenth, {}, ""),
        (EveryTenth, {"validation_split": 0.2}, "data_loader.args.validation_split=0.2 has no effect"),
        (EveryTenth, {"folds": 4, "fold": 1}, "data_loader.args.folds=4 has no effect"),
        (Parts, {"folds": 4, "fold": 1}, ""),
        (Fewer, {"validation_split": 0.2}, ""),
        (Parts, {"validation_split": 9}, "data_loader.args.validation_split=9 has no effect"),
    ],
)
def test_an_argument_that_the_split_does_not_use_is_named(
    kind: type[RandomTensorLoader], args: dict[str, Any], unused: str
) -> None:
    data = kind(num_samples=40, input_shape=[3], num_classes=2, batch_size=4, **args)
    notes = [note.text for note in check_own_split(data)]
    assert len(notes) == bool(unused)
    assert unused in "".join(notes)
