"""The interface of a model: a torch module that knows its size."""

from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters of any module."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class BaseModel(nn.Module):
    """Optional base class: any ``nn.Module`` with a ``forward`` works too."""

    def num_parameters(self) -> int:
        """Number of trainable parameters."""
        return count_parameters(self)
