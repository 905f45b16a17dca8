"""Linear regression."""

from pydantic import PositiveInt
from torch import Tensor, nn

from base.base_model import BaseModel
from utils.registry import MODELS


@MODELS.register
class LinearRegression(BaseModel):
    """y = W x + b.

    in_features: number of input values; inputs of other shapes, such as images, are flattened.
    out_features: number of output values.
    bias: whether to learn b, or leave it out.
    """

    def __init__(self, *, in_features: PositiveInt, out_features: PositiveInt = 1, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(x.flatten(1))  # (B, ...) -> (B, in_features) -> (B, out_features)
        return outputs
