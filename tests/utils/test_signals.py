"""SIGTERM and SIGINT end a run in order: saved, with the command to resume it, and never with a traceback."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.campaign import Campaign, check_end, config, differences, logged, passed, process, wait_for
from tests.helpers import PATIENCE, ROOT
from utils import checkpoint

pytestmark = pytest.mark.slow

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(config(tmp_path, loader="SmallTensors", name="small")))
    return path


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Campaign(tmp_path_factory.mktemp("alone"), "SmallTensors", seed=0, fork=True).alone()


def python(code: str) -> "subprocess.CompletedProcess[str]":
    """A process of this project that runs some code."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "small").glob("[0-9]*"))


@pytest.mark.parametrize(("module", "number"), [("torch", signal.SIGTERM), ("base.build", signal.SIGINT)])
def test_during_the_imports(small: Path, tmp_path: Path, module: str, number: signal.Signals) -> None:
    at = f"{module}:{int(number)}"
    with process("-c", str(small), save_dir=tmp_path, fork=module != "torch", SIGNAL_AT=at) as running:
        output = "".join(running.communicate())
    check_end(running.returncode, output, number)
    assert not runs(tmp_path)


@pytest.mark.parametrize("number", SIGNALS)
def test_before_anything_began_the_last_line_is_the_command_again(number: signal.Signals) -> None:
    code = f"""
import os, sys
from utils.signals import exit_on_signal
sys.argv = ["train.py", "-r", "a run"]
exit_on_signal()
os.kill(os.getpid(), {int(number)})
"""
    done = python(code)
    assert done.returncode == 128 + number
    assert done.stderr.splitlines()[-1] == "python train.py -r 'a run'"


@pytest.mark.parametrize("number", SIGNALS)
def test_to_all_processes_of_a_run_and_then_the_command_that_it_prints(
    small: Path, tmp_path: Path, number: signal.Signals, alone: Path
) -> None:
    """As Ctrl-C in a terminal does, and a cluster's batch system: the data workers get it too."""
    begun = logged(tmp_path)
    with process("-c", str(small), save_dir=tmp_path, PAUSE_AT="7") as running:
        wait_for((tmp_path / "paused").exists, running)
        assert begun()
        os.killpg(running.pid, number)
        (tmp_path / "paused").unlink()
        output = "".join(running.communicate())
    check_end(running.returncode, output, number)
    [run] = runs(tmp_path)
    assert (run / "checkpoints" / "step-00000007.pth").exists()
    *command, folder = shlex.split(output.splitlines()[-1])
    assert command == ["python", "train.py", "-r"]
    if number == signal.SIGINT:
        return  # what comes after is the same for either signal
    with process("-r", str(ROOT / folder), save_dir=tmp_path) as running:
        assert running.wait() == 0
    assert differences(alone, run) == []


def test_a_second_sigint_stops_at_once(small: Path, tmp_path: Path) -> None:
    with process("-c", str(small), save_dir=tmp_path, PAUSE_AT="7") as running:
        wait_for((tmp_path / "paused").exists, running)
        running.send_signal(signal.SIGINT)
        running.send_signal(signal.SIGTERM)  # is nothing new
        while running.poll() is None:
            running.send_signal(signal.SIGINT)
            wait_for(passed(0.1), running)
        output = "".join(running.communicate())
    check_end(running.returncode, output, signal.SIGINT)
    assert output.count("stopped immediately") == 1
    [run] = runs(tmp_path)
    newest = checkpoint.step_files(run / "checkpoints")[0]
    assert newest.name < "step-00000007.pth"
    checkpoint.verify(newest)


def test_a_data_worker_that_is_killed_is_one_clear_message(small: Path, tmp_path: Path) -> None:
    with process("-c", str(small), save_dir=tmp_path, PAUSE_AT="7") as running:
        wait_for((tmp_path / "paused").exists, running)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        if not children.exists():
            pytest.skip("the children of a process are read from /proc")
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        output = "".join(running.communicate())
    assert running.returncode == 1
    assert "a DataLoader worker died" in output
    assert "Traceback" not in output


def test_one_run_has_one_owner(small: Path, tmp_path: Path) -> None:
    with process("-c", str(small), save_dir=tmp_path, PAUSE_AT="7") as running:
        wait_for((tmp_path / "paused").exists, running)
        [run] = runs(tmp_path)
        second = forked.run("-m", "tests.killable", "-r", str(run), cwd=ROOT, timeout=PATIENCE)
        assert second.returncode == 2
        assert "is in use: another process trains this run" in second.stderr
        (tmp_path / "paused").unlink()
        assert running.wait() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked where there is fork")
def test_a_lock_goes_with_its_process_and_not_with_its_workers(tmp_path: Path) -> None:
    from utils.run_folder import RunFolder

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with RunFolder(tmp_path).locked():
            if os.fork() == 0:  # a worker, which lives on after its parent
                os.read(reading, 1)
            os._exit(0)
    os.waitpid(child, 0)
    with RunFolder(tmp_path).locked():
        os.write(writing, b"x")
    for handle in (reading, writing):
        os.close(handle)


@pytest.mark.parametrize("without", ["", "SIGCHLD"])
def test_workers_that_are_left_do_not_hold_up_the_end(tmp_path: Path, without: str) -> None:
    """without: a signal that Windows lacks."""
    code = (
        "import torch; from base.data.batches import Batches; from base.data.sources import TensorSource\n"
        "left = Batches(TensorSource(torch.zeros(9), torch.zeros(9)), batch_size=1, num_workers=1).one_pass()\n"
        "print(next(left).size)\n"
    )
    if without:
        code += f"import signal; signal.signal(signal.{without}, signal.SIG_DFL); del signal.{without}"
    script = tmp_path / "left.py"
    script.write_text(code)
    done = forked.run(script, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker looks for its parent itself")
def test_a_worker_that_starts_after_its_parent_was_killed_ends(tmp_path: Path) -> None:
    code = (
        "import multiprocessing, os\nfrom utils.signals import ignore_in_worker\n"
        "def work():\n    os.getppid = lambda: 1\n    ignore_in_worker()\n"
        "worker = multiprocessing.get_context('fork').Process(target=work)\nworker.start()\nworker.join()\n"
        "print(worker.exitcode)"
    )
    done = python(code)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
