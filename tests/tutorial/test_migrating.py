"""The projects of docs/migrating.md train, test and resume exactly, and its tables name what exists."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import train
from tests.conftest import load_script
from tests.helpers import ROOT, equal, lines, resumed
from tests.tutorial import page
from utils.registry import MODELS, REGISTRIES

PAGE = ROOT / "docs" / "migrating.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILES = {path: text for _, path, text in page.FILE.findall(TEXT)}
OFTEN = ("trainer.save_every_steps=2", "trainer.keep_last=null", "trainer.pictures_every=0", "trainer.verbosity=0")


@pytest.fixture(scope="module", autouse=True)
def _components(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The page's components, registered."""
    folder = tmp_path_factory.mktemp("registered")
    with page.following(folder):
        for path, text in FILES.items():
            page.write(folder, path, text, PAGE.name)
        yield


def write_digits(folder: Path) -> None:
    """Digits of 8x8, each a bright row, with sample weights."""
    random = np.random.default_rng(0)
    for name, count in (("train", 120), ("test", 40)):
        labels = np.arange(count) % 8
        images = random.normal(0, 0.3, (count, 1, 8, 8)).astype(np.float32)
        images[np.arange(count), 0, labels] += 1
        weights = random.uniform(0.5, 1, count).astype(np.float32)
        np.savez(folder / f"{name}.npz", images=images, labels=labels, weights=weights)


def trained(name: str, folder: Path, *overrides: str) -> Path:
    config = folder / f"{name}.json"
    config.write_text(FILES[f"configs/{name}.json"])
    return train.main(["-c", str(config), f"trainer.save_dir={folder / 'saved'}", *OFTEN, *overrides]).run_dir


@pytest.mark.slow
@pytest.mark.parametrize(("name", "logged"), [("digits", "penalty"), ("denoiser", "gain")])
def test_a_project_trains_tests_and_resumes_exactly(name: str, logged: str, tmp_path: Path) -> None:
    write_digits(tmp_path)
    own = [f"data_loader.args.data_dir={tmp_path}", "data_loader.args.num_workers=0"] if name == "digits" else []
    run = trained(name, tmp_path, *own)
    epochs = lines(run)
    assert {"loss", "val_loss", logged, f"val_{logged}", "lr"} <= epochs[-1].keys()
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    equal(run, resumed(run, tmp_path))
    assert logged in load_script("test").main(["-r", str(run)])


def old_model(text: str) -> Any:
    """The model of a "before" block, which is as it was written for the other template."""
    scope: dict[str, Any] = {"BaseModel": torch.nn.Module, "nn": torch.nn, "F": F}
    exec(text, scope)
    return scope["DigitsModel"]()


def test_the_model_after_is_the_one_before_without_log_softmax() -> None:
    (before,) = re.findall(r"```python\n# before: model/model.py\n(.*?)```", TEXT, flags=re.DOTALL)
    old, new = old_model(before), MODELS["DigitsModel"]()
    new.load_state_dict(old.state_dict())
    images = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(old(images), new(images).log_softmax(1))


def test_the_files_and_keys_that_the_page_names_exist() -> None:
    known = (ROOT / "docs" / "config.md").read_text()
    keys = re.findall(r"`((?:trainer|runtime|optimizer|model)\.[a-z_]+)`", TEXT.split("### A project")[0])
    keys += re.findall(r"`((?:trainer|runtime|optimizer|model)\.[a-z_]+)`", TEXT.split("## From a Lightning module")[1])
    there = {f"trainer.{name}" for name in ("save_freq",)}
    assert len(keys) > 30
    assert not [key for key in {*keys} - there if f"| `{key}` |" not in known]
    rows = re.findall(r"^\| `[^|]*\| (`[^|]*)\|$", TEXT.split("### Files")[1].split("### Keys")[0], flags=re.MULTILINE)
    paths = {path for row in rows for path in re.findall(r"`([\w/]+\.(?:py|json))`", row)}
    assert len(paths) > 8
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_hook_of_a_trainer_or_a_loader_that_the_page_names_exists() -> None:
    from base.base_data_loader import BaseDataLoader
    from base.base_trainer import BaseTrainer

    names = set(re.findall(r"`(?:self\.)?([a-z_]+)\(?[^`]*`", TEXT.partition("### A project")[0])) & {
        "begin_epoch", "facts", "collate", "sample_weights", "lengths", "validation_data", "train_step", "eval_step",
        "picture", "text", "stateful", "logs", "training_data", "test_data",
    }  # fmt: skip
    assert len(names) > 8
    assert not [name for name in names if not hasattr(BaseTrainer, name) and not hasattr(BaseDataLoader, name)]


@pytest.mark.parametrize("former", ["arch", "n_gpu"])
def test_an_old_key_is_answered_with_the_new_one(former: str, tmp_path: Path) -> None:
    from utils.errors import UserError

    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(FILES["configs/digits.json"]), former: 1}))
    with pytest.raises(UserError, match='"model"' if former == "arch" else '"runtime"'):
        train.main(["-c", str(config)])


def test_each_change_of_other_projects_has_a_line() -> None:
    rows = re.findall(r"^\| .* \|$", TEXT.split("### What projects")[1].split("### A project")[0], flags=re.MULTILINE)
    assert len(rows) == 2 + 33
    assert all(row.count(" | ") == 1 and len(row.split(" | ")[1]) > 10 for row in rows[2:])


def test_the_components_are_those_of_the_page() -> None:
    assert {"DigitsModel", "Denoiser"} <= REGISTRIES["model"].own().keys()
    assert "model.digits_model" in sys.modules
