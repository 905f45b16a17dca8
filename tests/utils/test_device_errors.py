"""Errors of a device and of memory: one message with what to do, at any step and in any command."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from base.base_model import BaseModel
from tests.helpers import Fit, needs_extra, temporarily
from utils import cli
from utils.device_errors import device_failure
from utils.errors import TrainingError, UserError
from utils.registry import MODELS
from utils.runtime import Runtime

CUDA_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.56 GiB is free."
    " Including non-PyTorch memory, this process has 77.54 GiB memory in use. If reserved but unallocated memory is ..."
)
CUDA_ASSERT = (
    "CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert' in the documentation.\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)
HINTS = CUDA_ASSERT.partition("\n")[2]


class Failing(BaseModel):
    """Raises an error in its forward pass."""

    error: Exception | None = None
    after = 0

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.error and self.passes > self.after:
            raise self.error
        outputs: Tensor = self.fc(x)
        return outputs


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def fail(error: Exception, *, after: int = 0) -> None:
        monkeypatch.setattr(Failing, "error", error)
        monkeypatch.setattr(Failing, "after", after)

    with temporarily(MODELS, Failing):
        yield fail


@pytest.mark.parametrize(("after", "kind"), [(0, UserError), (9, TrainingError)])
def test_too_little_memory_in_a_step_names_the_keys_that_need_less(
    fit: Fit, failing: Callable[..., None], after: int, kind: type[Exception]
) -> None:
    failing(torch.OutOfMemoryError(CUDA_MEMORY), after=after)
    with pytest.raises(kind) as error:
        fit(model="Failing")
    first, line, advice, *_ = str(error.value).splitlines()
    assert first.endswith("of which 1.56 GiB is free.")
    assert "test_device_errors.py" in line
    for key in ("batch_size", "accumulate_steps", "precision=bf16", "eval_batch_size"):
        assert key in advice


def test_so_does_memory_of_the_cpu(fit: Fit, monkeypatch: pytest.MonkeyPatch, failing: Callable[..., None]) -> None:
    monkeypatch.setattr(Failing, "forward", lambda self, x: self.fc(x) + torch.empty(2**50))
    with pytest.raises(UserError, match=r"(?s)can't allocate memory.*data_loader\.args\.batch_size"):
        fit(model="Failing")


def test_an_index_that_is_out_of_range_on_a_gpu_is_explained(fit: Fit, failing: Callable[..., None]) -> None:
    failing(RuntimeError(CUDA_ASSERT))
    with pytest.raises(UserError) as error:
        fit(model="Failing")
    assert str(error.value).startswith("CUDA error: device-side assert triggered\n  ")
    assert "a class label" in str(error.value)
    assert "runtime.device=cpu names the line" in str(error.value)
    assert "asynchronously" not in str(error.value)


def test_outside_a_step_it_is_one_message_too(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where an optimizer allocates its state, or where the model is moved to the device."""

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError(CUDA_MEMORY)

    monkeypatch.setattr(Runtime, "step", full)
    assert cli.run(train.main, ["-c", str(write_config())]) == 1
    printed = capsys.readouterr().err
    assert "error: CUDA out of memory." in printed
    assert "Traceback" not in printed


@needs_extra("check")
@pytest.mark.parametrize("text", [CUDA_MEMORY, CUDA_ASSERT])
def test_a_check_explains_them(
    write_config: Callable[..., Path],
    failing: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    text: str,
) -> None:
    failing(RuntimeError(text))
    assert cli.run(train.main, ["--check", "-c", str(write_config(model="Failing"))]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "forward FAIL CUDA" in printed
    assert device_failure(RuntimeError(text)).splitlines()[-1][:60] in printed
    assert "shapes of data_loader" not in printed


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "batch_size"),
        ("MPS backend out of memory (MPS allocated: 18.13 GB, max allowed: 18.13 GB)", "batch_size"),
        ("CUDA error: an illegal memory access was encountered\nCUDA kernel errors", "out of range"),
    ],
)
def test_each_kind_has_its_advice(text: str, advice: str) -> None:
    first, *_, last = device_failure(RuntimeError(text)).splitlines()
    assert text.startswith(first)
    assert advice in last


def test_memory_of_python_and_numpy_counts_too() -> None:
    for error in (MemoryError(), MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,)")):
        assert device_failure(error).startswith("out of memory")


def test_other_errors_of_cuda_are_left_as_they_are() -> None:
    for text in (
        "CUDA error: unspecified launch failure",
        "Caught RuntimeError in pin memory thread.\nCUDA error: busy",
    ):
        assert device_failure(RuntimeError(f"{text}\n{HINTS}")) == ""


def test_other_errors_are_not_of_the_device() -> None:
    for text in ("mat1 and mat2 shapes cannot be multiplied", "I cannot pinpoint it", "Expected all tensors to be ..."):
        assert device_failure(RuntimeError(text)) == ""
    assert device_failure(ValueError("row 70 is out of memory bank bounds")) == ""
