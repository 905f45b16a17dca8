"""One process of several fails: all stop with one message, and a restart by the launcher resumes the run."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from types import MappingProxyType
from typing import Any

import pytest
from torch.distributed import HashStore, PrefixStore  # type: ignore[attr-defined]

import train
from tests import forked
from tests.helpers import PATIENCE, ROOT, lines, state
from tests.utils.distributed.test_processes import differences, environment
from utils import distributed
from utils.checkpoint.file import step_files
from utils.distributed import torchrun as torchrun_group
from utils.errors import ConfigError, UserError

pytestmark = pytest.mark.slow

OFTEN = {"epochs": 4, "save_every_steps": 2, "keep_last": None}
Write = Callable[..., Path]


def launch(
    config: Path, runs: Path, trouble: str, *options: str, count: int = 2
) -> tuple[CompletedProcess[str], list[str]]:
    """Train under torchrun with a process that fails. Also the exit statuses that torchrun names."""
    command = [*forked.PYTHON, "-m", "tests.killable", "-c", str(config)]
    variables = {"DO_AT": trouble, "RUNS": str(runs)}
    done = torchrun(count, *command, options=("--no-python", *options), cwd=ROOT, variables=variables)
    return done, exit_statuses(done)


def torchrun(
    count: int, *command: str, options: tuple[str, ...], cwd: Path, variables: Mapping[str, str] = MappingProxyType({})
) -> CompletedProcess[str]:
    variables = {**environment(), forked.VARIABLE: forked.server(), **variables}
    return forked.run(*torchrun_words(count, *command, options=options), cwd=cwd, env=variables, timeout=PATIENCE)


def torchrun_words(count: int, *command: str, options: tuple[str, ...] = ()) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *options, *command]


def exit_statuses(done: CompletedProcess[str]) -> list[str]:
    return re.findall(r"exitcode +: (-?\d+)", done.stderr)


def only_run(folder: Path) -> Path:
    (run,) = (folder / "saved" / "small").iterdir()
    return run


def test_an_error_in_one_process_ends_all_and_is_reported_once(write_config: Write, tmp_path: Path) -> None:
    done, statuses = launch(write_config(trainer=OFTEN), tmp_path, "7:1:fail")
    assert done.stderr.count("ZeroDivisionError: something of the user's went wrong") == 1
    assert "error:" not in done.stderr
    ended = json.loads((only_run(tmp_path) / "environment.json").read_text())["outcome"]
    assert ended.startswith("failed: process 1 of 2 has ended")  # what the main process knows
    assert set(statuses) == {"1"}  # torchrun names the other one only if it failed before being terminated


@pytest.mark.parametrize(("ranks", "strategy"), [("1", "ddp"), ("0+1", "ddp"), ("0+1", "fsdp")])
def test_a_validation_that_fails_in_all_processes_costs_no_epoch(
    write_config: Write, tmp_path: Path, ranks: str, strategy: str
) -> None:
    config = write_config(trainer={"epochs": 2}, runtime={"strategy": strategy})
    done, _ = launch(config, tmp_path, f"5:{ranks}:misjudge")
    assert done.stderr.count("ZeroDivisionError: something of the user's went wrong") == 1
    saved = ranks == "0+1"
    assert ("step 5 is saved; -r starts with the validation after it" in done.stderr) == saved
    assert [path.name for path in step_files(only_run(tmp_path) / "checkpoints")] == ["step-00000005.pth"] * saved
    if saved:
        resumed = train.main(["-r", str(only_run(tmp_path)), "runtime.strategy=ddp"])
        assert [line["step"] for line in lines(resumed.run_dir)] == [5, 10]


def test_a_loss_that_is_not_a_number_in_one_process_ends_all(write_config: Write, tmp_path: Path) -> None:
    done, statuses = launch(write_config(trainer=OFTEN), tmp_path, "7:1:spoil")
    assert done.stderr.count("error:") == 1
    assert "error: the loss is nan at step 7 (epoch 2, samples" in done.stderr
    assert set(statuses) == {"1"}  # torchrun names the other one only if it failed before being terminated
    assert [int(path.stem[5:]) for path in step_files(only_run(tmp_path) / "checkpoints")] == [6, 5, 4, 2]


@pytest.mark.parametrize(("strategy", "named"), [("ddp", "fc1.weight"), ("fsdp", "all parameters")])
def test_a_parameter_without_a_gradient_in_one_process_ends_all(
    write_config: Write, tmp_path: Path, strategy: str, named: str
) -> None:
    done, statuses = launch(write_config(trainer=OFTEN, runtime={"strategy": strategy}), tmp_path, "7:1:detach")
    assert done.stderr.count("error:") == 1
    assert f"error: the loss of a batch does not depend on {named}, and other processes wait" in done.stderr
    assert set(statuses) == {"2"}


def test_a_signal_to_one_process_stops_all_at_one_step(write_config: Write, tmp_path: Path) -> None:
    # long enough: the processes ask each other at least every 16 steps
    config = write_config(trainer={"epochs": 40, "save_period": 40, "tensorboard": False})
    # torchrun and its processes as they are in use, none of them forked
    command = [sys.executable, *torchrun_words(2, "-m", "tests.killable", "-c", str(config))]
    variables = {**environment(), "DO_AT": "7:1:stop", "RUNS": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=PATIENCE)
    statuses = exit_statuses(done)
    assert set(statuses) == {"143"}, done.stderr  # torchrun of torch 2.9 names only the first
    assert done.stderr.count("stopped and saved") == 1
    saved = state(only_run(tmp_path))
    assert saved["progress"]["steps"] >= 7
    assert len(saved["random"]) == 2


def test_a_process_that_hangs_is_named(write_config: Write, tmp_path: Path) -> None:
    # longer than a process that does not hang could lag behind on a busy machine
    config = write_config(trainer=OFTEN, runtime={"timeout": 15.0})
    done, statuses = launch(config, tmp_path, "7:2:hang", count=3)
    assert done.stderr.count("error:") == 1
    assert "error: process 2 of 3 hung or was stopped for more than 15 s" in done.stderr
    assert "1" in statuses


@pytest.mark.parametrize("rank", [0, 1])
def test_a_launcher_that_restarts_resumes_its_run(
    write_config: Write, tmp_path: Path, fit: Callable[..., train.Result], rank: int
) -> None:
    # torchrun looks at its processes so rarely that the other one can say what happened before it is terminated
    options = ("--max-restarts", "3", "--monitor-interval", "3")
    config = write_config(trainer=OFTEN)
    config.write_text(config.read_text().replace('"batch_size": 8', '"batch_size": 7'))
    # in the short last batch of an epoch, which could be a cause of its own
    done, _ = launch(config, tmp_path, f"6:{rank}:kill", *options)
    assert done.returncode == 0, done.stderr
    assert f"process {1 - rank} of 2 has ended" not in done.stderr
    assert f"error: process {rank} of 2 has ended" in done.stderr
    killed = only_run(tmp_path)
    assert len(json.loads((killed / "environment.json").read_text())["resumed"]) == 1
    whole = fit("--bs=7", trainer=OFTEN).run_dir
    assert differences(lines(whole), lines(killed), rtol=1e-5) == []
    assert differences(state(whole)["model"], state(killed)["model"], rtol=1e-4) == []


def test_processes_that_do_not_have_the_same_are_refused(write_config: Write, tmp_path: Path) -> None:
    """One after the other under one launcher; each ends with one message, and status 2 in all processes."""
    for rank in "01":
        for folder in ("base", "data_loader", "logger", "model", "trainer", "utils"):
            shutil.copytree(ROOT / folder, tmp_path / rank / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "train.py", tmp_path / rank)
        (tmp_path / "elsewhere" / rank).mkdir(parents=True)
    with (tmp_path / "1" / "model" / "lenet.py").open("a") as file:
        file.write("# changed\n")
    config, python = write_config(), " ".join(forked.PYTHON)
    trains = f"{python} {ROOT}/train.py -c {config}"
    cases = {
        f"{trains} trainer.epochs=$((2 + RANK))": "error: process 0 and process 1 differ in their config",
        f"{python} $RANK/train.py -c {config}": "error: process 0 and process 1 differ in their code",
        # a path that leads each process to another place, as a disk of its own would
        f"cd elsewhere/$RANK; {trains} trainer.save_dir=/proc/self/cwd/saved": "process 1 of 2 does not see the run",
        f"{trains} --bs=1": "1 sample cannot be shared by 2 processes",
        f"{trains} --bsize=1": "error: unrecognized arguments: --bsize=1",
        f"{python} {ROOT}/test.py --compare .": "error: --compare runs in a single process",
    }
    (tmp_path / "cases.sh").write_text(
        "".join(f"({case}) 2> said-{n}-$RANK\necho $? >> status-$RANK\n" for n, case in enumerate(cases))
    )
    assert torchrun(2, "bash", "cases.sh", options=("--no-python",), cwd=tmp_path).returncode == 0
    for number, expected in enumerate(cases.values()):
        said = [(tmp_path / f"said-{number}-{rank}").read_text() for rank in "01"]
        assert expected in "".join(said)
        assert "" in said, said
        assert "".join(said).count("error:") == 1
    assert {(tmp_path / f"status-{rank}").read_text() for rank in "01"} == {"2\n" * len(cases)}
    assert not (tmp_path / "saved").exists()


def test_a_mistake_of_one_process_ends_those_that_wait_for_it(write_config: Write, tmp_path: Path) -> None:
    script = tmp_path / "start.sh"
    script.write_text(
        f"exec {' '.join(forked.PYTHON)} {ROOT}/train.py -c {write_config()} trainer.epoch$([ $RANK = 1 ] || echo s)=3"
    )
    done = torchrun(2, "bash", str(script), options=("--no-python",), cwd=ROOT)
    assert done.stderr.count("error:") == 1
    assert "stopped" not in done.stderr
    assert 'unknown key "epoch"' in done.stderr
    assert set(exit_statuses(done)) == {"2"}


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rendezvous_that_nobody_joins_ends_with_a_message(write_config: Write, tmp_path: Path, rank: str) -> None:
    script = tmp_path / "join.py"
    script.write_text(
        "import runpy, sys\nfrom utils.distributed import torchrun as distributed\ndistributed.JOIN_SECONDS = 0.5\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    place = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0" if rank == "0" else "1"}
    command = (script, ROOT / "train.py", "-c", write_config())
    done = forked.run(*command, cwd=tmp_path, env={**environment(), **place}, timeout=PATIENCE)
    assert done.returncode == 2, done.stderr
    assert f"error: process {rank} of 2: timed out after 0.5 s waiting for the other processes" in done.stderr


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is '', not a number"),
        ({"RANK": "1"}, "WORLD_SIZE is '', not a number"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one', not a number"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK is 0, WORLD_SIZE 0"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, WORLD_SIZE 2"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "MASTER_ADDR None"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "MASTER_PORT is '', not a number"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "65536"}, "not a number below 65536"),
    ],
)
def test_variables_of_a_launcher_that_do_not_fit_are_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    with set_variables(monkeypatch, variables), pytest.raises(UserError, match=says):
        distributed.get_process_group()


@pytest.mark.parametrize("variables", [{"RANK": "", "WORLD_SIZE": ""}, {"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_variables_for_one_process_need_no_launcher(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    with set_variables(monkeypatch, variables):
        assert not distributed.get_process_group().launched


@contextmanager
def set_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Iterator[None]:
    """The variables of a launcher in this process, which has no process group yet."""
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "_group", None)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def test_fsdp_wants_a_launcher(fit: Callable[..., train.Result], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'^override runtime.strategy=fsdp: runtime.strategy: "fsdp" needs several'):
        fit("runtime.strategy=fsdp")
    assert not (tmp_path / "saved").exists()


def unconnected(world_size: int) -> torchrun_group.TorchProcessGroup:
    """The first of so many processes, with a store and without the others."""
    group = object.__new__(torchrun_group.TorchProcessGroup)
    group.rank, group.world_size, group.timeout, group._turns = 0, world_size, 0.0, 0
    group.store, group.download_group = PrefixStore("", HashStore()), None
    return group


@pytest.mark.parametrize("error", ["gloo: Timed out waiting 0ms for recv", "gloo: Connection closed by peer"])
def test_processes_that_wait_for_each_other_do_not_blame_one(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    handled: list[tuple[int, Any]] = []
    monkeypatch.setattr("signal.signal", lambda *handler: handled.append(handler))
    group = unconnected(2)
    group.store.set("noticed/1", "yes")
    lost = str(group.peer_failure(RuntimeError(error)))
    assert lost.startswith("the processes waited for each other for 0 s (did only some of them call the model")
    assert handled == [(signal.SIGTERM, signal.SIG_IGN)]  # the launcher may end the others before they say so


def test_a_process_that_takes_long_to_prepare_data_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    group = unconnected(4)
    for rank in (1, 3):
        group.store.set(f"turn 1/{rank}", "")
    said: list[str] = []

    class Barrier:
        """Completes when the process at the other end has been named, and was asked for a few times more."""

        asked = 0

        def is_completed(self) -> bool:
            self.asked += bool(said)
            return self.asked > 3

        def wait(self) -> None:
            pass

    monkeypatch.setattr(torchrun_group, "say_error", said.append)
    monkeypatch.setattr("torch.distributed.barrier", lambda *_, **__: Barrier())
    group._wait_for_turn()
    assert said == ["still waiting for process 2 of 4, which prepares the data"]
