"""``runtime.deterministic``: the same bits in each run, also where torch's usual kernels add in no fixed order."""

import itertools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from base.base_model import BaseModel
from tests.conftest import load_script
from tests.helpers import Fit, lines, needs_extra, registering, same, state, temporarily
from trainer.trainer import Trainer
from utils.determinism import CUBLAS_VARIABLE, accept_cublas, fastest_kernels, use_deterministic_kernels
from utils.errors import UserError
from utils.registry import MODELS, TRAINERS

CPU = torch.device("cpu")


class Neighbours(BaseModel):
    """Gathers rows by index, as graph networks do. Its gradient is added by several threads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(50, 64))
        self.out = nn.Linear(64, 5)
        self.edges: Tensor
        self.register_buffer("edges", torch.randint(0, 50, (64, 400)))

    def forward(self, x: Tensor) -> Tensor:
        gathered = self.table[self.edges[: len(x)]].tanh().sum(1)  # (B, 64)
        outputs: Tensor = self.out(gathered) * x.mean(1, keepdim=True)
        return outputs


class Unpooling(BaseModel):
    """For which torch has no deterministic kernel, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        pooled, indices = nn.functional.max_pool1d(x[:, None], 2, return_indices=True)
        outputs: Tensor = self.out(nn.functional.max_unpool1d(pooled, indices, [2])[:, 0])
        return outputs


models = registering((MODELS, Neighbours, Unpooling))


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_threads")
def test_runs_that_gather_rows_end_with_the_same_bits(fit: Fit) -> None:
    runs = [fit("trainer.epochs=2", model="Neighbours").run_dir for _ in range(3)]
    for other in runs[1:]:
        assert same(state(runs[0])["model"], state(other)["model"])
        assert lines(runs[0]) == lines(other)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("setting", "mode"), [("false", 0), ("warn", 1), ("true", 2)])
def test_the_setting_is_torchs_mode_for_the_run(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, setting: str, mode: int
) -> None:
    modes, filled = [], []

    class Watching(Trainer):
        def begin_epoch(self, epoch: int) -> None:
            modes.append(torch.get_deterministic_debug_mode())
            filled.append(torch.utils.deterministic.fill_uninitialized_memory)  # type: ignore[attr-defined]

    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.get_deterministic_debug_mode(), warnings.showwarning
    with temporarily(TRAINERS, Watching):
        fit("trainer.epochs=1", "trainer.type=Watching", f"runtime.deterministic={setting}")
    assert set(modes) == {mode}
    assert set(filled) == {mode == 0}
    assert (torch.get_deterministic_debug_mode(), warnings.showwarning) == before
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", [0, 7])
def test_it_ends_a_run_that_is_to_be_exact_and_says_which_operation(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Also if it is used for the first time at a later step."""
    steps = itertools.count()
    forward = Unpooling.forward
    monkeypatch.setattr(Unpooling, "forward", lambda self, x: self.out(x) if next(steps) < first else forward(self, x))
    with pytest.raises(UserError) as error:
        fit("runtime.deterministic=true", model="Unpooling")
    message = str(error.value)
    assert message.startswith("max_unpooling2d_forward_out has no deterministic kernel in torch")
    assert "test_determinism.py:" in message
    assert "With runtime.deterministic=warn, unless your code sets it" in message


def test_a_mode_that_the_users_code_chose_is_kept() -> None:
    use_deterministic_kernels("warn", CPU)
    try:
        torch.set_deterministic_debug_mode("error")
        use_deterministic_kernels("warn", CPU)
        assert torch.get_deterministic_debug_mode() == 2
    finally:
        torch.set_deterministic_debug_mode("warn")


def test_torchmetrics_counts_without_a_table_of_samples_by_classes(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: set[int] = set()
    counting = torchmetrics.classification.MulticlassConfusionMatrix
    update = counting.update

    def watched(self: Any, *arguments: Any) -> None:
        modes.add(torch.get_deterministic_debug_mode())
        update(self, *arguments)

    monkeypatch.setattr(counting, "update", watched)
    metric = {"type": "JaccardIndex", "args": {"task": "multiclass", "num_classes": 3}}
    fit("trainer.epochs=1", metrics=[metric])
    assert modes == {0}


@pytest.mark.parametrize("looks", ["once", "at each product"])
def test_torch_takes_matrix_products_as_deterministic_without_reading_a_variable_each_time(
    monkeypatch: pytest.MonkeyPatch, looks: str
) -> None:
    """With what torch does for CUDA, here on the CPU."""
    found: list[str | None] = []
    product = torch.Tensor.__matmul__

    def checked(one: Tensor, other: Tensor) -> Tensor:
        found.append(os.environ.get(CUBLAS_VARIABLE))
        if torch.get_deterministic_debug_mode() == 2 and found[0 if looks == "once" else -1] != ":4096:8":
            raise RuntimeError("it uses CuBLAS")
        return product(one, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", checked)
    monkeypatch.setenv(CUBLAS_VARIABLE, "")  # so that it is restored after the test
    monkeypatch.delenv(CUBLAS_VARIABLE)
    before = torch.get_deterministic_debug_mode()
    accept_cublas(CPU)
    assert os.environ.get(CUBLAS_VARIABLE) == (None if looks == "once" else ":4096:8")
    assert torch.get_deterministic_debug_mode() == before
    torch.set_deterministic_debug_mode(2)
    try:
        torch.ones(2, 2) @ torch.ones(2, 2)
    finally:
        torch.set_deterministic_debug_mode(before)


@pytest.mark.parametrize("setting", [False, True])
def test_torch_is_asked_in_every_mode(monkeypatch: pytest.MonkeyPatch, setting: bool) -> None:
    """It looks once in a process, of which another run may want deterministic products."""
    asked: list[torch.device] = []
    monkeypatch.setattr("utils.determinism.accept_cublas", asked.append)
    before = torch.get_deterministic_debug_mode()
    use_deterministic_kernels(setting, torch.device("cuda"))
    use_deterministic_kernels("warn", CPU)
    torch.set_deterministic_debug_mode(before)
    assert asked == [torch.device("cuda")]


def test_a_variable_of_the_users_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS_VARIABLE, ":16:8")
    accept_cublas(CPU)
    assert os.environ[CUBLAS_VARIABLE] == ":16:8"


def test_the_mode_comes_back_after_an_error() -> None:
    use_deterministic_kernels("warn", CPU)
    with pytest.raises(ValueError, match="broken"), fastest_kernels():
        raise ValueError("broken")
    assert torch.get_deterministic_debug_mode() == 1


@needs_extra("export", "predict")
def test_nothing_is_resumed_by_an_export_or_a_prediction(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class UnpoolsInEvaluation(Unpooling):
        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.out(x) if self.training else super().forward(x)
            return outputs

    np.save(tmp_path / "x.npy", np.zeros((2, 6), np.float32))
    with temporarily(MODELS, UnpoolsInEvaluation):
        split = ("data_loader.args.validation_split=0", "trainer.monitor=null", "trainer.epochs=1")
        run = str(fit("runtime.deterministic=true", *split, model="UnpoolsInEvaluation").run_dir)
        load_script("predict").main(["-r", run, str(tmp_path / "x.npy"), "--out", str(tmp_path / "y.csv")])
        assert len((tmp_path / "y.csv").read_text().splitlines()) == 3
        load_script("export").main(["-r", run, "--format", "torch"])
        assert "deterministic" not in "".join(capsys.readouterr())
        with pytest.raises(UserError, match=r"does not use runtime\.deterministic"):
            load_script("predict").main(["-r", run, str(tmp_path / "x.npy"), "runtime.deterministic=warn"])
