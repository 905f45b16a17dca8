"""Inputs that worker processes read are sent by value."""

import pickle
from typing import Any

import pytest
import torch
from torchvision.tv_tensors import Image

from extras.predict.reading import pickled
from utils.tree import tensors

PICKLED: dict[str, tuple[Any, bool]] = {
    "a tensor": (torch.rand(3, 4), True),
    "a number": (torch.tensor(3), True),
    "a view": (torch.rand(10_000)[::1000], True),
    "of a gradient": (torch.rand(3, requires_grad=True) * 2, True),
    "in a nest": ({"image": (torch.rand(2), "text")}, True),
    "bfloat16": (torch.rand(3).bfloat16(), False),
    "sparse": (torch.eye(3).to_sparse(), True),
    "of a subclass": (Image(torch.zeros(3, 4, 4)), False),
}


@pytest.mark.parametrize("kind", PICKLED)
def test_values_are_pickled_without_torch_where_numpy_has_them(kind: str) -> None:
    value, by_value = PICKLED[kind]
    content = pickled(value)
    loaded = pickle.loads(content)
    assert type(loaded) is type(value)
    for one, other in zip(tensors(value), tensors(loaded), strict=True):
        assert torch.equal(one.to_dense(), other.to_dense())
    assert (b"torch.storage" not in content) == by_value
    assert len(content) < 2_000
