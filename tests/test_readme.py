"""The examples of the README work as printed."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from base.base_trainer import BaseTrainer
from tests import forked
from tests.helpers import PATIENCE, ROOT, blocks, copy_project, same, state
from utils.config.located_json import parse

pytestmark = pytest.mark.slow

PATH = ROOT / "TEMPLATE.md"  # in a project made from the template, whose README is its own
PAGE = PATH if PATH.exists() else ROOT / "README.md"
README = PAGE.read_text()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the README's model, data, metric and trainer in it."""
    target = copy_project(tmp_path_factory.mktemp("readme"))
    my_net, my_data, my_metric, my_trainer = blocks(PAGE, "python")
    (target / "trainer" / "mixup.py").write_text(my_trainer)
    (target / "model" / "my_net.py").write_text(my_net)
    (target / "data_loader" / "my_data.py").write_text(my_data)
    with (target / "model" / "metric.py").open("a") as file:
        file.write("\n\n" + my_metric)
    return target


def run(project: Path, *arguments: str) -> CompletedProcess[str]:
    return forked.run("train.py", *arguments, cwd=project, timeout=PATIENCE)


def test_the_readmes_model(project: Path) -> None:
    done = run(project, 'model={"type": "MyNet", "args": {"in_features": 1000}}', "--lr=1e-5", "trainer.epochs=2")
    assert done.returncode == 0, done.stderr
    wrong = run(project, 'model={"type": "MyNet", "args": {"in_features": "many"}}')
    assert wrong.returncode == 2
    assert "should be an integer" in wrong.stderr


def own(project: Path, **keys: Any) -> Path:
    """A config with the README's data; the arguments replace its keys."""
    config = {
        "name": "own",
        "data_loader": {"type": "MyLoader", "args": {"batch_size": 16, "validation_split": 0.2}},
        "model": {"type": "LeNet"},
        "loss": "cross_entropy",
        "optimizer": "Adam",
        "trainer": {"epochs": 2},
    }
    path = project / "own.json"
    path.write_text(json.dumps({**config, **keys}))
    return path


def test_the_readmes_data_and_metric(project: Path) -> None:
    metrics, trainer = ["accuracy", "confidence"], {"epochs": 2, "monitor": "max val_confidence"}
    config = own(project, metrics=metrics, trainer=trainer)
    done = run(project, "-c", str(config), "data_loader.args.num_workers=2")
    assert done.returncode == 0, done.stderr
    assert "confidence" in done.stdout


def test_the_readmes_trainer_resumes_exactly(project: Path) -> None:
    (options,) = re.findall(r"`python train\.py -c \S+ (trainer\.type=.*)` trains", README)
    for name, epochs in (("whole", 2), ("halves", 1)):
        config = own(project, name=name)
        done = run(project, "-c", str(config), f"trainer.epochs={epochs}", *shlex.split(options))
        assert done.returncode == 0, done.stderr
    whole, halves = (next((project / "saved" / name).iterdir()) for name in ("whole", "halves"))
    assert run(project, "-r", str(halves), "trainer.epochs=2").returncode == 0
    for part in ("model", "optimizer", "random"):
        assert same(state(whole)[part], state(halves)[part]), part


def test_configs_in_the_readme_are_json() -> None:
    for block in blocks(PAGE, "json"):
        assert parse(block, "README.md").value["name"]


def test_messages_in_the_readme_are_what_is_printed(project: Path) -> None:
    for command, message in re.findall(r"\$ python train\.py (.*)\n(error: .*)\n", README):
        assert run(project, *command.split()).stderr.strip() == message


def test_a_step_enters_the_files_that_are_named_and_no_others(
    fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = README.split("A training step passes through")[1].split("Then `utils/config")[0]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    singly = page.split("On its way")[1].split("A map-style")[0]
    named = {Path(name).name for name in re.findall(r"`([\w/]+\.py)`", path + singly)}
    entered = set[str]()
    step = BaseTrainer.optimizer_step

    def follow(frame: Any, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(ROOT) and "site-packages" not in file.parts:
            entered.add(file.relative_to(ROOT).as_posix())

    def watched(self: BaseTrainer, *args: Any) -> Any:
        # from the sixth step on to the ninth, and the loop between them
        sys.setprofile(follow if 5 <= self.progress.steps < 8 else None)
        return step(self, *args)

    monkeypatch.setattr(BaseTrainer, "optimizer_step", watched)
    loader = {"num_samples": 160, "num_classes": 10, "batch_size": 8}
    net = {"type": "TwoLayerNet", "args": {"in_features": 6, "hidden_features": 5, "out_features": 10}}
    for model, args in (
        ("LeNet", {"input_shape": [3, 32, 32], "validation_split": 8}),
        (net, {"input_shape": [6], "shuffle": False}),
    ):
        keys = {"model": model, "data_loader": {"type": "RandomTensorLoader", "args": {**loader, **args}}}
        fit("trainer.epochs=1", "trainer.log_every_steps=100", "trainer.monitor=null", **keys)
    own = {"model", "tests"}
    found = {Path(file).name for file in entered if file.split("/")[0] not in own}
    assert found == named


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"`((?:base|utils|trainer|model|logger|configs|docs)/[\w./]+)`", README):
        if name not in ("model/my_net.py", "trainer/mixup.py"):
            assert (ROOT / name).exists(), name


def test_the_path_of_a_step_has_the_length_that_is_stated() -> None:
    section = " ".join(README.split("## Read the code")[1].split("\n## ")[0].split())
    path, rest = section.split("A training step passes through")[1].split("Then `utils/config")
    stated = [int(number.replace(",", "")) for number in re.findall(r"about ([\d,]+) lines", section)]
    files = re.findall(r"`([\w/]+\.py)`", path)
    more = re.findall(r"`([\w/]+\.py)`", "`utils/config" + rest)
    assert (len(files), len(more)) == (8, 3)
    for names, lines in zip((files, files + more), stated, strict=True):
        # a project's own trainer may be longer than ours
        actual = sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in names)
        assert actual == pytest.approx(lines, rel=0.05)
