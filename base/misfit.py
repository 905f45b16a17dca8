"""What to say when the parts of a config do not fit each other, or the loss is lost."""

from pathlib import Path
from typing import Any

from torch import Tensor

from base.data import describe_batch
from utils.errors import TrainingError, UserError
from utils.processes import joined
from utils.registry import user_frame

MISFITS = (RuntimeError, ValueError, TypeError, IndexError)


def misfit(error: Exception, batch: Any) -> Exception:
    """What goes wrong with the very first batch is most often a config whose parts do not fit each other."""
    return joined().lost(error) or UserError(
        f"the first batch ({describe_batch(batch)}) does not go through model, loss and metrics: {error}\n"
        f"{user_frame(error)}\nDo the shapes of data_loader, model and loss in the config fit each other?"
    )


def not_finite(loss: float, step: int, epoch: int, indices: Tensor, checkpoints: Path) -> TrainingError:
    """indices: the samples of the step, int64 of shape (B,)."""
    samples = ", ".join(map(str, indices[:8].tolist())) + (", ..." if len(indices) > 8 else "")
    return TrainingError(
        f"the loss is {loss} at step {step} (in epoch {epoch}, with the samples {samples}).\n"
        "Try a lower learning rate (--lr), trainer.clip_grad_norm=1 or runtime.precision=fp32, and look "
        "for values in these samples that are not finite.\n"
        f"The checkpoints in {checkpoints} are from before that step."
    )
