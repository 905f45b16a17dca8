"""What the tests of a project share: one thread, no network, short validations."""

import itertools
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from base.data.batches import Batches, MicroBatch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Sums in one order, on any machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded: a config whose data is missing is skipped."""

    def resolve(*_: Any, **__: Any) -> None:
        raise OSError("the tests do not use the network")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.fixture(autouse=True)
def _short_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validate on two batches, however large the data set is."""
    one_pass = Batches.one_pass

    def two_batches(batches: Batches) -> Iterator[MicroBatch]:
        return itertools.islice(one_pass(batches), 2)

    monkeypatch.setattr(Batches, "one_pass", two_batches)
