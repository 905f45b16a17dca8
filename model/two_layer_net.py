"""A fully connected ReLU net with one hidden layer."""

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from base.base_model import BaseModel
from utils.registry import MODELS


@MODELS.register
class TwoLayerNet(BaseModel):
    """y = W2 relu(W1 x).

    in_features: number of input values; inputs of other shapes, such as images, are flattened.
    hidden_features: width of the hidden layer.
    out_features: number of output values.
    bias: whether both layers have a bias.
    init_std: standard deviation of the normally distributed initial weights; None: torch's default.
    """

    def __init__(
        self,
        *,
        in_features: PositiveInt,
        hidden_features: PositiveInt,
        out_features: PositiveInt,
        bias: bool = True,
        init_std: PositiveFloat | None = None,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features, bias=bias)
        self.fc2 = nn.Linear(hidden_features, out_features, bias=bias)
        if init_std is not None:
            nn.init.normal_(self.fc1.weight, std=init_std)
            nn.init.normal_(self.fc2.weight, std=init_std)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x.flatten(1)).relu()  # (B, ...) -> (B, in_features) -> (B, hidden_features)
        outputs: Tensor = self.fc2(hidden)  # (B, out_features)
        return outputs
