"""Training on an accelerator: in each precision, compiled, resumed, with data from worker processes.

Device-neutral: everything goes through torch.accelerator. ``ACCELERATOR_TESTS=cpu`` tries the tests themselves.
"""

import functools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import train
from base.base_model import BaseModel
from base.base_trainer import BaseTrainer
from base.data.batches import StepBatches
from base.metric import StepResult
from base.training.metrics import Mean
from base.training.training_log import TrainingLog
from tests.helpers import ROOT, Fit, lines, same, state, temporarily
from trainer.trainer import Trainer
from utils.registry import MODELS, TRAINERS

WaitsIn = Callable[[Any, str], list[list[str]]]
"""The fixture of this name."""


def falls(result: train.Result) -> bool:
    """Whether the training loss ended below where it began."""
    losses = [record["loss"] for record in lines(result.run_dir)]
    return all(map(math.isfinite, losses)) and losses[-1] < losses[0]


def test_it_trains_there(fit_there: Fit, device: str) -> None:
    result = fit_there("trainer.epochs=4")
    assert falls(result)
    assert {parameter.device.type for parameter in result.model.parameters()} == {device}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_trains_in_half_precision(fit_there: Fit, precision: str) -> None:
    result = fit_there("trainer.epochs=4", f"runtime.precision={precision}")
    assert falls(result)
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float32}
    scale = state(result.run_dir)["runtime"]
    assert bool(scale) == (precision == "fp16")


