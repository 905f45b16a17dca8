"""The commands as a user types them: what they print, what they leave, and their exit status."""

import bz2
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import train
from tests import forked
from tests.conftest import load_script
from tests.helpers import PATIENCE, ROOT, Fit, lines
from utils import cli
from utils.errors import UserError

Write = Callable[..., Path]


def run(script: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.slow
def test_train_and_test_from_another_folder(write_config: Write, tmp_path: Path) -> None:
    write_config(trainer={"tensorboard": True})
    done = run("train.py", "-c", "config.json", "--lr", "0.05", "trainer.epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout, "control characters in a file"
    assert "1/1" in done.stdout
    (folder,) = (tmp_path / "saved" / "small").iterdir()
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith((".", "events", "curves"))) == [
        "checkpoints",
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "train.log",
    ]
    assert json.loads((folder / "config.json").read_text())["optimizer"]["args"]["lr"] == 0.05
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["command"].endswith(["train.py", "-c config.json --lr 0.05 trainer.epochs=1"][1])
    assert environment["device"] == "cpu"
    assert "torch" in environment["packages"]

    tested = forked.run(ROOT / "test.py", "-r", f"saved/small/{folder.name}", cwd=tmp_path, timeout=PATIENCE)
    assert tested.returncode == 0, tested.stderr
    found = json.loads((folder / "test" / "metrics.json").read_text())
    assert found["samples"] == 20
    assert found["checkpoint"] == "last.pth"
    assert "accuracy" in tested.stdout
    assert len(list((tmp_path / "saved" / "small").iterdir())) == 1, "testing made a new run folder"


@pytest.mark.slow
def test_nothing_is_imported_that_is_not_used(write_config: Write) -> None:
    code = f"""
import sys, train

def imported(settings, *names):
    train.main(["-c", {str(write_config())!r}, "trainer.verbosity=0", "trainer.epochs=1", *settings.split()])
    return [name for name in names if name in sys.modules]

print(imported("trainer.tensorboard=false", "extras.tensorboard", "tensorboard", "matplotlib"))
without_pictures = "trainer.tensorboard=true trainer.pictures_every=0"
print(imported(without_pictures, "matplotlib", "extras.report.figures", "torch.distributed.checkpoint"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("train.py", ["trainer.epoch=3"], 'did you mean "epochs"'),
        ("train.py", ["-c", "nothing.json"], "nothing.json"),
        ("train.py", ["-r", "nothing"], "no such run"),
        ("train.py", ["--resum"], "unrecognized arguments"),
        ("train.py", ["--epochs", "5"], "set a key of the config as KEY=VALUE, without dashes, e.g. trainer.epochs=5"),
        ("train.py", [str(ROOT / "config.json")], "-c takes a config, -r a run"),
        ("train.py", ["-c", str(ROOT / "configs" / "two_layer_net")], 'did you mean "two_layer_net.json"?'),
        ("test.py", ["-r", "nothing"], "no such run"),
        ("test.py", ["--out"], "expected one argument"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(
    script: str, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = train.main if script == "train.py" else load_script("test").main
    status = cli.run(main, arguments)
    printed = capsys.readouterr()
    assert status == 2
    assert says in printed.err
    assert printed.err.count("error:") == 1
    assert printed.out == ""


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_a_process_ends_with_the_message_and_status_2(script: str, tmp_path: Path) -> None:
    done = forked.run(ROOT / script, "-r", "nothing", cwd=tmp_path, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: " in done.stderr
    assert "no such run" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["-c", "-r", "--init-from"])
def test_a_name_that_no_file_can_have_is_the_users_error(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(train.main, [option, "x" * 300]) == 2
    assert "x" * 300 in capsys.readouterr().err


@pytest.mark.parametrize("script", ["train", "test"])
def test_help_ends_with_commands_to_try(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = train.main if script == "train" else load_script(script).main
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    _, _, examples = capsys.readouterr().out.partition("\nexamples:\n")
    assert len(examples.splitlines()) >= 2
    assert all(line.startswith(f"  python {script}.py ") for line in examples.splitlines())


def test_a_mistake_leaves_no_run_folder(write_config: Write, tmp_path: Path) -> None:
    for wrong in ("data_loader.args.num_samples=0", "model.args.in_features=-1", "trainer.monitor=min val_f1"):
        assert cli.run(train.main, ["-c", str(write_config()), wrong]) == 2
    assert not (tmp_path / "saved").exists()


def test_testing_on_a_device_that_is_not_there_names_the_override(fit: Fit) -> None:
    run = fit("trainer.epochs=1").run_dir
    with pytest.raises(UserError, match=r'^override runtime.device=cudda: runtime.device: "cudda" is not a device'):
        load_script("test").main(["-r", str(run), "-d", "cudda"])


@pytest.mark.slow
def test_testing_takes_the_best_checkpoint_or_the_one_named(fit: Fit) -> None:
    test = load_script("test")
    result = fit("trainer.epochs=6", "trainer.monitor=max val_loss", "--lr=0.5", "trainer.keep_last=null")
    best = max(lines(result.run_dir), key=lambda record: record["val_loss"])
    assert best["epoch"] < 6
    values = {}
    for name in ("", "checkpoints/best.pth", f"checkpoints/step-{best['step']:08d}.pth", "checkpoints/last.pth"):
        values[name] = test.main(["-r", str(result.run_dir / name)])
    first, second, third, last = values.values()
    assert first == second == third != last
    found = json.loads((result.run_dir / "test" / "metrics.json").read_text())
    assert {key: found[key] for key in last} == last


def test_testing_a_run_reads_no_training_data(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    result = fit()

    def unread(self: Any, *, augment: bool) -> Any:
        raise AssertionError("the training data was read")

    monkeypatch.setattr("data_loader.random_tensor.RandomTensorLoader.training_data", unread)
    assert load_script("test").main(["-r", str(result.run_dir)])["accuracy"] >= 0


def run_code(folder: Path, code: str, *arguments: str, component: str = "") -> list[str]:
    """The words that a script of a user's prints, which ends well. component: a module beside it, of this name."""
    (folder / "component.py").write_text(component)
    script = folder / "script.py"
    start = f"import atexit, gc, sys\nsys.path[:0] = [{str(ROOT)!r}, {str(folder)!r}]\ngc.disable()\n"
    script.write_text(f"{start}from utils import cli\n{code}\nsys.exit(cli.run(main))\n")
    done = run(str(script), *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_a_process_ends_without_garbage_collection_if_a_run_left_only_what_is_closed(tmp_path: Path) -> None:
    code = """
from pathlib import Path

from utils.files import LogFile

def main(argv):
    log = LogFile(Path(sys.argv[1]))
    log.itself = log  # only garbage collection frees it
    log.append(b"line")
    gc.callbacks.append(lambda phase, info: print(phase))

def last():
    print(gc.get_freeze_count() > 1000)
    gc.callbacks.clear()  # the interpreter's own collection finds nothing

atexit.register(last)
gc.enable()
"""
    assert run_code(tmp_path, code, str(tmp_path / "train.log")) == ["True"]


def test_a_file_that_a_component_leaves_open_is_complete(tmp_path: Path) -> None:
    # not a gzip file, whose end Python 3.14 itself loses
    component = f"""
import bz2, io
FILES = [
    io.TextIOWrapper(io.BufferedWriter(io.BytesIO())),
    open({str(tmp_path / "plain.txt")!r}, "w"),
    bz2.open({str(tmp_path / "packed.bz2")!r}, "wt"),
]

def write():
    for file in FILES:
        file.write("the last line")
"""
    code = """
def main(argv):
    from component import write
    write()

gc.enable()
"""
    assert run_code(tmp_path, code, component=component) == []
    assert (tmp_path / "plain.txt").read_text() == "the last line"
    with bz2.open(tmp_path / "packed.bz2", "rt") as file:
        assert file.read() == "the last line"


@pytest.mark.parametrize("opened", ["at the import", "later"])
def test_a_file_of_a_module_that_is_frozen_is_complete(tmp_path: Path, opened: str) -> None:
    written = tmp_path / "written.txt"
    at_import, later = ("OPEN()", "None") if opened == "at the import" else ("None", "OPEN()")
    component = f"""
OPEN = lambda: open({str(written)!r}, "w")
FILE = {at_import}

def write():
    global FILE
    FILE = FILE or {later}
    FILE.write("the last line")
"""
    code = """
from utils.garbage_collection import frozen

def main(argv):
    import component
    with frozen():
        pass
    component.write()
"""
    assert run_code(tmp_path, code, component=component) == []
    assert written.read_text() == "the last line"


def test_overrides_before_and_after_options(write_config: Write) -> None:
    config = str(write_config())
    for arguments in (["trainer.epochs=1", "-c", config, "--bs", "40"], ["-c", config, "--bs=40", "trainer.epochs=1"]):
        assert train.main(arguments).steps == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--lr", "0.1", "optimizer.args.lr=0.2"], "--lr is short for optimizer.args.lr, and there is optimizer"),
        (["runtime.device=cpu", "-d", "cuda"], "--device is short for runtime.device, and there is runtime"),
        (
            ["--init-from", str(ROOT), "model.weights.file=a.pth"],
            "--init-from is short for model.weights.file, and there is model.weights.file=a.pth too; leave one",
        ),
        (["-r", "", "trainer.epochs=3"], "an argument after -r is empty; is a shell variable unset?"),
        ([""], "an argument is empty; is a shell variable unset?"),
        (["--list", "--note", "wider"], "--list cannot be combined"),
    ],
)
def test_options_that_are_wrong_whatever_the_config_is(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        cli.train_options("", words)


@pytest.mark.skipif(not (ROOT / "new_project.py").exists(), reason="this is such a project")
class TestANewProject:
    @staticmethod
    def files() -> ModuleType:
        """Imported by its name: a project has no dev/."""
        return importlib.import_module("dev.project_files")

    @pytest.mark.slow
    def test_it_has_everything_but_the_runs_and_trains(self, tmp_path: Path) -> None:
        target = tmp_path / "mine"
        assert load_script("new_project").main([str(target)]) == 0
        names = {path.name for path in target.iterdir()}
        assert {"train.py", "test.py", "config.json", "configs", "Makefile", "README.md", "tests", "LICENSE"} <= names
        assert names.isdisjoint({".git", ".venv", "data", "dev", "new_project.py"})
        assert "extras" in names
        for page in ("TEMPLATE.md", "docs/architecture.md"):
            text = (target / page).read_text()
            assert "new_project.py" not in text
            assert "dev/" not in text
        makefile = (target / "Makefile").read_text()
        assert not [
            word for word in ("bench", "dev/", "test-lowest", "test-accelerator", "test-minimal") if word in makefile
        ]
        assert [path.name for path in (target / "saved").iterdir()] == [".gitkeep"]
        assert not list(target.rglob("__pycache__"))
        assert forked.run("train.py", "trainer.epochs=1", cwd=target, timeout=PATIENCE).returncode == 0
        assert list(target.glob("saved/*/*/metrics.jsonl"))
        shutil.rmtree(target)

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [[], ["--minimal"]])
    def test_its_tests_pass_without_the_examples(self, tmp_path: Path, options: list[str]) -> None:
        target = tmp_path / "mine"
        assert load_script("new_project").main([str(target), *options]) == 0
        assert (target / "extras").exists() == ("schema:" in (target / "Makefile").read_text()) == (not options)
        assert {path.name for path in target.glob("tests/*")} == {"__init__.py", "conftest.py", "test_project.py"}
        assert "selenium" not in (target / "requirements-dev.txt").read_text()
        makefile, workflow = (target / "Makefile").read_text(), (target / ".github/workflows/test.yml").read_text()
        for command in re.findall(r"run: make (\S+)", workflow):
            assert f"\n{command}:" in makefile
        assert "train.py" not in workflow  # its data may not be there
        for name in ("model/lenet.py", "data_loader/cifar10.py", "data_loader/image_folder.py"):
            (target / name).unlink()
        for path in target.glob("configs/*.json"):
            path.unlink()
        # the schema has what is gone
        words = ["pytest", "-p", "no:cacheprovider", "-k", "not editors"]
        done = forked.run("-m", *words, cwd=target, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout
        assert "skipped" not in done.stdout

    def test_what_the_readme_says_of_what_is_left_out_is_left_out(self) -> None:
        readme = "One. `python dev/kill.py` kills\nruns. Two.\n\n| a |\n| extras/ |\n\nA copy: `python new_project.py`."
        without = self.files().without_mentions
        assert without(readme, ("dev", "extras", "new_project.py")) == "One. Two.\n\n| a |"

    def test_a_folder_that_is_there_stays_as_it_is(self, tmp_path: Path) -> None:
        assert load_script("new_project").main([str(tmp_path)]) == 2
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").touch()
        assert load_script("new_project").main([str(tmp_path / "file" / "mine")]) == 2
        assert capsys.readouterr().err == f"error: {tmp_path}/file/.mine.unfinished: Not a directory\n"

    @pytest.mark.parametrize("git", [True, False])
    def test_nothing_else_that_lies_there_comes_along(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, git: bool
    ) -> None:
        files = self.files()
        root = tmp_path / "project"
        own = ["train.py", "README.md", "model/__init__.py", "docs/a.md", ".gitignore"]
        for name in (*own, "new_project.py", "saved/.gitkeep"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("/data/\n__pycache__\n" if name == ".gitignore" else "")
        if git:
            for words in (["init", "-q"], ["add", "."]):
                subprocess.run(["git", *words], cwd=root, check=True)
        for name in (
            "scratch/notes.txt",
            "env/bin/python",
            "data/x",
            "a.log",
            "model/__pycache__/x.pyc",
            "model/mine.py",
        ):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        monkeypatch.setattr(files, "ROOT", root)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
        files.create(tmp_path / "mine")
        copied = {str(path.relative_to(tmp_path / "mine")) for path in (tmp_path / "mine").rglob("*") if path.is_file()}
        assert copied == {*own, "model/mine.py", "saved/.gitkeep", "TEMPLATE.md", ".template.json"}

    def test_without_git_all_of_it_is_found_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.files()
        tracked = {path for path in found.files() if path.parts[0] != "saved"}
        monkeypatch.setenv("PATH", "")
        assert found._listed_by_git("--cached") == []
        assert tracked <= set(found.files())


def test_an_override_after_resume_keeps_its_place() -> None:
    words = ["trainer.epochs=1", "-r", "trainer.epochs=2", "seed=3"]
    assert cli.train_options("", words).overrides == ["trainer.epochs=1", "trainer.epochs=2", "seed=3"]
