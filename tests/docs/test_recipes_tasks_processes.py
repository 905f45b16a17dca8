"""Two processes give what one gives, to rounding, in the recipes where the method allows it.

That two processes resume exactly: tests/utils/distributed/test_processes_data.py.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.docs.recipes import config, run_script
from tests.helpers import Json, lines, state
from tests.utils.distributed.test_processes import Jobs, differences

pytestmark = pytest.mark.slow

SMALL: dict[str, Json] = {
    "detection": {"num_samples": 40, "num_test_samples": 12, "validation_split": 9, "batch_size": 7},
    "mixup_sam_ema": {"validation_split": 250, "batch_size": 7},
    "multi_task": {"num_samples": 40, "validation_split": 9, "batch_size": 7},
    "k_fold": {"num_samples": 46, "folds": 3, "fold": 1, "batch_size": 7},
    "stream": {"num_validation_samples": 9, "batch_size": 7},
    "segmentation": {"num_samples": 40, "validation_split": 9, "batch_size": 7},
    "gpt": {"num_words": 250, "validation_split": 4, "batch_size": 7},
    "text_classification": {"num_samples": 40, "validation_split": 9, "batch_size": 7},
}


def small(name: str, folder: Path) -> Json:
    """A recipe's config with few samples, of which no number of processes divides the batches."""
    value = config(name)
    value["data_loader"]["args"] |= SMALL[name]
    if name == "mixup_sam_ema":  # without mixup, which mixes the samples that a process has
        value["trainer"] |= {"type": "Trainer", "args": {}}
    if name == "stream":
        value["data_loader"]["args"]["data_dir"] = str(folder)
        value["trainer"]["steps_per_epoch"] = 5
    if name == "text_classification":
        value["model"]["args"]["dropout"] = 0
        # the gradient of a key's bias is 0 but for rounding, which Adam would scale up
        value["optimizer"] = {"type": "SGD", "args": {"lr": 0.1}}
    if name == "gpt":
        value["optimizer"] = {"type": "SGD", "args": {"lr": 0.1}}
        value["lr_scheduler"] = None
        value["model"]["args"]["dropout"] = 0.0
        value["trainer"]["steps_per_epoch"] = 5
    value["trainer"] |= {"epochs": 2, "accumulate_steps": 2, "verbosity": 0, "tensorboard": False}
    return {**value, "runtime": {"device": "cpu", "timeout": 600}}


def distilled(teacher: Path, folder: Path) -> Json:
    """The config of the distillation recipe, with the data of a run whose averaged weights are its teacher's."""
    value, student = config("distillation"), small("mixup_sam_ema", folder)
    student["trainer"] |= {**value["trainer"], "args": {"teacher": str(teacher)}, "epochs": 2, "ema": None}
    return {**student, "name": "distillation", "optimizer": {"type": "SGD", "args": {"lr": 0.1}}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run folders, by one and by two processes."""
    folder = tmp_path_factory.mktemp("jobs")
    run_script("stream", "make_sensor_data.py", str(folder / "sensors"))
    configs = {name: small(name, folder / "sensors") for name in SMALL}
    run_jobs = Jobs(folder)
    try:
        one = run_jobs(1, {f"{name} 1": {"config": value} for name, value in configs.items()})
        configs["distillation"] = distilled(one["mixup_sam_ema 1"], folder)
        one |= run_jobs(1, {"distillation 1": {"config": configs["distillation"]}})
        return one | run_jobs(2, {f"{name} 2": {"config": value} for name, value in configs.items()})
    finally:
        run_jobs.close()


@pytest.mark.parametrize("name", [*SMALL, "distillation"])
def test_two_processes_give_what_one_gives(runs: dict[str, Any], name: str) -> None:
    one, two = runs[f"{name} 1"], runs[f"{name} 2"]
    assert isinstance(two, Path), two
    assert differences(lines(one), lines(two), rtol=1e-4) == []
    left, right = state(one), state(two)
    for part in left.keys() & {"model", "loss", "averaged_weights"}:
        assert differences(left[part], right[part], rtol=1e-3) == []
