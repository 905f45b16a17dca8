"""What a module registers in its first step: a checkpoint is refused only if a new module could not load it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from base.training.state import check_registered, registered_names
from utils.errors import UserError


class Scale(nn.Module):
    """Registers what it needs in its first forward pass, and again where it is loaded."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "factor"):
            self.factor = nn.Parameter(torch.full((4,), 2.0), requires_grad=False)
        return x * self.factor

    def _load_from_state_dict(self, state: Any, prefix: str, *more: Any) -> None:
        if prefix + "factor" in state and not hasattr(self, "factor"):
            self.factor = nn.Parameter(torch.zeros(4))
        super()._load_from_state_dict(state, prefix, *more)


class Shared(nn.Module):
    """A module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.other = Scale()

    def forward(self, x: Tensor) -> Any:
        return self.other(self.one(x))


class Inserting(nn.Module):
    """Registers a module with parameters."""

    def __init__(self, *, loads: bool) -> None:
        super().__init__()
        self.loads = loads

    def insert(self) -> None:
        if not hasattr(self, "norm"):
            self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Any:
        self.insert()
        return self.norm(x)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        if self.loads:
            self.insert()
        super()._load_from_state_dict(*arguments)


class Recomputing(nn.Module):
    """Computes a buffer again, whatever a checkpoint has."""

    table: Tensor

    def forward(self, x: Tensor) -> Any:
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.ones(4))
        return x + self.table

    def load_state_dict(self, state_dict: Any, *more: Any, **options: Any) -> Any:
        return super().load_state_dict({key: state_dict[key] for key in state_dict if key != "table"})


def held(module: nn.Module) -> list[tuple[str, int, bool]]:
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return [(name, id(each), each.requires_grad) for name, each in tensors]


@pytest.mark.parametrize("module", [Scale(), Shared(), Inserting(loads=True), Recomputing()])
def test_what_a_new_module_can_load_is_not_refused_and_stays_as_it_was(module: nn.Module) -> None:
    before = registered_names(module)
    module(torch.randn(3, 4))
    as_it_was, names = held(module), [*module.state_dict()]
    check_registered("model", module, module.state_dict(), before)
    assert held(module) == as_it_was
    assert [*module.state_dict()] == names


def test_a_module_that_a_new_one_lacks_is_refused() -> None:
    module = Inserting(loads=False)
    before = registered_names(module)
    module(torch.randn(3, 4))
    with pytest.raises(UserError, match=r"its first step has registered norm.bias, .* in the part model"):
        check_registered("model", module, module.state_dict(), before)
