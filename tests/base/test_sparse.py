"""Sparse tensors, as in nets on graphs: in a model, in its state and in batches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import train
from base.base_data_loader import BaseDataLoader
from base.training.state import fit_buffers
from tests.conftest import load_script
from tests.helpers import Fit, fork, lines, needs_extra, state, temporarily
from utils.distributed.parallel import refuse_sparse
from utils.errors import ConfigError, UserError
from utils.registry import DATA_LOADERS, MODELS
from utils.tree import same

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse .* tensor support:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]

EDGES = torch.eye(6) + torch.eye(6).roll(1, 0)
NESTED = [torch.ones(2), torch.ones(3)]
BUFFERS: dict[str, Callable[[], Tensor]] = {
    "coo": EDGES.to_sparse,
    "csr": EDGES.to_sparse_csr,
    "bsr": lambda: EDGES.to_sparse_bsr((2, 2)),
    "jagged": lambda: torch.nested.nested_tensor(NESTED, layout=torch.jagged),
    "nested": lambda: torch.nested.nested_tensor(NESTED),
    "meta": lambda: torch.ones(3, device="meta"),
}


class OnGraph(nn.Module):
    """(B, 6) -> (B, 3), with the edges of a graph in a buffer."""

    def __init__(self, *, kind: str, extra: str = "") -> None:
        super().__init__()
        self.kind, self.extra = kind, extra
        self.register_buffer("edges", BUFFERS[kind]())
        self.linear = nn.Linear(6, 3)

    def get_extra_state(self) -> Any:
        state: dict[str, Any] = {"edges": EDGES.to_sparse()}
        if self.extra == "itself":
            state["state"] = state
        return state

    def set_extra_state(self, state: Any) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear((self.edges @ x.T).T if self.kind in ("coo", "csr") else x)  # type: ignore[operator]
        return outputs


class Growing(nn.Module):
    """(B, 6) -> (B, 3), with edges in a buffer that it adds in training."""

    steps: Tensor

    def __init__(self, *, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("steps", torch.ones((), dtype=torch.int64))
        self.register_buffer("edges", self.first_edges())
        self.linear = nn.Linear(6, 3)

    def first_edges(self) -> Tensor:
        edges = torch.linspace(0.1, 1, 36).reshape(6, 6)
        edges.view(-1)[int(self.steps) :] = 0
        if self.kind == "coo":
            return edges.to_sparse()
        converted: Tensor = getattr(edges, f"to_sparse_{self.kind}")(*[(2, 2)] * self.kind.startswith("b"))
        return converted

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            self.edges = self.first_edges()
        outputs: Tensor = self.linear(x @ self.edges.to_dense())
        return outputs


class Shared(nn.Module):
    """(B, 6) -> (B, 3), with one matrix of edges in two modules; training changes it through the first."""

    def __init__(self, *, kind: str) -> None:
        super().__init__()
        edges = BUFFERS[kind]()
        self.first, self.second = nn.Linear(6, 3), nn.Module()
        self.first.register_buffer("edges", edges)
        self.second.register_buffer("edges", edges)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.first.edges.mul_(0.9)  # type: ignore[operator]
        return self.first((self.second.edges @ x.T).T)  # type: ignore[operator,no-any-return]


class Graphs(Dataset[Any]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return torch.full((6,), 0.1 * (index % 5)), torch.tensor(index % 3)


class GraphLoader(BaseDataLoader):
    """Batches with an adjacency matrix."""

    def __init__(self, *, layout: str, **base: Any) -> None:
        super().__init__(**base)
        self.edges = EDGES.to_sparse() if layout == "coo" else EDGES.to_sparse_csr()

    def training_data(self, *, augment: bool) -> Any:
        return Graphs()

    def test_data(self) -> Any:
        return Graphs()

    def collate(self, samples: list[Any]) -> Any:
        features, classes = zip(*samples, strict=True)
        return (torch.stack(features), self.edges), torch.stack(classes)


class NestedLoader(GraphLoader):
    """Batches of inputs of different lengths."""

    def collate(self, samples: list[Any]) -> Any:
        features, classes = zip(*samples, strict=True)
        lengths = [features[place][: 1 + place % 6] for place in range(len(features))]
        return torch.nested.nested_tensor(lengths, layout=torch.jagged), torch.stack(classes)


class OfNested(nn.Module):
    """(B, any length) -> (B, 3)"""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.linear(torch.stack([row.sum() for row in inputs.unbind()])[:, None])
        return outputs


class OfBatch(nn.Module):
    """((B, 6), edges (6, 6)) -> (B, 3)"""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        outputs: Tensor = self.linear((inputs[1] @ inputs[0].T).T)
        return outputs


def model(kind: str, **args: Any) -> dict[str, Any]:
    return {"type": "OnGraph", "args": {"kind": kind, **args}}


@pytest.mark.parametrize("ema", ["null", '{"decay": 0.9}'])
@pytest.mark.parametrize("kind", ["coo", "csr", "bsr", "jagged"])
def test_a_run_with_a_sparse_buffer_is_tested_and_resumes(fit: Fit, kind: str, ema: str) -> None:
    with temporarily(MODELS, OnGraph):
        whole = fit("trainer.save_every_steps=1", "trainer.keep_last=null", f"trainer.ema={ema}", model=model(kind))
        half = fork(whole.run_dir, 7)
        train.main(["-r", str(half)])
        load_script("test").main(["-r", str(half)])
    assert lines(half) == lines(whole.run_dir)
    assert same(state(half)["model"], state(whole.run_dir)["model"])


@pytest.mark.parametrize("kind", ["coo", "csr", "csc", "bsr", "bsc"])
def test_a_sparse_buffer_whose_values_become_more_is_resumed(fit: Fit, kind: str) -> None:
    growing = {"type": "Growing", "args": {"kind": kind}}
    with temporarily(MODELS, Growing):
        whole = fit("trainer.save_every_steps=1", "trainer.keep_last=null", model=growing)
        half = fork(whole.run_dir, 7)
        train.main(["-r", str(half)])
        load_script("test").main(["-r", str(half)])
    assert lines(half) == lines(whole.run_dir)
    assert same(state(half)["model"], state(whole.run_dir)["model"])


@pytest.mark.parametrize("kind", ["coo", "csr"])
def test_a_sparse_buffer_of_two_modules_is_still_one_after_a_resume(fit: Fit, kind: str) -> None:
    with temporarily(MODELS, Shared):
        shared = {"type": "Shared", "args": {"kind": kind}}
        whole = fit("trainer.save_every_steps=1", "trainer.keep_last=null", model=shared)
        half = fork(whole.run_dir, 7)
        train.main(["-r", str(half)])
    assert lines(half) == lines(whole.run_dir)
    assert same(state(half)["model"], state(whole.run_dir)["model"])


def test_replaced_buffers_of_two_modules_are_still_one() -> None:
    model, saved = Shared(kind="csr"), Shared(kind="csr")
    saved.first.edges = saved.second.edges = torch.ones(6, 6).to_sparse_csr()
    fit_buffers(model, saved.state_dict())
    model.load_state_dict(saved.state_dict())
    assert model.first.edges is model.second.edges
    assert same(model.state_dict(), saved.state_dict())


def test_a_parameter_that_is_none_is_not_replaced_like_a_buffer() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    fit_buffers(model, nn.Sequential(nn.Linear(2, 2)).state_dict())
    assert model[0].bias is None


@needs_extra("check")
@pytest.mark.parametrize("kind", ["coo", "csr", "jagged"])
def test_it_is_checked(fit: Fit, write_config: Callable[..., Any], kind: str) -> None:
    with temporarily(MODELS, OnGraph):
        assert train.main(["-c", str(write_config(model=model(kind))), "--check"]) == 0


@needs_extra("check")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_a_batch_with_a_sparse_matrix_is_checked(
    write_config: Callable[..., Any], capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    data = {"type": "GraphLoader", "args": {"layout": layout, "batch_size": 8, "validation_split": 0.2}}
    with temporarily(MODELS, OfBatch), temporarily(DATA_LOADERS, GraphLoader):
        path = write_config(data_loader=data, model="OfBatch")
        assert train.main(["-c", str(path), "--check"]) == 0
    assert "inputs.1 (6, 6) float32 in [1, 1]" in capsys.readouterr().out


def test_batches_of_nested_tensors(fit: Fit, write_config: Callable[..., Any]) -> None:
    keys: dict[str, Any] = {
        "data_loader": {"type": "NestedLoader", "args": {"layout": "coo", "batch_size": 8, "validation_split": 0.2}},
        "model": "OfNested",
    }
    with temporarily(MODELS, OfNested), temporarily(DATA_LOADERS, NestedLoader):
        run = fit(**keys).run_dir
        load_script("test").main(["-r", str(run)])
        train.main(["-r", str(run), "trainer.epochs=3"])


def test_a_buffer_that_no_checkpoint_can_hold_is_named(fit: Fit) -> None:
    with temporarily(MODELS, OnGraph):
        with pytest.raises(UserError, match=r"model\.edges is a tensor that torch cannot load"):
            fit(model=model("nested"))
        with pytest.raises(ConfigError, match=r"OnGraph has tensors without values: edges\. "):
            fit(model=model("meta"))
        with pytest.raises(UserError, match=r"state\.\.\.\.\S* is of type dict"):
            fit(model=model("coo", extra="itself"))


def test_a_sparse_buffer_and_several_processes_are_refused() -> None:
    with pytest.raises(UserError, match=r"cannot .* send sparse or nested buffers: edges; leave"):
        refuse_sparse(OnGraph(kind="coo"))


def test_sparse_tensors_are_compared_by_their_values() -> None:
    for make in (BUFFERS["coo"], BUFFERS["csr"], BUFFERS["bsr"], BUFFERS["jagged"]):
        assert same(make(), make())
    assert not same(EDGES.to_sparse(), (2 * EDGES).to_sparse())
    assert not same(EDGES.to_sparse(), EDGES)
    assert not same(BUFFERS["jagged"](), torch.nested.nested_tensor(NESTED[::-1], layout=torch.jagged))