def test_the_loss_scale_of_fp16_halves_where_gradients_overflow(
    fit_there: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = BaseTrainer.optimizer_step
    scales: list[float] = []

    def overflowing(self: BaseTrainer, batches: StepBatches) -> Any:
        if len(scales) == 1:
            self.runtime.scaler.update(2.0**126)  # too large for fp16
        loss = step(self, batches)
        scales.append(self.runtime.scaler.get_scale())
        return loss

    monkeypatch.setattr(BaseTrainer, "optimizer_step", overflowing)
    result = fit_there("trainer.epochs=1", "runtime.precision=fp16")
    assert scales[1] == 2.0**125
    assert all(bool(parameter.isfinite().all()) for parameter in result.model.parameters())


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_there")
@pytest.mark.parametrize("mode", ["true", "reduce-overhead"])
def test_it_trains_compiled(fit_there: Fit, mode: str) -> None:
    plain = fit_there("trainer.epochs=2", model="LeNet")
    compiled = fit_there("trainer.epochs=2", f"runtime.compile={mode}", model="LeNet")
    for one, other in zip(lines(plain.run_dir), lines(compiled.run_dir), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resume_is_exact(fit_there: Fit, precision: str) -> None:
    assert_resume_is_exact(fit_there, f"runtime.precision={precision}")


class Attention(BaseModel):
    """As in language models: queries, keys and values of 4 heads of 16 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x).unflatten(2, (3, 4, 16)).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        mixed = F.scaled_dot_product_attention(queries, keys, values, dropout_p=0.1, is_causal=True)
        outputs: Tensor = self.out(mixed.transpose(1, 2).flatten(2).mean(1))
        return outputs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resume_with_attention_is_exact(fit_there: Fit, precision: str) -> None:
    loader = {"num_samples": 96, "input_shape": [256, 64], "num_classes": 10, "batch_size": 16, "validation_split": 32}
    with temporarily(MODELS, Attention):
        assert_resume_is_exact(
            functools.partial(fit_there, data_loader={"type": "RandomTensorLoader", "args": loader}, model="Attention"),
            f"runtime.precision={precision}",
            "runtime.deterministic=true",
        )


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_there")
@pytest.mark.parametrize("mode", ["true", "reduce-overhead"])
def test_a_resume_is_exact_when_compiled(fit_there: Fit, mode: str) -> None:
    assert_resume_is_exact(fit_there, f"runtime.compile={mode}")


def assert_resume_is_exact(fit_there: Fit, *overrides: str) -> None:
    saving = ("trainer.save_every_steps=3", "trainer.keep_last=null")
    whole = fit_there("trainer.epochs=3", *saving, *overrides)
    half = whole.run_dir.with_name("20000101-000000")
    shutil.copytree(whole.run_dir, half)
    for path in (half / "checkpoints").iterdir():
        if path.name in ("last.pth", "best.pth") or int(path.stem.removeprefix("step-")) > 6:
            path.unlink()
    train.main(["-r", str(half)])
    one, other = state(whole.run_dir), state(half)
    for name in one.keys() - {"writers", "config"}:
        assert same(one[name], other[name]), name
    assert lines(whole.run_dir) == lines(half)


def test_a_device_with_a_number_is_torchs_current_one(fit_there: Fit, only_accelerator: str) -> None:
    """A checkpoint has the random generator of the current one, from which dropout must draw."""
    before, last = torch.accelerator.current_device_index(), torch.accelerator.device_count() - 1
    try:
        result = fit_there("trainer.epochs=2", f"runtime.device={only_accelerator}:{last}")
        assert torch.accelerator.current_device_index() == last
    finally:
        torch.accelerator.set_device_index(before)
    assert {parameter.device.index for parameter in result.model.parameters()} == {last}


@pytest.mark.usefixtures("only_accelerator")
def test_matrix_products_pass_for_deterministic(fit_there: Fit) -> None:
    """In torch's eyes, and without its variable, which slows each of them."""
    losses = lines(fit_there("trainer.epochs=1", "runtime.deterministic=true").run_dir)
    assert losses == lines(fit_there("trainer.epochs=1", "runtime.deterministic=true").run_dir)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_batches_of_workers_come_from_pinned_memory(
    fit_there: Fit, only_accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only from there does a copy to the device overlap with other work of the host."""
    step = BaseTrainer.optimizer_step
    pinned: list[bool] = []

    def watched(self: BaseTrainer, batches: StepBatches) -> Any:
        kept = list(batches.micro_batches)
        pinned.extend(tensor.is_pinned() for micro_batch in kept for tensor in micro_batch.data)
        batches.micro_batches = iter(kept)
        return step(self, batches)

    monkeypatch.setattr(BaseTrainer, "optimizer_step", watched)
    fit_there("trainer.epochs=1", "data_loader.args.num_workers=1")
    assert pinned
    assert all(pinned)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["trainer.accumulate_steps=2", "trainer.clip_grad_norm=1"],
        ["data_loader.args.num_workers=1"],
        ["data_loader.args.device_cache=false"],
        ["runtime.precision=bf16"],
    ],
    ids=lambda overrides: " ".join(overrides) or "plain",
)
def test_no_step_waits_for_the_device(fit_there: Fit, waits_in: WaitsIn, overrides: list[str]) -> None:
    """Except the first ones, which check the batch and prepare numbers that are kept."""
    waits = waits_in(BaseTrainer, "optimizer_step")
    fit_there("trainer.epochs=4", *overrides, metrics=["accuracy"])
    assert len(waits) >= 8
    assert not any(waits[3:]), waits


def test_the_values_of_a_log_interval_are_read_together(fit_there: Fit, waits_in: WaitsIn) -> None:
    """The losses, what each is averaged over, and the accuracies; not once per step."""
    waits = waits_in(Mean, "interval")
    fit_there("trainer.epochs=1", "trainer.log_every_steps=4", metrics=["accuracy"])
    assert [len(each) for each in waits if each][:2] == [2, 1]


def test_the_time_of_an_epoch_ends_when_the_device_has_finished(
    fit_there: Fit, waits_in: WaitsIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise what the host has only launched would count as validation."""
    end_training, waits = TrainingLog.end_training, waits_in(TrainingLog, "wait")

    def ended(self: TrainingLog) -> None:
        assert len(waits.pop()) == 1
        end_training(self)

    monkeypatch.setattr(TrainingLog, "end_training", ended)
    fit_there("trainer.epochs=2")
    assert not waits


SIZES = {"num_samples": 96, "batch_size": 16, "validation_split": 32, "eval_batch_size": 4}
IMAGES = {"type": "RandomTensorLoader", "args": {**SIZES, "input_shape": [3, 32, 32], "num_classes": 10}}
NUMBERS = {"type": "RandomTensorLoader", "args": {**SIZES, "input_shape": [6], "target_shape": [1]}}
REGRESSION = {"type": "LinearRegression", "args": {"in_features": 6}}
TASKS: dict[str, Any] = {
    "classification": {"data_loader": IMAGES},
    "regression": {"data_loader": NUMBERS, "model": REGRESSION, "loss": "mse_loss", "metrics": []},
}
EVALUATED = ("trainer.tensorboard=true", "trainer.pictures_every=1", "trainer.epochs=1")


def test_statistics_of_an_evaluation_are_those_of_each_batch(fit_there: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if all batches have the same memory, as those of a CUDA graph."""
    report = pytest.importorskip("extras.report")
    found: list[Any] = []
    end = report.EvaluationStats.end_evaluation

    def ended(self: Any) -> None:
        end(self)
        found.append(self)

    monkeypatch.setattr(report.EvaluationStats, "end_evaluation", ended)
    memory: list[Tensor] = []

    class Reuses(Trainer):
        def eval_step(self, batch: Any) -> StepResult:
            result = super().eval_step(batch)
            if len(result.targets) != 4:  # two samples, to show the layers
                return result
            if not memory:
                memory.extend([result.outputs.clone(), result.targets.clone()])
            return StepResult(result.loss, memory[0].copy_(result.outputs), memory[1].copy_(result.targets))

    with temporarily(TRAINERS, Reuses):
        for trainer in ("Trainer", "Reuses"):
            for keys in TASKS.values():
                memory.clear()
                fit_there(*EVALUATED, f"trainer.type={trainer}", **keys)
    assert len(found) == 4
    assert (found[0].classification.confusion == found[2].classification.confusion).all()
    assert (found[1].regression.pairs == found[3].regression.pairs).all()


def test_memory_does_not_grow_with_the_epochs(
    fit_there: Fit, only_accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does what is logged keep outputs or graphs."""
    end_epoch = BaseTrainer.end_epoch
    held: list[int] = []

    def counted(self: BaseTrainer, validation: dict[str, float]) -> None:
        end_epoch(self, validation)
        self.outputs.checkpointer.wait()
        held.append(torch.accelerator.memory_allocated())

    monkeypatch.setattr(BaseTrainer, "end_epoch", counted)
    torch.accelerator.reset_peak_memory_stats()
    fit_there("trainer.epochs=5")
    assert len(set(held[1:])) == 1, held
    assert torch.accelerator.max_memory_allocated() < 2**28


def test_convolutions_run_with_the_channels_last(fit_there: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    conv2d = torch.nn.functional.conv2d

    def watched(inputs: torch.Tensor, *arguments: Any) -> torch.Tensor:
        outputs = conv2d(inputs, *arguments)
        seen.append(outputs.is_contiguous(memory_format=torch.channels_last))
        return outputs

    monkeypatch.setattr(torch.nn.functional, "conv2d", watched)
    fit_there("trainer.epochs=1", "trainer.tensorboard=false")
    assert seen
    assert all(seen)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_train(tmp_path: Path, write_config: Any, device: str, strategy: str) -> None:
    """Two, or one if there is only one device."""
    count = 2 if device == "cpu" else min(2, torch.accelerator.device_count())
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    overrides = [f"runtime.device={device}", f"runtime.strategy={strategy}", "trainer.epochs=2"]
    command = [sys.executable, *launcher, "train.py", "-c", str(write_config()), *overrides]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    (run,) = (tmp_path / "saved").glob("*/*")
    assert len(lines(run)) == 2
