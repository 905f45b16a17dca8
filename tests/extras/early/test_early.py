"""What is answered before torch is imported is what the usual checks say, and nothing that is not certain."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from extras.early import answer, cache, names
from extras.early.answer import HEAVY, not_importable
from extras.early.typos import find_typos
from tests.configs import SOUND, message
from tests.helpers import PATIENCE, ROOT
from utils import cli
from utils.errors import ConfigError, UserError

# runs a script as the command does, and prints which heavy modules it has imported
IMPORTED = """
import runpy, sys
sys.argv = sys.argv[1:]
status = 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    status = ended.code
print("imported:", *(name for name in ("torch", "torchvision", "torchmetrics", "numpy") if name in sys.modules))
sys.exit(status)
"""

OTHER_WAYS = "this project registers components in other ways than by decorators, too"


def early(path: Path, *overrides: str) -> str:
    """What is said of a config before torch is there; empty if nothing is."""
    try:
        with suppress(ImportError), not_importable(*HEAVY):
            find_typos(path, overrides)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """The sound config with this in place of that."""

    def write(right: str = "", wrong: str = "") -> Path:
        path = tmp_path / "config.json"
        assert right in SOUND
        path.write_text(SOUND.replace(right, wrong, 1) if right else SOUND)
        return path

    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--help"], 0, "override a key of the config"),
        (["--foo"], 2, "unrecognized arguments: --foo"),
        (["trainer.epoch=3"], 2, 'unknown key "epoch"; did you mean "epochs"?'),
        (
            ["--check", "--lr", "0.1", "model.type=TwoLayerNett"],
            2,
            'unknown model "TwoLayerNett"; did you mean "TwoLayerNet"?',
        ),
        (["-c", "config.jso"], 2, 'did you mean "config.json"?'),
        (["-c", "configs/lenet_random"], 2, 'did you mean "lenet_random.json"?'),
        (["test.py", "--help"], 0, "a run folder, or a checkpoint file in one"),
        (["test.py", "-r", "x", "--compare", "y"], 2, "--compare: not allowed with argument -r/--resume"),
        (["predict.py", "--help"], 0, "a picture, a folder of pictures"),
        (["sweep.py", "--help"], 0, "or the values to try"),
        (["export.py", "--help"], 0, "only the weights"),
    ],
)
def test_torch_is_not_imported_for_it(words: list[str], status: int, says: str) -> None:
    if "unknown model" in says and names.own_names() is None:
        pytest.skip(OTHER_WAYS)
    script = [] if words[0].endswith(".py") else ["train.py"]
    command = [sys.executable, "-c", IMPORTED, *script, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == status, done.stderr
    assert says in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split() == ["imported:"]


@pytest.mark.parametrize(
    ("right", "wrong", "overrides"),
    [
        ('"monitor"', '"moniter"', []),
        ('"trainer"', '"trianer"', []),
        ('"TwoLayerNet"', '"TwoLayerNett"', []),
        ('"OneCycleLR"', '"OneCycleLr"', []),
        ('"accuracy"', '"acuracy"', []),
        ('"cross_entropy"', '"nll_loss"', []),
        ('"name": "digits",', '"name": "digits"', []),
        ('"epochs": 2', '"epochs": "2"', []),
        ("", "", ["trainer.epoch=3", "optimizer.args.lr=0.5"]),
        ("", "", ["optimizer.type=SDG", "trainer.epoch=3"]),
        ("", "", ["optimizer.args.lr=0.5", "trainer=3"]),
        ("", "", ["seed"]),
    ],
)
def test_a_typo_is_told_in_the_same_words(
    config: Callable[..., Path], right: str, wrong: str, overrides: list[str]
) -> None:
    path = config(right, wrong)
    told = early(path, *overrides)
    if not told and names.own_names() is None:
        pytest.skip(OTHER_WAYS)
    assert told == message(path, *overrides) != ""


@pytest.mark.parametrize(
    ("right", "wrong", "overrides"),
    [
        ("", "", []),
        ("", "", ["optimizer.args.lr=0.5", "model.args.bias=false"]),
        ("", "", ["trainer.epoch=3", "optimizer.args.momentun=1"]),  # two mistakes: all at once
        ("", "", ["trainer.epoch=3", "model.args.hiden_features=1"]),
        ("", "", ["trainer.epoch=3", "model.args.hidden_features=many"]),
        ("", "", ["trainer.epoch=3", "model.args.hidden_features=true"]),
        ("", "", ["trainer.epoch=3", "model.args.bias=null"]),
        ('"hidden_features": 4, ', "", ["trainer.epoch=3"]),
        ("", "", ["model=LeNet", "data_loader.args.btch_size=1"]),
        ('"accuracy"', '"MulticlassAccuracy"', []),
        ('"loss": "cross_entropy",', "", ["trainer.epoch=3"]),
        ('"TwoLayerNet"', '"BaseModel"', []),  # defined or imported somewhere, and not registered
    ],
)
def test_what_is_not_certain_is_left_to_the_usual_checks(
    config: Callable[..., Path], right: str, wrong: str, overrides: list[str]
) -> None:
    assert early(config(right, wrong), *overrides) == ""


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("from utils.registry import MODELS\n\n@MODELS.register\nclass Net: ...\n", True),
        ("from utils.registry import MODELS\n\nMODELS.register(type('Net', (), {}))\n", False),
        ("from utils.registry import MODELS as M\n\n@M.register\nclass Net: ...\n", False),
        ("from utils.registry import MODELS\n\nif True:\n    @MODELS.register\n    class Net: ...\n", False),
        ("from utils.registry import MODELS\nfor each in ():\n    MODELS.register(each)\n", False),
        ("import another_package_that_may_register\nclass Net(\n", False),
    ],
)
def test_names_are_read_only_from_plain_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, known: bool
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "net.py").write_text(text)
    monkeypatch.setattr(names, "PROJECT", tmp_path)
    names.own_names.cache_clear()
    try:
        found = names.own_names()
        assert (found is not None) == known
        assert not known or (found and found.registered["MODELS"] == {"Net"})
    finally:
        names.own_names.cache_clear()


def test_the_names_are_those_of_the_registries() -> None:
    from utils.registry import REGISTRIES

    own = names.own_names()
    if own is None:
        pytest.skip(OTHER_WAYS)
    for kind, registry in REGISTRIES.items():
        assert {name for name in registry.own() if not registry.own()[name].__module__.startswith("tests")} <= set(
            own.registered[names.VARIABLES[kind]]
        )
        assert all(names.is_known(kind, name, own) for name in registry.names() if name not in registry.own())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a listing was made from, and a cache for it."""
    file = tmp_path / "model" / "net.py"
    file.parent.mkdir()
    file.write_text("width = 1\n")
    monkeypatch.setattr(cache, "PROJECT", tmp_path)
    monkeypatch.setattr(cache, "CACHE", tmp_path / ".cache" / "listings.json")
    cache.keep_listing("LeNet", 80, "the text")
    return file


