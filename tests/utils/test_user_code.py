"""Mistakes in a user's own code are reported with the user's line and without a frame of the template's.

Each test puts a file into a copy of the project and runs a command, as a user would.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.helpers import PATIENCE, needs_extra
from utils import user_code
from utils.paths import PROJECT

pytestmark = pytest.mark.slow

FOLDERS = ("utils", "logger", "base", "data_loader", "model", "trainer", "configs", "extras/hints")
RunWith = Callable[..., str]

MODEL = """\
from torch import nn

from utils.registry import MODELS


@MODELS.register
class Mine(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        raise ValueError("no width is good enough")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("project")
    for folder in filter(lambda name: (PROJECT / name).is_dir(), FOLDERS):  # extras/hints may be deleted
        shutil.copytree(PROJECT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*PROJECT.glob("*.py"), PROJECT / "config.json"):
        shutil.copy(file, target)
    return target


@pytest.fixture
def run_with(project: Path) -> Iterator[RunWith]:
    """stderr of train.py in a project with one more file; its status must be 2, without a traceback."""
    files = []

    def run(name: str, text: str, *arguments: str) -> str:
        files.append(project / name)
        files[-1].write_text(text)
        command = ["train.py", "trainer.epochs=1", "trainer.steps_per_epoch=1", *arguments]
        ended = forked.run(*command, cwd=project, timeout=PATIENCE)
        assert ended.returncode == 2, ended.stderr
        assert "Traceback" not in ended.stderr
        assert not list((project / "saved").glob("*/*")), "a run folder was made"
        return ended.stderr

    yield run
    for file in files:
        file.unlink(missing_ok=True)
        Path(cache_from_source(str(file))).unlink(missing_ok=True)  # or another file of that size and second is this


@pytest.mark.parametrize("name", ["random", "json", "torch"])
def test_a_file_that_hides_a_module_is_named(project: Path, name: str) -> None:
    """As a first script called torch.py does."""
    (project / f"{name}.py").write_text("x = 1\n")
    try:
        ended = subprocess.run([sys.executable, "train.py"], cwd=project, capture_output=True, text=True)
    finally:
        (project / f"{name}.py").unlink()
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {name}.py in the project's folder hides the module {name} (")
    assert ended.stderr.endswith("): rename it\n")


@needs_extra("hints")
def test_a_class_that_is_not_registered(run_with: RunWith) -> None:
    text = MODEL.replace("@MODELS.register\n", "")
    stderr = run_with("model/mine.py", text, "model=Mine")
    assert 'unknown model "Mine"; model/mine.py:6 defines it: put @MODELS.register above it' in stderr
    text = text.replace("Mine", "MnistModel")  # of a project that was copied here
    assert "defines it: put @MODELS.register above" in run_with("model/mine.py", text, "model=MnistModel")
    assert 'unknown trainer "LeNet"; it is a model, for the key' in run_with(
        "model/mine.py", text, "trainer.type=LeNet"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1 +\n", "model/mine.py cannot be imported: SyntaxError: invalid syntax\n  model/mine.py:1: x = 1 +"),
        (
            "import torch\n\nimport nothing\n",
            "ModuleNotFoundError: No module named 'nothing'\n  model/mine.py:3: import",
        ),
        (
            "raise SystemExit(3)\n",
            "model/mine.py cannot be imported: SystemExit: 3\n  model/mine.py:1: raise SystemExit(3)",
        ),
        (
            MODEL.replace("Mine", "LeNet"),
            "two models are called LeNet:\n  model/lenet.py:14\n  model/mine.py:6\nRename",
        ),
    ],
    ids=["syntax", "import", "exit", "name taken"],
)
def test_a_file_that_does_not_import(run_with: RunWith, text: str, expected: str) -> None:
    assert expected in run_with("model/mine.py", text)


@needs_extra("hints")
@pytest.mark.parametrize(
    ("imports", "says"),
    [
        ("from base import BaseModel", "Write: from base.base_model import BaseModel (docs/migrating.md)"),
        ("from base import BaseDataLoader", "Write: from base.base_data_loader import BaseDataLoader"),
        ("from utils import inf_loop, MetricTracker", "The training loop does that here: leave out the import"),
        ("from utils.util import MetricTracker", "The training loop does that here: leave out the import"),
        ("from logger import TensorboardWriter", "A trainer here logs by StepResult(..., log={...})"),
        ("from parse_config import ConfigParser", "each component gets its own arguments"),
    ],
)
def test_what_files_of_another_template_import_has_its_equivalent(run_with: RunWith, imports: str, says: str) -> None:
    stderr = run_with("model/mine.py", f"{imports}\n")
    assert f"model/mine.py:1: {imports}\n" in stderr
    assert says in stderr


