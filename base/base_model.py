"""The interface of a model: a torch module that can say how large it is."""

from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters of any module."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class BaseModel(nn.Module):
    """Any ``nn.Module`` with a ``forward`` will do in its place."""

    def num_parameters(self) -> int:
        """Number of trainable parameters."""
        return count_parameters(self)
