"""Runs scripts in processes that need not import torch: they are forked from one that has imported it.

Such a process is like one started by ``python``: it has its own folder, environment, arguments, output, signals and
exit status, and imports the project's code itself. Only third-party packages, which take most of the time, are there.

python tests/forked.py --serve SOCKET    # the process that the others are forked from; ends with its standard input
python tests/forked.py WORDS...          # as python WORDS..., forked by the server that FORK_SERVER names
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGES = (
    "torch", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.run", "torch.utils.data",
    "torchmetrics", "torchvision.datasets", "torchvision.transforms.v2", "tensorboard.summary", "matplotlib.figure",
    "tensorboard.backend.event_processing.event_accumulator", "matplotlib.backends.backend_agg", "numpy", "PIL.Image",
    "pydantic", "tqdm",
)  # fmt: skip
VARIABLE = "FORK_SERVER"


class Process:
    """A process that is being forked; pid is known at once, and wait() gives its exit status, negative for a signal."""

    def __init__(
        self, address: str, words: list[str], folder: str, variables: dict[str, str], files: list[int]
    ) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(address)
        request = json.dumps({"words": words, "folder": folder, "variables": variables}).encode()
        socket.send_fds(self.connection, [len(request).to_bytes(8)], files)
        self.connection.sendall(request)
        self.answers = self.connection.makefile("r")
        self.pid = int(self.answers.readline())

    def wait(self, seconds: float | None = None) -> int:
        self.connection.settimeout(seconds)
        status = int(self.answers.readline())
        self.answers.close()
        self.connection.close()
        return status


@functools.cache
def server() -> str:
    """The address of this process's server, which is started on the first call."""
    folder = tempfile.TemporaryDirectory()
    address = f"{folder.name}/socket"
    command = [sys.executable, __file__, "--serve", address]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stdout.readline() == b"ready\n"

    def end() -> None:
        started.communicate()
        folder.cleanup()

    atexit.register(end)
    return address


def run(
    *words: str | Path, cwd: Path, env: dict[str, str] | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run([python, *words], ...) with the output as text."""
    arguments = [str(word) for word in words]
    with (
        Path(os.devnull).open() as nothing,
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
    ):
        files = [file.fileno() for file in (nothing, output, errors)]
        status = Process(server(), arguments, str(cwd), dict(os.environ if env is None else env), files).wait(timeout)
        for file in (output, errors):
            file.seek(0)
        return subprocess.CompletedProcess(arguments, status, output.read(), errors.read())


def serve(address: str) -> dict[str, Any]:
    """Fork a process for each request, and return the request in that process."""
    for name in PACKAGES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies of the processes that wait for the others
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
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


def fork(connection: socket.socket) -> dict[str, Any]:
    """Fork once more: the child returns the request, the parent answers with its pid and its exit status."""
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    request: dict[str, Any] = json.loads(connection.recv(int.from_bytes(size), socket.MSG_WAITALL))
    child = os.fork()
    if child == 0:
        connection.close()
        for target, file in enumerate(files):
            os.dup2(file, target)
            os.close(file)
        return request
    for file in (*files, 0, 1, 2):  # the output ends when the child does
        os.close(file)
    connection.sendall(f"{child}\n".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(f"{status}\n".encode())
    os._exit(0)


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


def forward(words: list[str]) -> None:
    """Stand for a process that the server forks: pass signals to it, and exit with its status."""
    process = Process(os.environ[VARIABLE], words, os.getcwd(), dict(os.environ), [0, 1, 2])  # noqa: PTH109

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(process.pid, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    status = process.wait()
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    if sys.argv[1] == "--serve":
        become(**serve(sys.argv[2]))
    else:
        forward(sys.argv[1:])
