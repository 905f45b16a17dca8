"""Twenty steps of training give the losses that they gave when this was written: a refactoring changes no bit."""

import json
import os
import platform
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from base.base_trainer import BaseTrainer
from tests.helpers import ROOT

GOLDEN = ROOT / "tests" / "golden" / "losses.json"


def processor() -> str:
    """The processor's name and a digest of its abilities; the order of additions in torch's kernels depends on them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    return f"{found.get('model name')} {blake2b(found.get('flags', '').encode(), digest_size=4).hexdigest()}"


HERE = {
    "torch": torch.__version__.split("+")[0],
    "instructions": torch.backends.cpu.get_cpu_capability(),
    "processor": processor(),
    "system": platform.system(),
}
LENET: dict[str, Any] = {
    "model": {"type": "LeNet", "args": {"in_channels": 3, "kernel_size": 5, "dropout": 0.2}},
    "optimizer": {"type": "SGD", "args": {"lr": 0.05, "momentum": 0.9}},
    "lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.1}, "interval": "step"},
}


def losses(fit: Callable[..., train.Result], monkeypatch: pytest.MonkeyPatch, data: Path) -> list[float]:
    """The losses of 20 steps on small CIFAR10 with crop, flip, dropout, accumulation and clipping."""
    seen: list[float] = []
    original = BaseTrainer.optimizer_step

    def recorded(self: BaseTrainer, group: Any) -> Any:
        loss = original(self, group)
        seen.append(float(loss))
        return loss

    monkeypatch.setattr(BaseTrainer, "optimizer_step", recorded)
    loader = {"data_dir": str(data), "batch_size": 4, "crop": 4, "flip": True, "validation_split": 20}
    fit(
        "trainer.epochs=2",
        "trainer.accumulate_steps=2",
        "trainer.clip_grad_norm=1",
        data_loader={"type": "CIFAR10Loader", "args": loader},
        **LENET,
    )
    return seen


def test_losses_are_as_they_were(
    fit: Callable[..., train.Result], monkeypatch: pytest.MonkeyPatch, own_cifar10: Path
) -> None:
    """Exact where torch and the machine are those of the file; elsewhere to a relative 1e-3.

    To accept new losses: WRITE_GOLDEN=1 make test ARGS=tests/base/test_golden.py
    """
    seen = losses(fit, monkeypatch, own_cifar10)
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({"made_with": HERE, "losses": seen}, indent=2) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert len(seen) == 20
    if golden["made_with"] == HERE:
        assert seen == golden["losses"]
    assert seen == pytest.approx(golden["losses"], rel=1e-3)
