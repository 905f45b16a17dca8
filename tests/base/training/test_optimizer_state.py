"""Any state of an optimizer is resumed to the bit, or refused."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from base.base_model import BaseModel
from tests.helpers import copy_run, lines, same, state, temporarily
from utils.registry import MODELS, OPTIMIZERS

Fit = Callable[..., train.Result]


class Double(BaseModel):
    """Computes in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.double())  # type: ignore[no-any-return]


class Precise(torch.optim.Optimizer):
    """Sums the gradients of float32 weights in float64, and counts its steps in an integer tensor."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                own = self.state[parameter]
                if not own:
                    own["count"] = torch.zeros((), dtype=torch.int64)
                    own["sums"] = [torch.zeros_like(parameter, dtype=torch.float64)]
                own["count"] += 1
                own["sums"][0] += parameter.grad.double() / own["count"]
                parameter -= group["lr"] * own["sums"][0].float()


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with temporarily(MODELS, Double), temporarily(OPTIMIZERS, Precise):
        yield


@pytest.mark.parametrize(
    ("model", "optimizer"), [("Double", "NAdam"), ("Double", "ASGD"), ("TwoLayerNet", "Precise"), ("Double", "Adam")]
)
def test_state_of_another_dtype_than_its_parameter_resumes_exactly(
    fit: Fit, tmp_path: Path, model: str, optimizer: str
) -> None:
    keys: dict[str, Any] = {"optimizer": {"type": optimizer, "args": {"lr": 0.1}}}
    if model == "Double":
        keys["model"] = "Double"
    whole = fit("trainer.save_every_steps=2", "trainer.keep_last=null", **keys).run_dir
    resumed = copy_run(whole, tmp_path)
    train.main(["-r", str(resumed / "checkpoints" / "step-00000006.pth")])
    assert same(state(whole)["optimizer"], state(resumed)["optimizer"])
    assert same(state(whole)["model"], state(resumed)["model"])
    assert lines(whole) == lines(resumed)
