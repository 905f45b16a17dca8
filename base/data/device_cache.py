"""Keeps an in-memory data set on the training device: ``data_loader.args.device_cache``."""

import torch
from torch import Tensor

from base.data.errors import ARGUMENTS
from base.data.sources import Source, TensorSource
from utils.errors import DataError

SMALL = 2**29
"""Bytes up to which data is kept on an accelerator by default: a fixed number, so that a resumed run does the same."""


class DeviceCache:
    """The tensors of a data set on a device, each stored once, even if training and validation share them.

    if_suitable: leave a source as it is on the CPU, or if it is large, not in memory, or has functions that may work on
    the CPU only. Otherwise a source that is not in memory is refused.
    """

    def __init__(self, *, if_suitable: bool = False) -> None:
        self.if_suitable = if_suitable
        # by device and id of the original, which is kept alive: the original, its copy, and the version that it has
        self._copies: dict[tuple[torch.device, int], tuple[Tensor, Tensor, int]] = {}

    def keep(self, source: Source, device: torch.device) -> Source:
        """The source with its tensors on a device. Raises DataError if they are not in memory."""
        if self.if_suitable and (device.type == "cpu" or not _is_suitable(source)):
            return source
        if not isinstance(source, TensorSource) or not source.in_memory:
            message = "only tensors in memory (a TensorSource) can be kept on the device; leave device_cache out"
            raise DataError(message, (*ARGUMENTS, "device_cache"))
        source.inputs, source.targets = self._move(source.inputs, device), self._move(source.targets, device)
        return source

    def _move(self, tensor: object, device: torch.device) -> Tensor:
        assert isinstance(tensor, Tensor)
        key = device, id(tensor)
        if key not in self._copies:
            self._copies[key] = tensor, tensor.to(device), _version(tensor)
        return self._copies[key][1]

    def refresh(self) -> None:
        """Copy tensors again that were changed in place, as by ``begin_epoch`` or a loaded checkpoint."""
        for key, (original, copy, version) in self._copies.items():
            if _version(original) != version:
                self._copies[key] = original, copy.copy_(original), _version(original)


def _version(tensor: Tensor) -> int:
    """torch's private count of changes in place, which tensors of inference mode do not have."""
    return 0 if tensor.is_inference() else tensor._version


def _is_suitable(source: Source) -> bool:
    if type(source) is not TensorSource or not (source.is_plain() or source.any_device):
        return False
    tensors = (source.inputs, source.targets)
    return source.in_memory and sum(each.nbytes for each in tensors if isinstance(each, Tensor)) <= SMALL
