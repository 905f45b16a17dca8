"""A run that is killed and resumed ends with the same bits as one that was not."""

import functools
import json
import shutil
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import train
from tests.campaign import Campaign, config, differences, records
from tests.conftest import small_config
from tests.helpers import Fit, extended, forgetful, temporarily
from tests.small_data import SmallTensors
from utils import checkpoint
from utils.registry import DATA_LOADERS, TRAINERS
from utils.run_folder import RunFolder


class Killed(BaseException):
    """Ends a run as a kill would: nothing is saved."""


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_with_other_workers(tmp_path: Path) -> None:
    """The short form of dev/campaigns/kill.py: a real process, SIGKILL before a random file operation, everything on.

    A moment by the clock might come after the run's end on a fast machine.
    """
    campaign = Campaign(tmp_path, "SmallTensors", seed=3, workers=(0, 1, 2), kinds=("file",), fork=True)
    assert differences(campaign.alone(), campaign.killed(2)) == []
    assert campaign.kills == 2


@pytest.fixture(scope="module")
def whole_and_killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A run, and one like it that was killed at its 13th step."""
    folder = tmp_path_factory.mktemp("runs")
    path = folder / "config.json"
    value = config(folder, loader="SmallTensors", name="whole", workers=0)
    value["trainer"]["pictures_every"] = 0
    path.write_text(json.dumps(value))
    with temporarily(DATA_LOADERS, SmallTensors):
        whole = train.main(["-c", str(path)]).run_dir
        with killed_in("optimizer_step", calls=13):
            train.main(["-c", str(path), "name=killed"])
        yield whole, RunFolder.newest(str(folder), "killed").path


@pytest.mark.slow
@pytest.mark.parametrize("part", ["random", "optimizer", "schedule", "metrics", "progress", ""])
def test_the_comparison_sees_a_part_that_is_left_out(
    tmp_path: Path, part: str, whole_and_killed: tuple[Path, Path]
) -> None:
    whole, killed = whole_and_killed
    run = shutil.copytree(killed, tmp_path / killed.name)
    with temporarily(TRAINERS, *(extended(forgetful(part)) if part else ())):
        train.main(["-r", str(run)])
    assert (differences(whole, run) != []) == bool(part)


@contextmanager
def killed_in(method: str, *, calls: int, saves: bool = True) -> Iterator[None]:
    """The run in this block ends when this method of its trainer is called for the n-th time. saves: until then."""
    left = calls

    class Mortal:
        def save(self) -> None:
            if saves:
                super().save()  # type: ignore[misc]

    def called(self: Mortal, *arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return getattr(super(Mortal, self), method)(*arguments)

    setattr(Mortal, method, called)
    with temporarily(TRAINERS, *extended(Mortal)), pytest.raises(Killed):
        yield


OFTEN = (
    "trainer.monitor=min val_loss",
    "trainer.save_every_steps=1",
    "trainer.accumulate_steps=2",
    "trainer.keep_last=null",
    "trainer.epochs=3",
    "trainer.tensorboard=true",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run with so many steps in an epoch that nobody kills."""

    @functools.cache
    def run(per_epoch: str) -> Path:
        path = small_config(tmp_path_factory.mktemp("undisturbed"))
        return train.main(["-c", str(path), *OFTEN, f"trainer.steps_per_epoch={per_epoch}"]).run_dir

    return run


@pytest.mark.slow
@pytest.mark.parametrize("method", ["optimizer_step", "evaluate", "end_epoch"])
@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("per_epoch", ["null", "4"])
def test_killed_between_any_two_parts_of_the_loop(
    fit: Fit,
    undisturbed: Callable[[str], Path],
    tmp_path: Path,
    method: str,
    calls: int,
    per_epoch: str,
) -> None:
    with killed_in(method, calls=calls):
        fit(*OFTEN, f"trainer.steps_per_epoch={per_epoch}")
    run = RunFolder.newest(str(tmp_path / "saved"), "small").path
    train.main(["-r", str(run)])
    assert differences(undisturbed(per_epoch), run) == []


@pytest.mark.usefixtures("tensorboard")
def test_event_files_survive_a_checkpoint_before_the_first_event_after_a_resume(fit: Fit) -> None:
    settings = (
        "trainer.monitor=min val_loss",
        "trainer.save_every_steps=1",
        "trainer.keep_last=null",
        "trainer.log_every_steps=3",
    )
    whole = fit(*settings)
    run = fit(*settings, name="other").run_dir
    for step in ("03", "04", "04"):  # between 3 and 4 nothing is logged
        train.main(["-r", str(run / "checkpoints" / f"step-000000{step}.pth")])
    assert records(run) == records(whole.run_dir)
    assert differences(whole.run_dir, run) == []


class Pair(NamedTuple):
    first: torch.Tensor
    second: int


def test_a_snapshot_is_of_the_same_types_and_shares_no_memory() -> None:
    tensor = torch.ones(2)
    state: dict[str, Any] = {
        "named": Pair(tensor, 3),
        "ordered": OrderedDict(a=[tensor]),
        "counter": Counter("aab"),
        "default": defaultdict(list, a=(tensor, None)),
    }
    copied = checkpoint.snapshot(state)
    assert [type(item) for item in copied.values()] == [type(item) for item in state.values()]
    tensor.zero_()
    assert [copied["named"].first[0], copied["ordered"]["a"][0][0], copied["default"]["a"][0][0]] == [1, 1, 1]
    assert copied["counter"] == Counter("aab")
    assert copied["named"].second == 3
