"""Orders of very many samples, computed where they are asked for."""

import pytest
import torch

from base import base_data_loader
from base.data import batches
from base.data.lazy_indices import LazyIndices, Permutation, TrainingIndices, ValidationIndices
from base.data.sources import SampleRandom
from data_loader.random_tensor import RandomTensorLoader

BILLION = 10**9


@pytest.mark.parametrize("count", [1, 2, 3, 10, 97, 1000, 4096, 10_001])
def test_each_number_comes_once(count: int) -> None:
    assert Permutation(count, 0, "order")[:].sort().values.tolist() == list(range(count))


def test_an_order_looks_drawn() -> None:
    order = Permutation(100_000, 5, "order", 2)[:].double()
    other = Permutation(100_000, 5, "order", 3)[:].double()
    own = torch.arange(100_000.0)
    for left, right in ((order, own), (order, other), (order[1:], order[:-1])):
        assert abs(float(torch.corrcoef(torch.stack([left, right]))[0, 1])) < 0.015  # 5 standard deviations
    steps = order.diff()
    assert len(set(steps.tolist())) > 60_000, "the same step again and again"


@pytest.mark.parametrize(
    ("total", "held_out"), [(2, 1), (3, 2), (10, 3), (97, 10), (1000, 1), (1000, 999), (1001, 500), (4099, 1234)]
)
def test_a_split_leaves_none_out_and_takes_none_twice(total: int, held_out: int) -> None:
    chosen = ValidationIndices(total, held_out, "validation")
    kept = TrainingIndices(chosen)
    assert (len(chosen), len(kept)) == (held_out, total - held_out)
    assert sorted([*chosen[:].tolist(), *kept[:].tolist()]) == list(range(total))
    for part in (chosen, kept):
        assert (part[:].diff() > 0).all(), "not in the order of the file"


@pytest.mark.parametrize(
    "made",
    [
        Permutation(BILLION, 0),
        ValidationIndices(BILLION, BILLION // 10),
        TrainingIndices(ValidationIndices(BILLION, 7)),
    ],
)
def test_places_of_a_billion_are_found_alone(made: LazyIndices) -> None:
    end = len(made)
    whole = made[end - 100 : end]
    assert torch.equal(made[torch.tensor([end - 1, end - 50])], whole[[99, 50]])
    assert len(set(whole.tolist())) == 100
    assert int(whole.min()) >= 0
    assert int(whole.max()) < BILLION


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_of_very_many_samples_hold_each_once(monkeypatch: pytest.MonkeyPatch, shuffle: bool) -> None:
    monkeypatch.setattr(batches, "IN_MEMORY", 10)
    monkeypatch.setattr(base_data_loader, "IN_MEMORY", 10)
    loader = RandomTensorLoader(
        batch_size=8, num_samples=50, input_shape=[1], linear=[1.0], validation_split=7, shuffle=shuffle
    )
    _, inputs = loader.training_data(augment=False).batch(slice(0, 50), SampleRandom(slice(0, 50), ()))
    training, validation = loader.training(seed=0), loader.validation()
    assert validation is not None
    assert isinstance(training.indices, LazyIndices)
    passes = [[value for _, _, batch in training.one_pass() for value in batch[1][:, 0].tolist()] for _ in range(2)]
    held_out = [value for _, _, batch in validation.one_pass() for value in batch[1][:, 0].tolist()]
    assert sorted([*passes[0], *held_out]) == sorted(inputs[:, 0].tolist())
    assert passes[0] == passes[1]
    assert (passes[0] == [value for value in inputs[:, 0].tolist() if value in passes[0]]) is not shuffle