def test_a_listing_is_kept_as_long_as_nothing_has_changed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cached_listing("LeNet", 80) == "the text"
    assert cache.cached_listing("LeNet", 79) is None
    assert cache.cached_listing("", 80) is None
    cache.keep_listing("", 80, "all")
    assert (cache.cached_listing("", 80), cache.cached_listing("LeNet", 80)) == ("all", "the text")

    without_docstrings = SimpleNamespace(version=sys.version, path=sys.path, flags=SimpleNamespace(optimize=2))
    for name, changed in (("_libraries", lambda: ["torch-99.dist-info"]), ("sys", without_docstrings)):
        with monkeypatch.context() as patch:
            patch.setattr(cache, name, changed)
            assert cache.cached_listing("LeNet", 80) is None
    os.utime(project, ns=(0, 0))
    assert cache.cached_listing("LeNet", 80) is None
    cache.keep_listing("LeNet", 80, "a new text")
    assert (cache.cached_listing("", 80), cache.cached_listing("LeNet", 80)) == (None, "a new text")
    project.unlink()
    assert cache.cached_listing("LeNet", 80) is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"listings": {"LeNet 80": "x"}, "made_from": {"files": [1]}}', "null"]
)
def test_a_cache_of_something_else_is_not_a_cache(project: Path, content: str) -> None:
    cache.CACHE.write_text(content)
    assert cache.cached_listing("LeNet", 80) is None
    cache.keep_listing("LeNet", 80, "again")
    assert cache.cached_listing("LeNet", 80) == "again"


def test_a_known_list_is_printed_at_once(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["extras.early.answer"], "terminal_width", lambda _: 80)
    with pytest.raises(SystemExit) as ended:
        answer(cli.train_options("about", ["--list", "LeNet"]))
    assert ended.value.code == 0
    assert capsys.readouterr().out == "the text\n"
    with pytest.raises(UserError, match="--list cannot be combined"):
        cli.train_options("about", ["--list", "LeNet", "seed=1"])


def test_a_config_from_a_pipe_is_left_for_the_run_to_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"{}")
    os.close(writing)
    answer(cli.train_options("about", ["-c", f"/dev/fd/{reading}"]))
    assert os.read(reading, 9) == b"{}"
    os.close(reading)
