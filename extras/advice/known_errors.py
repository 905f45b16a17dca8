"""Errors in a step whose cause is known: what torch says, in the terms of a config."""

import inspect
import re
from collections.abc import Iterator

from torch import nn
from torch.optim import Optimizer, SparseAdam

from base.base_trainer import BaseTrainer
from base.data.batches import BatchRange
from extras.untouched import untouched
from utils.errors import UserError
from utils.optimizers import parameters_in
from utils.user_code import user_line

ONE_SAMPLE = "Expected more than 1 value per channel when training"  # torch's message
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NO_KERNEL = re.compile(r"(.+?) does not have a deterministic implementation")


def explained(error: Exception) -> UserError | None:
    """The error to raise for one in a step; None if this is not known."""
    if ONE_SAMPLE in str(error):
        return one_sample_error(error)
    if operation := _NO_KERNEL.match(str(error)):
        return UserError(
            f"{operation[1]} has no deterministic kernel in torch, but runtime.deterministic=true (or your own "
            f"torch.use_deterministic_algorithms) requires one\n{user_line(error)}\n"
            "With runtime.deterministic=warn, unless your code sets it, a resumed run is exact only up to rounding."
        )
    return None


def one_sample_error(error: Exception, *, samples: int = 0, batch_size: int = 0) -> UserError:
    where = f"the last batch of an epoch ({samples:,} samples in batches of {batch_size})" if samples else "this batch"
    return UserError(
        f"{where} has a single sample, whose variance BatchNorm cannot compute in training: {error}\n"
        "Set data_loader.args.drop_last=true to skip an incomplete last batch, or change data_loader.args.batch_size."
    )


def check_smallest_batch(trainer: BaseTrainer) -> None:
    """Raise UserError before the first step if the last training batch is a single sample, which BatchNorm rejects.

    Skipped with several processes, where no process can run a forward pass alone; the step itself then fails.
    """
    batches, model = trainer.training.batches, trainer.experiment.model
    size = batches.last_batch_size()
    norms = any(isinstance(module, BATCH_NORMS) for module in model.modules())
    if size != 1 or batches.batch_size == 1 or not norms or trainer.runtime.process_group.world_size > 1:
        return
    stop = batches.samples_per_pass
    with untouched(trainer, "smallest batch"):
        [micro_batch] = batches.load([BatchRange(0, stop - 1, stop)])
        model.train()
        try:
            trainer.eval_step(trainer.runtime.to_device(micro_batch.data))
        except ValueError as error:
            if ONE_SAMPLE in str(error):
                raise one_sample_error(error, samples=stop, batch_size=batches.batch_size) from error
        except Exception:
            pass  # the first batch reports any other mistake


def causes_in_optimizer(optimizer: Optimizer, *, resumed: bool) -> Iterator[str]:
    """What may be the cause of an error in an optimizer's step. resumed: whether its state is a saved one."""
    parameters = parameters_in(optimizer)
    of_torch = type(optimizer).__module__.startswith("torch.")
    if not of_torch and "closure" in inspect.signature(optimizer.step).parameters:
        evaluates = "a closure that evaluates the loss only if that parameter has no default"
        yield f"It gets {evaluates}: def step(self, closure)."
    if isinstance(optimizer, SparseAdam) or any(each.grad is not None and each.grad.is_sparse for each in parameters):
        yield (
            "Layers such as nn.Embedding(sparse=True) have sparse gradients, all others dense ones: leave out "
            "sparse=True, or give each kind its own optimizer (docs/training.md: Several optimizers)."
        )
    if resumed:
        yield "Its saved state may not fit: resume from another checkpoint, or without changes of the config."
