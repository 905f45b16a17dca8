"""The losses of model/loss.py give the numbers of torch's."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from model.loss import cross_entropy

TEXT, IMAGES = (4, 20, 6), (4, 20, 5, 7)
IGNORED = 3


def classes_last(shape: tuple[int, ...]) -> Tensor:
    """Outputs of shape (B, C, ...) whose classes lie side by side in memory."""
    return torch.randn(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


@pytest.fixture
def dimensions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The dimensions of the outputs that torch's function gets."""
    found: list[int] = []
    function = F.cross_entropy

    def watched(outputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found.append(outputs.dim())
        return function(outputs, *args, **kwargs)

    monkeypatch.setattr(F, "cross_entropy", watched)
    return found


@pytest.mark.parametrize("shape", [TEXT, IMAGES], ids=["text", "images"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("args", [{}, {"weight": torch.rand(20)}, {"ignore_index": IGNORED, "label_smoothing": 0.1}])
def test_classes_side_by_side_in_memory_give_the_same_loss_and_gradients(
    shape: tuple[int, ...], reduction: Any, args: dict[str, Any], dimensions: list[int]
) -> None:
    outputs, targets = classes_last(shape), torch.randint(20, (shape[0], *shape[2:]))
    found = []
    for loss in (cross_entropy, F.cross_entropy):
        leaf = outputs.detach().requires_grad_()
        value = loss(leaf, targets, reduction=reduction, **args)
        value.backward()  # type: ignore[no-untyped-call]
        found.append((value.item(), leaf.grad))
    assert dimensions == [2, len(shape)]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.randn(TEXT), torch.randint(20, (4, 6))),
        (classes_last((4, 3, 6)), torch.randint(3, (4, 6))),
        (classes_last(TEXT), torch.rand(TEXT).softmax(1)),
        (torch.randn(4, 20), torch.randint(20, (4,))),
        (torch.randn(20), torch.tensor(2)),
    ],
    ids=["not side by side", "few classes", "probabilities", "one prediction", "one sample"],
)
def test_others_are_passed_on_as_they_are(outputs: Tensor, targets: Tensor, dimensions: list[int]) -> None:
    assert torch.equal(cross_entropy(outputs, targets), F.cross_entropy(outputs, targets))
    assert dimensions == [outputs.dim(), outputs.dim()]


def test_targets_of_another_shape_are_refused_by_torch() -> None:
    with pytest.raises(RuntimeError, match="6"):
        cross_entropy(classes_last(TEXT), torch.randint(20, (4, 7)))
