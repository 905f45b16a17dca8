"""The device of a run."""

from typing import Any

import torch

from utils.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device with a name; "auto" picks an accelerator if available. Raises ConfigError if it does not exist."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    known = ["cpu"]
    if accelerator:
        numbered = [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
        known += [accelerator.type, *numbered]
    if name not in known:
        message = f'"{name}" is not a device of this machine, which has {", ".join(known)}'
        raise ConfigError(message, ("runtime", "device"))
    return torch.device(name)


def describe_device(device: torch.device) -> dict[str, Any]:
    """What the last bits of a result depend on, by name: the device's model, the libraries of its kernels."""
    about: dict[str, Any] = {"cpu_capability": torch.backends.cpu.get_cpu_capability()}
    if name := getattr(torch.get_device_module(device), "get_device_name", None):
        about["device_name"] = name(device)
    if device.type == "cuda":
        about |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    return about


def used_accelerator() -> torch.device | None:
    """The accelerator, once anything in this process has used it: a run on the CPU leaves it to others."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return None
    is_initialized = getattr(torch.get_device_module(accelerator), "is_initialized", lambda: True)
    return accelerator if is_initialized() else None


def pins_memory() -> bool:
    """Whether batches are copied from pinned memory, so that the host need not wait. MPS has none, and torch warns."""
    accelerator = used_accelerator()
    return accelerator is not None and accelerator.type != "mps"
