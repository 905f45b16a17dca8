"""The device of these tests: the machine's accelerator. Without one they are skipped.

``ACCELERATOR_TESTS=cpu`` runs on the CPU what does not need an accelerator: it shows that the tests are sound.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import Fit
from train import Result


@pytest.fixture
def device() -> str:
    """The name of the device, as in "cuda"."""
    if chosen := os.environ.get("ACCELERATOR_TESTS"):
        return chosen
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        pytest.skip("needs an accelerator")
    return accelerator.type


@pytest.fixture
def only_accelerator(device: str) -> str:
    """The name of the device, for what a CPU does not have."""
    if device == "cpu":
        pytest.skip("the CPU has nothing of the kind")
    return device


@pytest.fixture
def host_waits(only_accelerator: str) -> Callable[[], AbstractContextManager[list[str]]]:
    """Collects, while its context lasts, where the host waited for the device, as in "trainer.py:12".

    CUDA warns of it; the device of dev/accelerator counts it, but does not know where.
    """
    module = torch.get_device_module(only_accelerator)
    if only_accelerator != "cuda" and not hasattr(module, "host_waits"):
        pytest.skip("the device does not report when the host waits for it")

    @contextmanager
    def collected() -> Iterator[list[str]]:
        found: list[str] = []
        if only_accelerator != "cuda":
            before = module.host_waits()
            yield found
            found.extend(["?"] * (module.host_waits() - before))
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits = (each for each in caught if "synchronizing CUDA operation" in str(each.message))
        found.extend(f"{Path(each.filename).name}:{each.lineno}" for each in waits)

    return collected


@pytest.fixture
def waits_in(
    host_waits: Callable[[], AbstractContextManager[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Any, str], list[list[str]]]:
    """Watches a method: for each call, where the host waited for the device."""

    def watch(owner: Any, name: str) -> list[list[str]]:
        method, waits = getattr(owner, name), []

        def watched(*args: Any) -> Any:
            with host_waits() as found:
                result = method(*args)
            waits.append(found)
            return result

        monkeypatch.setattr(owner, name, watched)
        return waits

    return watch


@pytest.fixture
def compiled_there(only_accelerator: str) -> None:
    """For what torch.compile runs: every device of torch's own has a code generator for it."""
    if not getattr(torch.get_device_module(only_accelerator), "can_compile", True):
        pytest.skip("torch.compile does not support the device")


@pytest.fixture
def fit_there(fit: Fit, device: str) -> Fit:
    """Trains LeNet with dropout on random images, on the device; overrides come last."""

    def run(*overrides: str, **keys: Any) -> Result:
        loader = {"num_samples": 96, "input_shape": [3, 32, 32], "num_classes": 10, "batch_size": 16}
        given: dict[str, Any] = {
            "data_loader": {"type": "RandomTensorLoader", "args": {**loader, "validation_split": 32}},
            "model": {"type": "LeNet", "args": {"dropout": 0.2}},
            "optimizer": {"type": "SGD", "args": {"lr": 0.02, "momentum": 0.9}},
        }
        return fit(f"runtime.device={device}", *overrides, **{**given, **keys})

    return run
