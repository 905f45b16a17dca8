"""The interface of a model: a torch module that can say how large it is."""

from torch import nn


class BaseModel(nn.Module):
    """Any ``nn.Module`` with a ``forward`` will do; this one adds what the console shows."""

    def num_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
