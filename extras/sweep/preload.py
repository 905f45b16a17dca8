"""What the server imports that the processes of trials are forked from: packages that no project changes."""

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
inspect.getmodule(inspect.currentframe())  # resolves the file of every module, as pydantic has it done
gc.collect()
gc.freeze()  # a collection in a forked process would copy every page that an object is on
