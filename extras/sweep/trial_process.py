"""The process of a trial: ``train.py -r`` on the trial's run, whose folder exists before the first step.

It is forked from a server that has imported torch and other large packages and has no threads, devices or data. That is
multiprocessing's "forkserver"; on systems without it, the process is started normally.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from base.build import build_experiment, with_facts
from base.initial_weights import load_initial_weights
from base.training.run import prepare_folder
from utils.config import load_config
from utils.distributed import get_process_group
from utils.paths import PROJECT
from utils.registry import import_components
from utils.run_folder import RunFolder
from utils.streams import flush_streams

ERRORS = "errors.log"
"""Standard error of a trial's process; the rest is in train.log."""
LAUNCHER = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR",
    "MASTER_PORT",
)  # fmt: skip
"""Variables that tell a process to train together with others, which trials do not."""
FORKSERVER = sys.platform == "linux"  # available on macOS, but its system libraries do not survive a fork


class TrialProcesses:
    """Starts trial processes.

    threads: number of torch threads in each; None: torch's default. devices: number of GPUs to share out, one per slot.
    note: the label of their runs; None: keep their own.
    """

    def __init__(self) -> None:
        self.threads: int | None = None
        self.devices = 0
        self.note: str | None = None
        self.context: Any = multiprocessing.get_context("forkserver" if FORKSERVER else "spawn")
        for name in [*LAUNCHER, *(name for name in os.environ if name.startswith("TORCHELASTIC_"))]:
            os.environ.pop(name, None)

    def prepare(self) -> None:
        """Let the server import its packages, while this process continues."""
        if not FORKSERVER:
            return
        from multiprocessing import forkserver

        self.context.set_forkserver_preload(["extras.sweep.preload"])
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), before]))
        # a Ctrl-C in the terminal reaches the server too, which ignores it only once its imports are done
        in_main = threading.current_thread() is threading.main_thread()
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
        try:
            forkserver.ensure_running()
        finally:
            if in_main:
                signal.signal(signal.SIGINT, handler)
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before

    def start(self, run: RunFolder, slot: int) -> Any:
        """Start a process that trains this run to its end. It saves and exits when this process does."""
        device = slot % self.devices if self.devices > 1 else None
        process = self.context.Process(
            target=train_trial, args=(str(run.path), self.threads, device, self.note), name=run.path.name
        )
        process.start()
        return process


def train_trial(folder: str, threads: int | None, device: int | None, note: str | None) -> None:
    """The process's main function. Exits like a script, with its exit status."""
    status: Any = 1
    try:
        _redirect(Path(folder) / ERRORS)
        multiprocessing.set_start_method(None, force=True)  # this process's own workers are forked, as in train.py
        threading.Thread(target=_end_with_sweep, daemon=True).start()
        if device is not None:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            os.environ["CUDA_VISIBLE_DEVICES"] = visible[device] if len(visible) > device else str(device)
        if threads is not None:
            import torch

            os.environ["OMP_NUM_THREADS"] = str(threads)
            torch.set_num_threads(threads)
        status = _run(folder, note)
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()  # multiprocessing skips these; the training's handlers end its DataLoader workers
        flush_streams()
        os._exit(status if isinstance(status, int) else 1)


def _run(folder: str, note: str | None) -> int:
    from utils.cli import run

    path = Path(folder)
    if not (path / "environment.json").exists() and run(lambda _: _complete(RunFolder(path))):
        return 2
    sys.argv = [str(PROJECT / "train.py"), "-r", folder, *([] if note is None else [f"--note={note}"])]
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


def _complete(run: RunFolder) -> None:
    """Before the first step, add what a new run's folder has besides the config, which requires the data."""
    import_components()
    loaded = load_config(run.config)
    if not loaded.waits_for_data and (loaded.config.model.weights is None or run.initial.exists()):
        return
    loaded, data = with_facts(loaded)
    weights = None
    if loaded.config.model.weights is not None:
        weights = load_initial_weights(loaded, build_experiment(loaded, data).model, get_process_group())
    prepare_folder(loaded, weights, run)


def _redirect(errors: Path) -> None:
    """Send standard output to nowhere, since train.log has it, and standard error to a file."""
    flush_streams()
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 2)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _end_with_sweep() -> None:
    """Let a trial whose sweep was killed save and exit."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
