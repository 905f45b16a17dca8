"""Imports for the server from which trial processes are forked: packages that no project changes."""

import contextlib
import gc
import importlib
import inspect

PACKAGES = (
    "torch", "torch.utils.data", "torch.distributed.checkpoint", "torchvision.transforms.v2", "torchvision.datasets",
    "torchmetrics", "tensorboard.summary", "torch.utils.tensorboard", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "numpy", "PIL.Image", "pydantic.main", "pydantic.types", "tqdm",
)  # fmt: skip

for name in PACKAGES:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
inspect.getmodule(inspect.currentframe())  # resolves the file of every module, which pydantic needs
gc.collect()
gc.freeze()  # garbage collection in a forked process would copy all pages with objects
