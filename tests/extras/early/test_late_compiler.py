"""torchvision without torch's compiler, which must still be there for whatever uses it."""

import subprocess
import sys
from pathlib import Path

import pytest

from utils.paths import PROJECT

BEGIN = """
import sys, torch
from extras.early.late_compiler import import_compiler_late
import_compiler_late()
"""
END = """
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""


def run(script: str) -> list[str]:
    command = [sys.executable, "-W", "error", "-c", BEGIN + script + END]
    return subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True).stdout.split()


@pytest.mark.slow
def test_torchvision_comes_without_it() -> None:
    assert run(
        """
import torchvision
from torchvision.ops import roi_align
print("torch._dynamo" in sys.modules)
print(roi_align(torch.ones(1, 1, 4, 4), [torch.tensor([[0.0, 0.0, 2.0, 2.0]])], 1).item())
print(torchvision.ops.roi_align.__globals__["is_compile_supported"]("cpu"), "torch._dynamo" in sys.modules)
"""
    ) == ["False", "1.0", "True", "True", "2.0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "from torch._dynamo.utils import is_compile_supported, counters",
        "import torch._dynamo; torch._dynamo.reset()",
        "import torch; torch.compiler.disable()(len)",
    ],
)
def test_a_torchvision_that_needs_more_of_it_gets_it(tmp_path: Path, line: str) -> None:
    package = tmp_path / "torchvision" / "ops"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "roi_align.py").write_text(f"{line}\nDONE = True\n")
    assert run(
        f"""
sys.path.insert(0, {str(tmp_path)!r})
from torchvision.ops.roi_align import DONE
print(DONE, hasattr(sys.modules["torch._dynamo"], "optimize"))
"""
    ) == ["True", "True", "2.0"]


@pytest.mark.slow
def test_a_lazy_import_keeps_the_compiler_that_was_imported_since() -> None:
    assert run(
        """
import importlib.util, torchvision
spec = importlib.util.find_spec("torchvision.tv_tensors")
loader = importlib.util.LazyLoader(spec.loader)
spec.loader = loader
sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
loader.exec_module(module)
import torch._dynamo
before = sys.modules["torch._dynamo"]
print(module.Image.__name__, sys.modules.get("torch._dynamo") is before)
"""
    ) == ["Image", "True", "2.0"]
