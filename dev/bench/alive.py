"""Which tensors are alive in a step, by what they are for: ``python dev/bench/alive.py``.

Counted are those that Python can reach when an optimizer is about to step, or when an evaluation step ends, each piece
of memory once. What autograd keeps for the backward pass is gone by then. A net of 20.5 MB, batches of 64.
"""

import gc
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train
from base.metric import StepResult
from tests.two_steps import TwoStepTrainer
from trainer.trainer import Trainer
from utils.registry import TRAINERS
from utils.runtime import Runtime

CONFIG = (
    *("-c", "config.json", "trainer.epochs=1", "trainer.steps_per_epoch=6", "runtime.device=cpu"),
    *("trainer.tensorboard=false", "trainer.verbosity=0", "data_loader.args.num_samples=512"),
    *("data_loader.args.input_shape=[1000]", "data_loader.args.target_shape=[10]", "data_loader.args.shuffle=true"),
    *('optimizer={"type":"SGD","args":{"lr":1e-9,"momentum":0.9}}',),
)
NET = ("model.args.hidden_features=5000",)
CASES = {
    "plain": NET,
    "4 micro-batches": (*NET, "trainer.accumulate_steps=4", "data_loader.args.batch_size=16"),
    "EMA": (*NET, 'trainer.ema={"decay":0.9}'),
    "evaluation": (*NET, "data_loader.args.validation_split=64"),
    "two optimizers": (
        *(*NET, "trainer.type=TwoStepTrainer"),
        'optimizer={"features":{"type":"SGD","args":{"lr":1e-9,"momentum":0.9},"params":["fc1.*"]},'
        '"head":{"type":"SGD","args":{"lr":1e-9,"momentum":0.9},"params":["fc2.*"]}}',
    ),
}


def memory(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by address."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


class Watch:
    """What was alive when it was most. The trainer is found in memory, where it is the only one."""

    def __init__(self) -> None:
        self.most: Counter[str] = Counter()

    def look(self) -> None:
        alive = [item for item in gc.get_objects() if isinstance(item, Tensor)]
        trainer = next(item for item in gc.get_objects() if isinstance(item, Trainer) and hasattr(item, "training"))
        weights = [*trainer.experiment.model.parameters(), *trainer.experiment.model.buffers()]
        average = trainer.averaged_weights
        optimizers = [each.optimizer for each in trainer.training.optimizers.values()]
        sources: list[Any] = [
            batches.source for batches in (trainer.training.batches, *trainer.training.validation.values())
        ]
        kinds = {
            "weights": weights,
            "gradients": [weight.grad for weight in weights if weight.grad is not None],
            "optimizer": tensors_in([list(optimizer.state.values()) for optimizer in optimizers]),
            "average": tensors_in(average.state_dict()) if average else [],
            "data sets": [tensor for source in sources for tensor in (source.inputs, source.targets)],
        }
        left = memory(alive + kinds["gradients"])
        found = Counter[str]()
        for kind, tensors in kinds.items():
            found[kind] = sum(left.pop(address, 0) for address in memory(tensors))
        found["rest"] = sum(left.values())
        if sum(found.values()) >= sum(self.most.values()):
            self.most = found


def measure(name: str, overrides: tuple[str, ...]) -> Counter[str]:
    watch, step, evaluate = Watch(), Runtime.step, Trainer.eval_step

    def watched_step(self: Runtime, optimizer: torch.optim.Optimizer, *, wait: bool = True, last: bool = True) -> bool:
        if name != "evaluation":
            watch.look()
        return step(self, optimizer, wait=wait, last=last)

    def watched_evaluation(self: Trainer, batch: Any) -> StepResult:
        result = evaluate(self, batch)
        if name == "evaluation":
            watch.look()
        return result

    Runtime.step, Trainer.eval_step = watched_step, watched_evaluation  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            train.main([*CONFIG, *overrides, f"trainer.save_dir={folder}"])
    finally:
        Runtime.step, Trainer.eval_step = step, evaluate  # type: ignore[method-assign]
        gc.collect()
    return watch.most


if __name__ == "__main__":
    gc.freeze = lambda: None  # what is frozen cannot be looked through
    warnings.simplefilter("ignore")  # some of torch's objects warn when they are looked at
    TRAINERS.register(TwoStepTrainer)
    kinds = ("weights", "gradients", "optimizer", "average", "data sets", "rest")
    print(f"| MB alive | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
    for name, overrides in CASES.items():
        found = measure(name, overrides)
        print(f"| {name} | {' | '.join(f'{found[kind] / 1e6:.2f}' for kind in kinds)} |", flush=True)
