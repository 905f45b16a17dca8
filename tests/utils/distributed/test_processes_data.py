"""Two processes do what one does, and resume exactly: with weighted, sorted and streamed data, several optimizers, a
loss with parameters, frozen parameters and averaged weights."""

from pathlib import Path
from typing import Any

import pytest

from tests.base.training.test_optimizers import GAN, ONE_LOSS
from tests.helpers import Json, lines, same, state
from tests.utils.distributed.test_processes import SUMS, Jobs, differences

pytestmark = pytest.mark.slow

TRAINER: Json = {**SUMS["trainer"], "epochs": 2, "keep_last": None, "save_every_steps": 4}
NET: Json = {
    **SUMS,
    "model": {"type": "TwoLayerNet", "args": {"in_features": 6, "hidden_features": 6, "out_features": 3}},
    "loss": "cross_entropy",
}
SIZES: Json = {"num_samples": 50, "input_shape": [6], "num_classes": 3, "batch_size": 7, "validation_split": 10}
STREAMED: Json = {**TRAINER, "steps_per_epoch": 5}
CONFIGS: dict[str, Json] = {
    "balanced": {
        "data_loader": {"type": "RandomTensorLoader", "args": {**SIZES, "balanced": True}},
        "trainer": TRAINER,
    },
    "sorted": {"data_loader": {"type": "UnevenLengths", "args": SIZES}, "trainer": TRAINER},
    "stream": {"data_loader": {"type": "Stream", "args": {"batch_size": 7, "num_workers": 1}}, "trainer": STREAMED},
    "gan": {
        "data_loader": {"type": "RandomTensorLoader", "args": SIZES},
        **GAN,
        "model": "PlainPair",
        "lr_scheduler": None,
        "trainer": {**TRAINER, "type": "Steady", "accumulate_steps": 2},
    },
    "together": {
        "data_loader": {"type": "RandomTensorLoader", "args": SIZES},
        **ONE_LOSS,
        "trainer": {**TRAINER, "accumulate_steps": 2},
    },
    "learnt": {
        "data_loader": {"type": "RandomTensorLoader", "args": SIZES},
        "loss": "LearntScale",
        "trainer": {**TRAINER, "ema": {"decay": 0.8}, "freeze": [{"params": ["fc1.*"], "epochs": 1}]},
    },
    "thawing": {
        "data_loader": {"type": "RandomTensorLoader", "args": SIZES},
        "trainer": {**TRAINER, "type": "ThawingTrainer", "epochs": 3},
    },
    "parts": {
        "data_loader": {"type": "RandomTensorLoader", "args": SIZES},
        "model": "Coder",
        "loss": "MSELoss",
        "trainer": {**TRAINER, "type": "CoderTrainer"},
    },
    "state": {"data_loader": {"type": "ResumableStream", "args": {"batch_size": 7}}, "trainer": STREAMED},
}
STEP = 4  # in mid-epoch


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run folders: by one and by two processes, and resumed by two from either."""
    run_jobs = Jobs(tmp_path_factory.mktemp("jobs"))
    try:
        configs = {name: {**NET, "name": name, **config} for name, config in CONFIGS.items()}
        one = run_jobs(1, {f"{name} 1": {"config": config} for name, config in configs.items()})
        two = run_jobs(2, {f"{name} 2": {"config": config} for name, config in configs.items()})
        found = one | two
        again: dict[str, Json] = {f"{name} to 2": {"of": run, "step": STEP} for name, run in found.items()}
        again["thawing 2 fsdp"] = {"config": configs["thawing"], "run": ["runtime.strategy=fsdp"]}
        return found | run_jobs(2, again)
    finally:
        run_jobs.close()


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_give_what_one_gives_and_resume_exactly(runs: dict[str, Any], name: str) -> None:
    one = runs[f"{name} 1"]
    for other in (runs[f"{name} 2"], runs[f"{name} 1 to 2"]):
        assert isinstance(other, Path), other
        assert differences(lines(one), lines(other), rtol=1e-4) == []
        assert differences(state(one)["model"], state(other)["model"], rtol=1e-3) == []
    two, resumed = runs[f"{name} 2"], runs[f"{name} 2 to 2"]
    assert isinstance(resumed, Path), resumed
    assert lines(two) == lines(resumed)
    left, right = state(two), state(resumed)
    for part in left.keys() - {"writers"}:
        assert same(left[part], right[part]), part
    for part in left.keys() & {"loss", "averaged_weights"}:
        assert differences(state(one)[part], left[part], rtol=1e-3) == []


def test_with_fsdp_what_is_done_to_weights_after_a_forward_pass_remains(runs: dict[str, Any]) -> None:
    two, sharded = runs["thawing 2"], runs["thawing 2 fsdp"]
    assert isinstance(sharded, Path), sharded
    assert differences(lines(two), lines(sharded), rtol=1e-4) == []
    assert differences(state(two)["model"], state(sharded)["model"], rtol=1e-3) == []
