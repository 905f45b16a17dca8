"""The usual causes of torch's errors, for its messages as they are today."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from extras.advice import usual_cause

X, LOGITS = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
LABELS = torch.zeros(4, dtype=torch.int64)


def twice() -> None:
    squares = LOGITS.square().sum()
    squares.backward()  # type: ignore[no-untyped-call]
    squares.backward()  # type: ignore[no-untyped-call]


def eval_step() -> None:
    with torch.no_grad():
        torch.autograd.grad(LOGITS.square().sum(), LOGITS)


def in_place() -> None:
    powers = LOGITS.exp()
    powers += 1
    powers.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("step", "cause"),
    [
        (lambda: nn.Linear(3, 2)(X.double()), "inputs whose dtype differs from the weights'"),
        (lambda: nn.Conv2d(3, 4, 3)(torch.zeros(1, 3, 5, 5, dtype=torch.uint8)), "inputs whose dtype differs"),
        (lambda: nn.LSTM(3, 4)(X.double()), "inputs whose dtype differs"),
        (
            lambda: F.cross_entropy(LOGITS, LABELS.float()),
            "targets of cross_entropy that are not class indices",
        ),
        (lambda: F.cross_entropy(LOGITS, LABELS.int()), "targets of cross_entropy that are not class indices"),
        (lambda: F.cross_entropy(LOGITS, LABELS[:, None]), "targets of shape (B, 1)"),
        (
            lambda: F.cross_entropy(LOGITS, F.one_hot(LABELS, 3)),
            "integers in the outputs' shape, such as one-hot",
        ),
        (
            lambda: F.binary_cross_entropy(LOGITS * 9, X.sigmoid()),
            "logits as outputs, where BCELoss takes",
        ),
        (twice, "a tensor that is kept from an earlier step with its graph"),
        (eval_step, "a gradient in an evaluation, which runs without gradients"),
        (lambda: F.cross_entropy(LOGITS, LABELS - 3), "a class index that is not below the number of the model's"),
        (lambda: cast("Any", [X]).shape, "samples that are lists of numbers"),
        (in_place, "an operation in place, such as x += 1"),
        (lambda: nn.Linear(5, 2)(X), "a linear layer that gets 3 features, but has in_features=5"),
        (
            lambda: nn.Conv2d(3, 4, 3)(torch.zeros(1, 1, 5, 5)),
            "images with 1 channels, where a convolution has",
        ),
        (lambda: nn.Conv2d(3, 4, 3)(cast("Any", [X, X])), "inputs that are not one tensor"),
        (lambda: nn.Conv2d(3, 4, 3)(cast("Any", "image")), "inputs that are not one tensor"),
        (lambda: nn.Linear(3, 2)(nn.GRU(3, 3)(X)), "a layer that gets a tuple: nn.RNN"),
        (lambda: cast("Any", [X, X]).flatten(1), "samples that are lists of numbers"),
        (lambda: F.cross_entropy(LOGITS, LABELS[:2]), "outputs whose first axis was reshaped"),
    ],
)
def test_an_error_of_torch_has_a_usual_cause(step: Callable[[], Any], cause: str) -> None:
    with pytest.raises((RuntimeError, ValueError, LookupError, TypeError, AttributeError)) as error:
        step()
    assert usual_cause(error.value).startswith(cause), error.value


def test_other_errors_have_none() -> None:
    with pytest.raises(RuntimeError) as error:
        X.reshape(5, 5)
    assert usual_cause(error.value) == ""
