"""What a registry offers of a library, whatever its version."""

import importlib
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from utils.errors import UserError
from utils.paths import code_digests, project_path
from utils.registry import LOSSES, METRICS, OPTIMIZERS, SCHEDULERS, Registry, import_components


class NewOptimizer(torch.optim.SGD):
    def __init__(self, params: object, lr: float = 1e-3, boost: "UnknownType" = None) -> None:  # type: ignore[name-defined]  # noqa: F821
        """An annotation that cannot be resolved at runtime."""


class NewLoss(nn.Module):
    def __init__(self, reduction: str = "mean") -> None:
        """Derived from nn.Module alone."""

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs - targets


def test_what_every_supported_torch_has_is_offered() -> None:
    assert {"Adam", "AdamW", "SGD", "RMSprop", "LBFGS", "Adafactor", "Muon"} <= set(OPTIMIZERS.names())
    assert {"StepLR", "OneCycleLR", "CosineAnnealingLR", "SequentialLR"} <= set(SCHEDULERS.names())
    assert {"MSELoss", "CrossEntropyLoss", "BCEWithLogitsLoss", "HuberLoss"} <= set(LOSSES.names())
    assert "AdaptiveLogSoftmaxWithLoss" not in LOSSES.names()


def test_what_a_newer_torch_adds_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim, "NewOptimizer", NewOptimizer, raising=False)
    monkeypatch.setattr(torch.optim, "__all__", ["SGD", "NewOptimizer", "lr_scheduler"])
    monkeypatch.setattr(nn, "NewLoss", NewLoss, raising=False)
    assert OPTIMIZERS.names() == ["NewOptimizer", "SGD"]
    assert list(OPTIMIZERS.parameters("NewOptimizer")) == ["lr", "boost"]
    assert not OPTIMIZERS.takes_any("NewOptimizer")
    assert "NewLoss" in LOSSES.names()


def test_a_public_name_that_does_not_exist_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.ModuleType("library")
    library.__dict__.update(__all__=["Present", "Absent"], Present=NewLoss, Unlisted=NewLoss, Module=nn.Module)
    monkeypatch.setitem(__import__("sys").modules, "library", library)
    registry = Registry("thing", library="library", base="Module")
    assert registry.names() == ["Present"]
    assert registry.get("Absent") is None
    assert registry.suggest("Presnt") == 'did you mean "Present"?'


def test_a_cell_of_a_notebook_can_be_run_again() -> None:
    registry = Registry("thing")
    cell = types.ModuleType("a_notebook")
    cell.__dict__["registry"] = registry
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "a_notebook", cell)
        for number in (1, 2):
            exec(f"@registry.register\ndef accuracy(): return {number}\n", cell.__dict__)
            assert registry["accuracy"]() == number


def test_a_file_cannot_have_two_components_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a_file_of_things.py"
    once = "from utils.registry import METRICS\n\n\n@METRICS.register\ndef twice() -> int: ...\n"
    file.write_text(once)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(file.stem)
    importlib.reload(module)
    file.write_text(once + once)
    with pytest.raises(UserError, match=r"two metrics are called twice:\n  .*:4\n  .*:9\nRename one of them"):
        importlib.reload(module)
    METRICS.unregister("twice")


def test_files_that_an_editor_or_an_archive_leaves_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").touch()
    (tmp_path / "model" / ".#net.py").symlink_to("me@host.1:2")
    (tmp_path / "model" / "._net.py").write_bytes(b"\x00\x05")
    (tmp_path / "train.py").touch()
    monkeypatch.setattr("utils.registry.PROJECT", tmp_path)
    monkeypatch.setattr("utils.paths.PROJECT", tmp_path)
    import_components()
    assert code_digests()["model"]


def test_a_file_that_is_edited_after_its_import_is_named_until_it_is_reloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model" / "edited_net.py"
    file.parent.mkdir()
    file.write_text("width = 1\n")
    monkeypatch.setattr("utils.registry.PROJECT", tmp_path)
    monkeypatch.setattr("model.__path__", [str(file.parent)])
    monkeypatch.delattr(Path, "read_bytes")  # reading the files again would slow down the start of each run
    import_components()
    import_components()
    assert capsys.readouterr().err == ""
    file.write_text("width = 200\n")
    import_components()
    assert capsys.readouterr().err.endswith(
        "edited_net.py was saved after it was imported; to use its new code: importlib.reload(model.edited_net)\n"
    )
    importlib.reload(sys.modules["model.edited_net"])
    import_components()
    assert capsys.readouterr().err == ""
    del sys.modules["model.edited_net"]


def test_files_that_cannot_be_read_are_left_out_of_the_digest_of_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model" / "folder.py").mkdir(parents=True)
    (tmp_path / "model" / "__init__.py").touch()
    (tmp_path / "model" / "gone.py").symlink_to("nowhere")
    (tmp_path / "model" / os.fsdecode(b"\xff.py")).touch()
    monkeypatch.setattr("utils.paths.PROJECT", tmp_path)
    before = code_digests()["model"]
    (tmp_path / "model" / "net.py").touch()
    assert code_digests()["model"] != before


def test_the_digest_of_the_code_changes_with_the_folder_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("small", "large"):
        (tmp_path / "model" / folder).mkdir(parents=True)
    (tmp_path / "model" / "__init__.py").touch()
    (tmp_path / "model" / "small" / "net.py").write_text("WIDTH = 1\n")
    monkeypatch.setattr("utils.paths.PROJECT", tmp_path)
    before = code_digests()["model"]
    (tmp_path / "model" / "small" / "net.py").rename(tmp_path / "model" / "large" / "net.py")
    assert code_digests()["model"] != before


def test_the_home_of_nobody_is_not_a_traceback() -> None:
    with pytest.raises(UserError, match="~nobody-here/data: unknown home directory"):
        project_path("~nobody-here/data")


def test_the_name_within_a_library_is_suggested() -> None:
    assert OPTIMIZERS.suggest("torch.optim.AdamW") == 'did you mean "AdamW"?'
    assert LOSSES.suggest("nn.CrossEntropyLoss") == 'did you mean "CrossEntropyLoss"?'
