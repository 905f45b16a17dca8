"""LeNet (LeCun et al. 1998) as in the PyTorch tutorials: two convolutions with pooling, three linear layers."""

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from base.base_model import BaseModel
from utils.registry import MODELS
from utils.schema import Fraction


@MODELS.register
class LeNet(BaseModel):
    """Classifies 32x32 images. The tutorials use 1 channel with kernel_size 3, and 3 channels with kernel_size 5.

    in_channels: 1 for grey images, 3 for colour images.
    kernel_size: height and width of both convolutions' kernels.
    num_classes: number of outputs.
    dropout: probability of zeroing a feature of the two hidden linear layers during training.
    """

    def __init__(
        self,
        *,
        in_channels: Literal[1, 3] = 3,
        kernel_size: Literal[3, 5] = 5,
        num_classes: PositiveInt = 10,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, kernel_size)
        self.conv2 = nn.Conv2d(6, 16, kernel_size)
        side = {3: 6, 5: 5}[kernel_size]  # 32 -> 30 -> 15 -> 13 -> 6, or 32 -> 28 -> 14 -> 10 -> 5
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        # pooling before the ReLU gives the same values as after it, at a quarter of the cost
        x = F.max_pool2d(self.conv1(x), 2).relu()  # (B, in_channels, 32, 32) -> (B, 6, 14 or 15, ...)
        x = F.max_pool2d(self.conv2(x), 2).relu()  # -> (B, 16, side, side)
        x = self.dropout(self.fc1(x.flatten(1)).relu())  # -> (B, 120)
        x = self.dropout(self.fc2(x).relu())  # -> (B, 84)
        outputs: Tensor = self.fc3(x)  # (B, num_classes)
        return outputs
