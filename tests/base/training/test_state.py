"""A part of a user's own whose state is another in each process is named, since a checkpoint keeps only one."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from base.training.state import parts_that_differ


class TwoProcesses:
    """The process group of the first of two, of which the other has these digests' states."""

    world_size = 2

    def __init__(self, other: dict[str, Any]) -> None:
        self.other = other

        self.gathered = list[dict[str, str]]()

    def all_gather(self, own: dict[str, str]) -> list[dict[str, str]]:
        def gather(digests: dict[str, str]) -> list[dict[str, str]]:
            self.gathered.append(digests)
            return [digests]

        parts_that_differ(trainer(SimpleNamespace(world_size=2, all_gather=gather), self.other))
        return [own, *self.gathered]


def trainer(process_group: Any, parts: dict[str, Any]) -> Any:
    return SimpleNamespace(runtime=SimpleNamespace(process_group=process_group), stateful=lambda: parts)


@pytest.mark.parametrize(("value", "differing"), [(1.0, []), (1.5, ["scale"])])
def test_a_part_that_differs_between_processes_is_named(value: float, differing: list[str]) -> None:
    def parts(number: float) -> dict[str, Any]:
        scale = nn.BatchNorm1d(2)
        scale.running_mean = torch.full((2,), number)
        return {"model": nn.Linear(2, 2), "scale": scale, "optimizer.generator": nn.Linear(1, 1)}

    group = TwoProcesses(parts(value))
    assert parts_that_differ(trainer(group, parts(1.0))) == differing


def test_one_process_has_nothing_to_compare() -> None:
    assert parts_that_differ(trainer(SimpleNamespace(world_size=1), {})) == []
