"""An emulated accelerator, for those who develop the template: the tests run on a second device without a GPU.

    make test-accelerator                                                   # all tests, tests/accelerator/ first
    python -m dev.accelerator python -m pytest -n 0 tests/accelerator       # any command with the device
    python -m dev.accelerator python train.py runtime.device=emulated

The device has its own memory and random generator, pinned memory, autocast, and a backend for DDP and FSDP over gloo.
The CPU computes every operation. As with CUDA, an operation on tensors of two devices raises an error. What it shows:

- nothing is left on the wrong device;
- a resume is exact although the model draws from another generator than the data;
- no step makes the host wait: ``torch.emulated.host_waits()`` counts reads of values and copies that are waited for.

It shows nothing of a GPU's speed, memory limits, rounding or order of operations, nor of streams, which run nothing
here. Unlike CUDA it works in a forked process, and torch.compile has no code generator for it. It uses C++ interfaces
of torch that change from release to release; it was tried with torch 2.9 and 2.14.

emulated.cpp is the device, emulated.py its module ``torch.emulated``. ``build`` compiles them into .cache/, which takes
half a minute, and writes an entry point, by which ``import torch`` loads the device where that folder is on PYTHONPATH.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / ".cache" / "accelerator"
METADATA = "Metadata-Version: 2.1\nName: emulated-accelerator\nVersion: 0\n"
ENTRY_POINTS = "[torch.backends]\nemulated = emulated_accelerator:register\n"


class BuildError(Exception):
    """Its message names what is missing, in one line, or is what the compiler printed."""


def build(cache: Path = CACHE) -> Path:
    """The folder for PYTHONPATH, compiled unless that was done for the same sources, torch and Python.

    Raises BuildError.
    """
    versions = f"{importlib.metadata.version('torch')} {sys.version}"
    sources = [path.read_bytes() for path in (Path(__file__), HERE / "emulated.cpp", HERE / "emulated.py")]
    folder = cache / hashlib.sha256(b"\0".join([versions.encode(), *sources])).hexdigest()[:16]
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache) as temporary:
        unfinished = Path(temporary) / "site"
        information = unfinished / "emulated_accelerator-0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(METADATA, encoding="utf-8")
        (information / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
        shutil.copy(HERE / "emulated.py", unfinished / "emulated_accelerator.py")
        compile_backend(unfinished / f"emulated_backend{sysconfig.get_config_var('EXT_SUFFIX')}")
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # else another process has built the same
                raise
    return folder


def compile_backend(target: Path) -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise BuildError(f"no C++ compiler: {compiler} not found; install g++, or set CXX")
    python = Path(sysconfig.get_path("include"))
    if not (python / "Python.h").exists():
        raise BuildError(f"no headers of Python: {python / 'Python.h'} not found; install python3-dev")
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    folder = Path(torch.origin).parent
    # -O1: the time goes into compiling, not into the few lines that run
    options = ["-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-isystem", folder / "include", "-isystem", python]
    libraries = ["-L", folder / "lib", "-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10"]
    command = [compiler, *options, HERE / "emulated.cpp", "-o", target, *libraries]
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BuildError(f"{compiler} does not compile emulated.cpp for this torch:\n{done.stdout}")