def test_a_class_that_lacks_a_method_is_told_which_whatever_its_arguments(run_with: RunWith) -> None:
    """As a data loader of another template, whose constructor needs arguments that the config does not have."""
    text = """
from base.base_data_loader import BaseDataLoader
from utils.registry import DATA_LOADERS

@DATA_LOADERS.register
class Mine(BaseDataLoader):
    def __init__(self, data_dir, batch_size, shuffle=True):
        super().__init__(None, batch_size, shuffle)
"""
    stderr = run_with("data_loader/mine.py", text, "data_loader=Mine")
    assert "data_loader: Mine does not define training_data; see base/base_data_loader.py:" in stderr
    assert "needs the argument" not in stderr


def test_a_class_that_lacks_a_property_is_told_where_it_is_missing(run_with: RunWith) -> None:
    text = """
from abc import ABC, abstractmethod

from base.base_model import BaseModel
from utils.registry import MODELS

class Sized(BaseModel, ABC):
    @property
    @abstractmethod
    def width(self): ...

@MODELS.register
class Mine(Sized): ...
"""
    assert "model: Mine does not define width; see model/mine.py:8" in run_with("model/mine.py", text, "model=Mine")


def test_a_constructor_that_raises(run_with: RunWith) -> None:
    stderr = run_with("model/mine.py", MODEL, "model=Mine")
    assert (
        "override model=Mine: model.args: Mine cannot be built: no width is good enough\n  model/mine.py:10: " in stderr
    )
    assert "base/" not in stderr


def test_a_constructor_that_forgets_its_base_class(run_with: RunWith) -> None:
    text = MODEL.replace("super().__init__()", "self.layer = nn.Linear(3, width)")
    stderr = run_with("model/mine.py", text, "model=Mine")
    assert "cannot assign module before Module.__init__() call" in stderr


def test_an_argument_of_a_users_class_is_checked_like_any_other(run_with: RunWith) -> None:
    stderr = run_with("model/mine.py", MODEL, 'model={"type": "Mine", "args": {"widht": "a"}}')
    assert 'Mine has no argument "widht"; did you mean "width"?' in stderr


@pytest.mark.parametrize(
    ("name", "text", "override", "expected"),
    [
        ("model/mine.py", "from utils.registry import MODELS\n\n@MODELS.register\nclass Mine: ...\n",
         "model=Mine", "Mine returns Mine; expected Module"),
        ("trainer/mine.py", "from utils.registry import TRAINERS\n\n@TRAINERS.register\ndef mine(*_): return 1\n",
         "trainer.type=mine", "mine returns int; expected BaseTrainer"),
        ("trainer/mine.py", "from base.base_trainer import BaseTrainer\nfrom utils.registry import TRAINERS\n\n"
         "@TRAINERS.register\nclass Mine(BaseTrainer): ...\n",
         "trainer.type=Mine", "Mine does not define eval_step, train_step; see base/training/trainer_interface.py:"),
        ("data_loader/mine.py", "from utils.registry import DATA_LOADERS\n\n@DATA_LOADERS.register\n"
         "def mine(): return [1]\n", "data_loader=mine", "mine returns list; expected BaseDataLoader"),
    ],
)  # fmt: skip
def test_a_component_of_the_wrong_kind(run_with: RunWith, name: str, text: str, override: str, expected: str) -> None:
    assert expected in run_with(name, text, override)


def test_a_line_of_a_library_in_the_projects_own_environment_is_not_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_code, "PROJECT", tmp_path)
    library, model = tmp_path / "env/lib/site-packages/library.py", tmp_path / "model/mine.py"
    for path, text in ((library, "def call():\n    raise ValueError('no')\n"), (model, "def build():\n    call()\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    names: dict[str, Any] = {}
    exec(compile(library.read_text(), str(library), "exec"), names)
    exec(compile(model.read_text(), str(model), "exec"), names)
    with pytest.raises(ValueError, match="no") as caught:
        names["build"]()
    assert user_code.user_line(caught.value) == "  model/mine.py:2: call()"


def test_the_standard_library_is_not_the_users_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """conda and pixi may put Python itself into the project."""
    monkeypatch.setattr(user_code, "PROJECT", tmp_path)
    for path, said in (("model/mine.py", "  model/mine.py:1"), ("env/lib/python3/random.py", "")):
        monkeypatch.setattr(user_code, "STANDARD_LIBRARY", tmp_path / "env" / "lib" / "python3")
        with pytest.raises(ZeroDivisionError) as caught:
            exec(compile("1 / 0", tmp_path / path, "exec"))
        assert user_code.user_line(caught.value) == said
