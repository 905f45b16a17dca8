"""torch.emulated: what torch asks the module of a device, for the device that emulated.cpp makes.

dev/accelerator/__init__.py copies this file to the compiled one; the entry point there has torch call ``register``.
"""

import functools
import importlib
import sys
from typing import Any

import torch
from torch.utils import backend_registration

backend: Any = importlib.import_module("emulated_backend")

can_compile = False
"""Whether torch.compile supports the device: ours alone, as is host_waits. For tests/accelerator/conftest.py."""
host_waits = backend.host_waits
"""How often the host has waited for the device so far."""

Stream, Event = torch.Stream, torch.Event
current_stream = torch.accelerator.current_stream
synchronize = torch.accelerator.synchronize
device_count = backend.device_count
current_device = torch.accelerator.current_device_index
set_device = torch.accelerator.set_device_index

manual_seed = manual_seed_all = backend.manual_seed


def get_rng_state(device: Any = None) -> torch.Tensor:
    state: torch.Tensor = backend.get_rng_state()
    return state


def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
    backend.set_rng_state(state)


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16]


def is_available() -> bool:
    return True


is_initialized = backend.is_initialized


def _is_in_bad_fork() -> bool:
    return False


def stream(stream: torch.Stream) -> torch.Stream:
    """A stream is itself the context in which it is the current one."""
    return stream


def register() -> None:
    backend_registration.rename_privateuse1_backend("emulated")
    torch._register_device_module("emulated", sys.modules[__name__])
    backend_registration.generate_methods_for_privateuse1_backend(for_storage=True)
    torch.nn.Module.to = _keep_parameters(torch.nn.Module.to)  # type: ignore[method-assign]

    import torch.distributed as dist

    if dist.is_available():
        dist.Backend.register_backend("emulated_ccl", _communication, devices=["emulated"])


def _keep_parameters(to: Any) -> Any:
    """Module.to, but the parameters remain the same objects, as with CUDA; for other devices torch makes new ones."""

    @functools.wraps(to)
    def swapping(module: torch.nn.Module, *arguments: Any, **options: Any) -> torch.nn.Module:
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            moved: torch.nn.Module = to(module, *arguments, **options)
        finally:
            # load_state_dict would swap too, which DDP's references to the parameters do not allow
            torch.__future__.set_swap_module_params_on_conversion(False)
        return moved

    return swapping


def _communication(store: Any, rank: int, size: int, timeout: Any) -> Any:
    import torch.distributed as dist

    gloo: Any = dist.ProcessGroupGloo(dist.PrefixStore("emulated", store), rank, size, timeout)  # type: ignore[attr-defined]
    return backend.communication(gloo)
