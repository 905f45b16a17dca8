"""dev/accelerator: it is compiled once, says what is missing, and differs from the CPU as a GPU does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dev import accelerator
from tests.helpers import ROOT

NEEDS_COMPILER = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")

DIFFERENCES = """
import torch

device = torch.accelerator.current_accelerator()
assert device.type == "emulated"
assert not torch.ones(3, device=device).is_cpu

# two devices
for mixed in (
    lambda: torch.ones(3, device=device) + torch.ones(3),
    lambda: torch.nn.Conv2d(1, 1, 1)(torch.ones(1, 1, 2, 2, device=device)),
):
    try:
        mixed()
    except RuntimeError as error:
        assert "same" in str(error), error
    else:
        raise AssertionError("it takes tensors of two devices")
assert float(torch.ones(3, device=device).sum() + torch.tensor(1.0)) == 4.0

# two generators
states = torch.get_rng_state(), torch.emulated.get_rng_state()
first = torch.nn.functional.dropout(torch.ones(100, device=device))
assert torch.equal(torch.get_rng_state(), states[0])
assert not torch.equal(torch.emulated.get_rng_state(), states[1])
torch.emulated.set_rng_state(states[1])
assert torch.equal(torch.nn.functional.dropout(torch.ones(100, device=device)), first)

# waits
def waits(function):
    before = torch.emulated.host_waits()
    function()
    return torch.emulated.host_waits() - before

values, pinned = torch.ones(3, device=device), torch.ones(3).pin_memory()
assert waits(lambda: torch.nn.functional.relu(values) * 2) == 0
assert waits(lambda: pinned.to(device, non_blocking=True)) == 0
for waiting in (
    lambda: values.sum().item(),
    lambda: values.cpu(),
    lambda: pinned.to(device),
    lambda: values.nonzero(),
    lambda: values[values > 0],
):
    assert waits(waiting) >= 1
"""


def test_it_is_compiled_again_only_for_another_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Path] = []
    monkeypatch.setattr(accelerator, "compile_backend", compiled.append)
    first = accelerator.build(tmp_path)
    assert accelerator.build(tmp_path) == first
    assert len(compiled) == 1
    monkeypatch.setattr("importlib.metadata.version", lambda _: "99.0")
    assert accelerator.build(tmp_path) != first
    assert len(compiled) == 2
    assert (first / "emulated_accelerator.py").exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_without_a_compiler_it_says_so_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(accelerator.BuildError) as error:
        accelerator.build(tmp_path)
    assert str(error.value) == "no C++ compiler: no-such-compiler not found; install g++, or set CXX"
    assert list(tmp_path.iterdir()) == []


def run_there(code: str) -> None:
    """Run Python code with the device."""
    command = [sys.executable, "-m", "dev.accelerator", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if "does not compile emulated.cpp for this torch" in done.stdout:
        pytest.skip("written for other C++ interfaces of torch")
    assert done.returncode == 0, done.stdout


@NEEDS_COMPILER
@pytest.mark.slow
def test_it_differs_from_the_cpu_as_a_gpu_does() -> None:
    run_there(DIFFERENCES)


@NEEDS_COMPILER
@pytest.mark.slow
def test_a_run_on_the_cpu_leaves_the_device_to_others(tmp_path: Path) -> None:
    run_there(f"""
import torch
import train

once = ["trainer.epochs=1", "trainer.steps_per_epoch=2", "data_loader.args.num_workers=1"]
small = [*once, "trainer.save_dir={tmp_path}"]
run = train.main(["runtime.device=cpu", *small]).run_dir
train.main(["-r", run, "trainer.epochs=2"])
assert not torch.emulated.is_initialized()
train.main(["runtime.device=emulated", *small])
assert torch.emulated.is_initialized()
""")
