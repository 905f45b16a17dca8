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
        (nn.Linear(3, 2), [1], "the batch has only one sample"),
        (nn.Linear(3, 2), [], "eval_step does not call the model itself"),
        (PairsOfSamples(), [4], "the first dimension of the model's inputs differs from that of its outputs"),
        (nn.Linear(3, 2), [4, 8], None),  # a generated sample first, then the batch
    ],
)
def test_why_samples_cannot_be_compared_is_named(model: nn.Module, sizes: list[int], reason: str | None) -> None:
    trace = Trace()
    with traced(model, trace):
        for size in sizes:
            model(torch.ones(size, 3))
    result = check_independence(model, trace, sizes[-1] if sizes else 4)
    assert (result.verdict, result.text) == (
        ("note", f"cannot be tested: {reason}")
        if reason
        else ("ok", "each output of the model depends only on its own sample")
    )


def test_the_step_that_did_not_call_the_model_is_named() -> None:
    result = check_independence(nn.Linear(3, 2), Trace(), 4, step="train_step")
    assert result.text == "cannot be tested: train_step does not call the model itself"


def test_rows_that_are_not_samples_are_not_compared() -> None:
    """As the nodes of graphs are."""
    trace, model = Trace(), nn.Linear(3, 2)
    with traced(model, trace):
        model(torch.ones(187, 3))
    result = check_independence(model, trace, 16)
    assert (result.verdict, result.text) == (
        "ok", "cannot be tested: the model's inputs have 187 rows for 16 samples",
    )  # fmt: skip
