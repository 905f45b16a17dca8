"""The device of a run."""

import pytest
import torch

from utils.device import pins_memory


@pytest.mark.parametrize(("accelerator", "pins"), [(None, False), ("cuda", True), ("mps", False)])
def test_batches_are_pinned_for_accelerators_that_can(
    monkeypatch: pytest.MonkeyPatch, accelerator: str | None, pins: bool
) -> None:
    device = torch.device(accelerator) if accelerator else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: device)
    assert pins_memory() is pins
