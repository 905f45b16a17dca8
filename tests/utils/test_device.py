"""The device of a run."""

from types import SimpleNamespace

import pytest
import torch

from utils.device import pins_memory, used_accelerator
from utils.random import generator_states


@pytest.mark.parametrize(
    ("accelerator", "used", "pins"),
    [(None, False, False), ("cuda", True, True), ("cuda", False, False), ("mps", None, False)],
)
def test_batches_are_pinned_for_accelerators_that_can(
    monkeypatch: pytest.MonkeyPatch, accelerator: str | None, used: bool | None, pins: bool
) -> None:
    device = torch.device(accelerator) if accelerator else None
    module = SimpleNamespace() if used is None else SimpleNamespace(is_initialized=lambda: used)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: device)
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    assert pins_memory() is pins
    assert used_accelerator() == (device if used in (True, None) else None)


@pytest.mark.usefixtures("without_accelerator")
def test_the_state_of_an_unused_accelerator_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(is_initialized=lambda: False))
    assert "accelerator" not in generator_states()
