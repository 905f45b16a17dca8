"""What ``--check`` says about independent samples where it cannot test them."""

import pytest
import torch
from torch import Tensor, nn

from extras.check.model_checks import check_independence
from extras.layers import Trace, traced


class PairsOfSamples(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.view(-1, 6)  # (2 B, D) -> (B, 2 D)


@pytest.mark.parametrize(
    ("model", "sizes", "reason"),
    [
        (nn.Linear(3, 2), [1], "the model took 1 rows and returned 1 for 1 sample"),
        (nn.Linear(3, 2), [], "the model took 0 rows and returned 0 for 4 samples"),
        (PairsOfSamples(), [4], "the model took 4 rows and returned 2 for 4 samples"),
        (nn.Linear(3, 2), [4, 8], None),  # a generated sample first, then the batch
    ],
)
def test_why_samples_cannot_be_compared_is_named(model: nn.Module, sizes: list[int], reason: str | None) -> None:
    trace = Trace()
    with traced(model, trace):
        for size in sizes:
            model(torch.ones(size, 3))
    result = check_independence(model, trace, sizes[-1] if sizes else 4)
    assert result.verdict == "ok"
    expected = f"cannot be tested: {reason}" if reason else "each output of the model depends only on its own sample"
    assert result.text == expected


def test_rows_that_are_not_samples_are_not_compared() -> None:
    """As the nodes of graphs are."""
    trace, model = Trace(), nn.Linear(3, 2)
    with traced(model, trace):
        model(torch.ones(187, 3))
    result = check_independence(model, trace, 16)
    assert (result.verdict, result.text) == (
        "ok", "cannot be tested: the model took 187 rows and returned 187 for 16 samples",
    )  # fmt: skip
