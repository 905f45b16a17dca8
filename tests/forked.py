"""Runs scripts in processes that need not import torch: they are forked from one that has imported it.

Such a process is like one started by ``python``: it has its own folder, environment, arguments, output, signals and
exit status, and imports the project's code itself. Only third-party packages, which take most of the time, are there.

python tests/forked.py --serve DESCRIPTOR    # the process that the others are forked from; ends with its standard input
python tests/forked.py WORDS...              # as python WORDS..., forked by the server that FORK_SERVER names
"""

import atexit
import contextlib
import functools
import gc
import importlib
import inspect
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

PACKAGES = (
    "torch", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.run", "torch.utils.data",
    "torchmetrics", "torchvision.datasets", "torchvision.transforms.v2", "tensorboard.summary", "matplotlib.figure",
    "tensorboard.backend.event_processing.event_accumulator", "matplotlib.backends.backend_agg", "numpy", "PIL.Image",
    "pydantic.main", "pydantic.types", "tqdm",
)  # fmt: skip
VARIABLE = "FORK_SERVER"
PYTHON = (sys.executable, "-S", __file__)
"""In place of python in a command of a shell script or of torchrun, with the server's address in this variable."""


class Process:
    """Like subprocess.Popen: a process that runs ``python words``, its standard input empty and its output kept.

    session: whether it gets a session of its own, so that os.killpg reaches it and its children. stdin, stdout:
    descriptors of pipes in place of these.
    """

    def __init__(
        self,
        *words: str | Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        session: bool = False,
        stdin: int | None = None,
        stdout: int | None = None,
    ) -> None:
        self.returncode: int | None = None
        self.printed: list[str] = []
        self._files = [tempfile.TemporaryFile("w+") for _ in ("stdout", "stderr")]  # noqa: SIM115
        variables = dict(os.environ if env is None else env)
        request = {"words": [*map(str, words)], "folder": str(cwd), "variables": variables, "session": session}
        with Path(os.devnull).open() as nothing:
            files = [file.fileno() for file in (nothing, *self._files)]
            for place, pipe in enumerate((stdin, stdout)):
                files[place] = files[place] if pipe is None else pipe
            self._connection, self._answers, self.pid = send(server(), request, files)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._connection.close()
            for file in self._files:
                file.seek(0)
                self.printed.append(file.read())
                file.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end of the process: what it printed to standard output and to standard error."""
        self.wait(timeout)
        return self.printed[0], self.printed[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def send(address: str, request: dict[str, Any], files: list[int]) -> tuple[socket.socket, TextIO, int]:
    """Have a process forked. Gives the connection, on which its exit status will come, and its pid."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    text = json.dumps(request).encode()
    socket.send_fds(connection, [len(text).to_bytes(8)], files)
    connection.sendall(text)
    answers = connection.makefile("r")
    return connection, answers, int(answers.readline())


@functools.cache
def server() -> str:
    """The address of the server: that of all processes of pytest, or else one that is started on the first call."""
    return os.environ.get(VARIABLE) or start()


def start() -> str:
    """Start a server, which ends with this process. Gives its address, to which it answers when it has its imports."""
    folder = tempfile.TemporaryDirectory()
    address = f"{folder.name}/socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        command = [sys.executable, __file__, "--serve", str(listener.fileno())]
        started = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])

    def end() -> None:
        started.communicate()
        folder.cleanup()

    atexit.register(end)
    return address


def run(
    *words: str | Path, cwd: Path, env: Mapping[str, str] | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run([python, *words], ...) with the output as text."""
    process = Process(*words, cwd=cwd, env=env)
    output, errors = process.communicate(timeout)
    return subprocess.CompletedProcess(words, process.wait(), output, errors)


def serve(descriptor: int) -> dict[str, Any]:
    """Fork a process for each request, and return the request in that process. descriptor: of the listening socket."""
    atexit.register(leave)  # the first that is registered is the last that is called
    warm_up()
    signal.signal(signal.SIGCHLD, reap)
    with socket.socket(fileno=descriptor) as listener:
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                os._exit(0)
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return fork(connection)


def reap(*_: object) -> None:
    """Take the exit statuses of the processes that wait for the others, and so all their processor time, which a
    measurement of the tests counts.
    """
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def warm_up() -> None:
    """What every process would do again at its start."""
    for name in PACKAGES:
        importlib.import_module(name)
    inspect.getmodule(inspect.currentframe())  # resolves the file of every module, as pydantic has it done
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy every page that an object is on


def fork(connection: socket.socket) -> dict[str, Any]:
    """Fork once more: the child returns the request, the parent answers with its pid and its exit status."""
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    request: dict[str, Any] = json.loads(connection.recv(int.from_bytes(size), socket.MSG_WAITALL))
    child = os.fork()
    if child == 0:
        connection.close()
        if request.pop("session"):
            os.setsid()
        for target, file in enumerate(files):
            os.dup2(file, target)
            os.close(file)
        open_streams()
        return request
    for file in (*files, 0, 1, 2):  # the output ends when the child does
        os.close(file)
    connection.sendall(f"{child}\n".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(f"{status}\n".encode())
    os._exit(0)


def open_streams() -> None:
    """Streams for what is behind the descriptors now: the older ones remember whether they can seek."""
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def become(words: list[str], folder: str, variables: dict[str, str]) -> None:
    """Run what ``python words`` would run."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:0] = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, folder)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


def run_to_the_end(words: list[str], folder: str, variables: dict[str, str]) -> None:
    """Run what ``python words`` would run, and remember its exit status for ``leave``."""
    try:
        become(words, folder, variables)
        exit_status.append(0)
    except SystemExit as end:
        exit_status.append(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
    except Exception:
        exit_status.append(1)
        raise


exit_status: list[int] = []
"""Of this process; empty before its end, and where Python has to decide."""


def leave() -> None:
    """End this process when all else is done that Python does at its end, but for taking every module apart.

    That would copy the memory that this process shares with the server: half a second, more than all the rest takes.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # a closed pipe, of which Python makes a status of its own
        return
    if exit_status:
        os._exit(exit_status[0])


def forward(words: list[str]) -> None:
    """Stand for a process that the server forks: pass signals to it, and exit with its status."""
    request = {"words": words, "folder": str(Path.cwd()), "variables": dict(os.environ), "session": False}
    _, answers, pid = send(os.environ[VARIABLE], request, [0, 1, 2])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = int(answers.readline())
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    if sys.argv[1] == "--serve":
        run_to_the_end(**serve(int(sys.argv[2])))
    else:
        forward(sys.argv[1:])
