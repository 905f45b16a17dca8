"""Memory: what a run holds depends neither on its epochs nor on how much it evaluates."""

import gc
import weakref
from typing import Any

import pytest
from torch import Tensor

from base.base_trainer import BaseTrainer
from base.data.sources import TensorSource
from base.metric import StepResult
from tests.helpers import Fit, needs_extra
from trainer.trainer import Trainer


def test_a_run_holds_no_more_after_many_epochs_than_after_few(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    end_epoch = BaseTrainer.end_epoch

    def counted(self: BaseTrainer, validation: dict[str, float]) -> None:
        end_epoch(self, validation)
        self.outputs.checkpointer.wait()
        gc.collect()
        held.append(len(gc.get_objects()))

    monkeypatch.setattr(BaseTrainer, "end_epoch", counted)
    fit("trainer.epochs=12", "trainer.keep_last=2", "trainer.monitor=min val_loss", "trainer.tensorboard=true")
    assert max(held[4:]) - min(held[4:]) < 8, held  # one object an epoch would show


@needs_extra("tensorboard")
def test_evaluation_lets_go_of_each_batchs_outputs(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[weakref.ref[Any]] = []
    alive: list[int] = []
    eval_step = Trainer.eval_step

    def watched(self: Trainer, batch: Any) -> StepResult:
        alive.append(sum(ref() is not None for ref in outputs))
        result = eval_step(self, batch)
        outputs.append(weakref.ref(result.outputs))
        return result

    monkeypatch.setattr(Trainer, "eval_step", watched)
    fit("trainer.epochs=1", "data_loader.args.eval_batch_size=1", "trainer.tensorboard=true")
    assert len(alive) == 10 + 1  # one for the graph of the model
    assert not any(alive)


@pytest.mark.parametrize("accumulate_steps", [1, 4])
def test_accumulation_lets_go_of_each_micro_batchs_outputs(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, accumulate_steps: int
) -> None:
    seen: list[weakref.ref[Any]] = []
    alive: list[int] = []
    train_step = Trainer.train_step

    def watched(self: Trainer, batch: Any) -> StepResult:
        alive.append(sum(ref() is not None for ref in seen))
        result = train_step(self, batch)
        seen.extend(weakref.ref(tensor) for tensor in (result.outputs, result.loss))
        return result

    monkeypatch.setattr(Trainer, "train_step", watched)
    fit("trainer.epochs=2", f"trainer.accumulate_steps={accumulate_steps}")
    assert len(alive) == 2 * 5
    assert max(alive) == 0, "outputs or a graph of an earlier micro-batch were still in memory"


def test_accumulation_loads_its_micro_batches_one_by_one(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[Any]] = []
    alive: list[int] = []
    batch = TensorSource.batch

    def watched(self: TensorSource, *arguments: Any) -> tuple[Tensor, Tensor]:
        alive.append(sum(ref() is not None for ref in loaded))
        inputs, targets = batch(self, *arguments)
        loaded.append(weakref.ref(inputs))
        return inputs, targets

    monkeypatch.setattr(TensorSource, "batch", watched)
    fit("trainer.epochs=1", "trainer.accumulate_steps=5")
    assert max(alive) <= 1, "the inputs of all micro-batches of a step were in memory at once"
