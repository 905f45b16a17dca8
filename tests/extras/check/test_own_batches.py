"""``--check`` where batches are not nests of tensors but objects of other types."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import Dataset

from base.base_data_loader import BaseDataLoader
from base.base_model import BaseModel
from extras.check import preflight
from extras.check.data_checks import check_batch
from tests.helpers import temporarily
from utils.config import load_config
from utils.registry import DATA_LOADERS, MODELS


class Graphs:
    """An object of another library, which moves itself to a device."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def to(self, device: torch.device) -> "Graphs":
        return Graphs(self.x.to(device))


class Sequences(Dataset[Any]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(2 + index % 3, 6, generator=generator), index % 3


class SequenceLoader(BaseDataLoader):
    def __init__(self, *, graphs: bool) -> None:
        super().__init__(batch_size=8, validation_split=8)
        self.graphs = graphs

    def training_data(self, *, augment: bool) -> Dataset[Any]:
        return Sequences()

    def test_data(self) -> Dataset[Any]:
        return Sequences()

    def collate(self, samples: list[Any]) -> Any:
        inputs = [sample[0] for sample in samples]
        batch = Graphs(torch.stack([each[:2] for each in inputs])) if self.graphs else pack_sequence(inputs, False)
        return batch, torch.tensor([sample[1] for sample in samples])


class LastState(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 16, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Any) -> Tensor:
        _, last = self.gru(x if isinstance(x, PackedSequence) else x.x)  # (1, B, 16)
        scores: Tensor = self.out(last[0])
        return scores


@pytest.mark.parametrize(
    ("graphs", "described"),
    [
        (False, [r"inputs.data (23, 6) float32 in ", r"inputs.batch_sizes (4,) int64 in "]),
        (True, ["inputs: Graphs, in which no tensors were found"]),
    ],
)
def test_the_tensors_in_nests_are_shown_and_other_objects_named(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], graphs: bool, described: list[str]
) -> None:
    data_loader = {"type": "SequenceLoader", "args": {"graphs": graphs}}
    config = write_config(data_loader=data_loader, model="LastState", loss="cross_entropy", metrics=["accuracy"])
    with temporarily(DATA_LOADERS, SequenceLoader), temporarily(MODELS, LastState):
        status = preflight(load_config(config))
    shown = capsys.readouterr().out
    assert status == 0, shown
    for text in [*described, "targets (8,) int64 in [0, 2]"]:
        assert f"batch         ok    {text}" in shown


def test_what_has_no_tensors_is_named() -> None:
    texts = [found.text for batch in (Graphs(torch.zeros(2, 3)), ["a", "b", "c"]) for found in check_batch(batch)]
    assert texts == [f"{kind}, in which no tensors were found" for kind in ("Graphs", "list")]
