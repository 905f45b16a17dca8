"""Pictures of model inputs, as a data loader's ``pictures`` returns them, and what a trainer shows in TensorBoard."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from base.base_data_loader import BaseDataLoader
from base.data.errors import sample_error
from logger.writers import Writer, Writers
from utils.errors import ConfigError, DataError
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


class Shown:
    """The pictures and texts that a trainer shows: in the writers of a run, but nowhere in a test or a check."""

    def __init__(self, data: BaseDataLoader) -> None:
        self.data = data
        self._writer: Writer = Writers({})
        self._pictured: dict[str, int] = {}  # the step of the last picture of each tag

    def picture(self, step: int, tag: str, images: Tensor) -> None:
        """Show images in the model's form, (B, C, H, W), unless the step already has some of this tag.

        Raises ConfigError if they are not images.
        """
        if self._pictured.get(tag) == step:
            return
        given = isinstance(images, Tensor) and images.numel()
        pictures = pictures_of(self.data, images) if given else None
        if pictures is None:
            got = describe_batch(images) if isinstance(images, Tensor) else f"type {type(images).__name__}"
            raise ConfigError(f"picture {tag!r}: expected a tensor of images of shape (B, C, H, W), got {got}")
        self._pictured[tag] = step
        self._writer.images(step, tag, pictures)

    def text(self, step: int, tag: str, markdown: str) -> None:
        self._writer.text(step, tag, markdown)

    @contextmanager
    def to(self, writer: Writer) -> Iterator[None]:
        """Inside the block, show them in this writer."""
        self._writer, self._pictured = writer, {}
        try:
            yield
        finally:
            self._writer, self._pictured = Writers({}), {}
