"""Pictures of model inputs, as a data loader's ``pictures`` returns them, checked."""

import torch
from torch import Tensor

from base.base_data_loader import BaseDataLoader
from base.data.errors import sample_error
from utils.errors import DataError
from utils.tree import describe_batch


def pictures_of(data: BaseDataLoader, inputs: Tensor) -> Tensor | None:
    """Pictures of inputs, uint8 of shape (B, H, W, 1 or 3), or None if they are not images.

    Raises DataError if the data loader returns anything else, or fails.
    """
    hook = f"{type(data).__name__}.pictures"
    try:
        pictures = data.pictures(inputs.detach().cpu())
    except Exception as error:  # any error: the user's code
        raise sample_error(error, f"{hook} failed") from error
    if pictures is None:
        return None
    if not isinstance(pictures, Tensor) or pictures.dtype != torch.uint8 or pictures.shape[3:] not in ((1,), (3,)):
        got = describe_batch(pictures) if isinstance(pictures, Tensor) else f"type {type(pictures).__name__}"
        raise DataError(f"{hook} returns {got}; expected (B, H, W, 1 or 3) uint8")
    return pictures
