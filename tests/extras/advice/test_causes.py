"""The usual causes of torch's errors, for its messages as they are today."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from extras.advice import usual_cause
from extras.advice.causes import OTHER_PARTS

X, LOGITS = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
LABELS = torch.zeros(4, dtype=torch.int64)


def twice() -> None:
    squares = LOGITS.square().sum()
    squares.backward()  # type: ignore[no-untyped-call]
    squares.backward()  # type: ignore[no-untyped-call]


def eval_step() -> None:
    with torch.no_grad():
        torch.autograd.grad(LOGITS.square().sum(), LOGITS)


def second_derivative() -> None:
    inputs = X.clone().requires_grad_()
    slopes = torch.autograd.grad(inputs.pow(3).sum(), inputs)[0]
    torch.autograd.grad(slopes.sum(), inputs)


def in_place() -> None:
    powers = LOGITS.exp()
    powers += 1
    powers.sum().backward()  # type: ignore[no-untyped-call]


def detached() -> None:
    LOGITS.detach().sum().backward()  # type: ignore[no-untyped-call]


def no_driver() -> None:
    raise RuntimeError("Found no NVIDIA driver on your system.")


def train_step(batch: Any) -> Any:
    """Unpacks a batch of a number of parts, or an object."""
    parts: Any = range(batch) if isinstance(batch, int) else batch
    inputs, targets = parts
    return inputs.mean() + targets


def elsewhere() -> Any:
    inputs, targets = cast("Any", (1, 2, 3))
    return inputs + targets


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
        (second_derivative, "a derivative without a graph"),
        (lambda: torch.autograd.grad(LOGITS.sum(), X), "a derivative without a graph"),
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
        (detached, "a loss that is cut off from the weights"),
        (lambda: F.cross_entropy(cast("Any", (LOGITS, X)), LABELS), "outputs or targets that are not tensors"),
        (lambda: F.cross_entropy(cast("Any", X.numpy()), LABELS), "outputs or targets that are not tensors"),
        (lambda: F.cross_entropy(LOGITS, cast("Any", ("a",) * 4)), "outputs or targets that are not tensors"),
        (lambda: cast("Any", (LOGITS, X)).dim(), "outputs or targets that are not tensors"),
        (
            lambda: F.cross_entropy(LOGITS[:, None].repeat(1, 4, 1), LABELS[:, None].repeat(1, 4)),
            "classes that are not on axis 1",
        ),
        (lambda: F.embedding(LABELS + 100, X), "an index that is not below the size of an embedding"),
        (
            lambda: F.binary_cross_entropy_with_logits(LOGITS, torch.ones(4, 3).long()),
            "integers as targets of a loss that takes floats",
        ),
        (no_driver, "a .cuda() in the code"),
        (lambda: train_step(3), OTHER_PARTS),
        (lambda: train_step(object()), OTHER_PARTS),
    ],
)
def test_an_error_of_torch_has_a_usual_cause(step: Callable[[], Any], cause: str) -> None:
    with pytest.raises((RuntimeError, ValueError, LookupError, TypeError, AttributeError)) as error:
        step()
    assert usual_cause(error.value).startswith(cause), error.value


@pytest.mark.parametrize("step", [lambda: X.reshape(5, 5), lambda: X[0, 99], elsewhere])
def test_other_errors_have_none(step: Callable[[], Any]) -> None:
    with pytest.raises((RuntimeError, IndexError, ValueError)) as error:
        step()
    assert usual_cause(error.value) == ""


def test_the_keys_of_a_dict_are_blamed_only_where_a_step_has_unpacked_them() -> None:
    batch = dict.fromkeys(("image", "label"), X)
    with pytest.raises(AttributeError) as unpacked:
        train_step(batch)
    assert usual_cause(unpacked.value, batch).startswith('"inputs, targets = batch", which gives the keys of a dict')
    with pytest.raises(TypeError) as other:
        cast("Any", batch["image"]) + "str"
    assert usual_cause(other.value, batch) == ""
