"""Random tensors: data without a download, for trying out a model or a machine."""

from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from base.base_data_loader import BaseDataLoader
from base.data.sources import TensorSource
from utils.registry import DATA_LOADERS


@DATA_LOADERS.register
class RandomTensorLoader(BaseDataLoader):
    """Inputs drawn from N(0, 1), with one kind of target; give exactly one of the three.

    target_shape: targets of this shape, drawn from N(0, 1).
    num_classes: targets drawn uniformly from 0 to num_classes - 1.
    linear: targets of shape (1,), the sum of the inputs times these coefficients.

    num_samples, num_test_samples: number of training samples (including validation) and of test samples.
    input_shape: shape of one input, as in [1000] or [3, 32, 32].
    seed: for the data, independent of the run's seed.
    """

    def __init__(
        self,
        *,
        num_samples: PositiveInt,
        input_shape: list[PositiveInt],
        target_shape: Annotated[list[PositiveInt] | None, Field(examples=[[10]])] = None,
        num_classes: PositiveInt | None = None,
        linear: list[float] | None = None,
        num_test_samples: PositiveInt = 1000,
        seed: NonNegativeInt = 0,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        if [target_shape, num_classes, linear].count(None) != 2:
            raise ValueError('exactly one of "target_shape", "num_classes" and "linear" must be given')
        if linear is not None and len(linear) != torch.Size(input_shape).numel():
            raise ValueError(f'"linear" has {len(linear)} coefficients for inputs of shape {input_shape}')
        self.input_shape, self.target_shape = input_shape, target_shape
        self.num_classes, self.linear = num_classes, linear
        self.num_samples, self.num_test_samples, self.seed = num_samples, num_test_samples, seed

    def training_data(self, *, augment: bool) -> TensorSource:
        return self._draw(self.num_samples, self.seed)

    def test_data(self) -> TensorSource:
        return self._draw(self.num_test_samples, self.seed + 2**31)  # differs from the seed of all training data

    def _draw(self, count: int, seed: int) -> TensorSource:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(count, *self.input_shape, generator=generator)  # (N, *input_shape)
        return TensorSource(inputs, self._targets(inputs, generator))

    def _targets(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        if self.linear is not None:
            coefficients = torch.tensor(self.linear, dtype=inputs.dtype)
            return inputs.flatten(1) @ coefficients[:, None]  # (N, D) @ (D, 1) -> (N, 1)
        if self.num_classes is not None:
            return torch.randint(self.num_classes, (len(inputs),), generator=generator)  # (N,)
        return torch.randn(len(inputs), *(self.target_shape or ()), generator=generator)
