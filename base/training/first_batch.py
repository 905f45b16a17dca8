"""What to say when the first batch fails, looks wrong, or a loss is not finite."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from base.data.sources import describe_batch
from base.metric import StepResult
from utils.distributed import current
from utils.errors import TrainingError, UserError
from utils.user_code import format_error, user_line

FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, IndexError)
SUM_TOLERANCE = 0.02  # of the probabilities of a sample, in bf16 too


def first_batch_error(error: Exception, batch: Any, class_names: Sequence[str] | None) -> Exception:
    """The first batch fails most often because two parts of a config do not fit each other."""
    classes = f" The data have {len(class_names)} classes." if class_names else ""
    line = user_line(error) or f"  {format_error(error)}"
    return current().peer_failure(error) or UserError(
        f"the first batch ({describe_batch(batch)}) failed in the model, the loss or a metric: {error}\n"
        f"{line}\nDo the shapes of data_loader, model and loss in the config fit each other?{classes}"
    )


def first_batch_warnings(result: StepResult, criterion: Any, class_names: Sequence[str] | None) -> Iterator[str]:
    """What is surely a mistake in a first batch that went through all the same."""
    warnings = (surplus_outputs(result, class_names), not_probabilities(result, criterion))
    yield from filter(None, warnings)


def surplus_outputs(result: StepResult, class_names: Sequence[str] | None) -> str | None:
    """A classifier with more outputs, (B, C), than the data have classes, which trains all the same."""
    outputs, targets = result.outputs, result.targets
    if not (class_names and isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return None
    if outputs.dim() != 2 or targets.dim() != 1 or targets.is_floating_point() or outputs.shape[1] <= len(class_names):
        return None
    return (
        f"the model has {outputs.shape[1]} outputs, but the data have {len(class_names)} classes; "
        f"did you mean model.args.num_classes={len(class_names)}?"
    )


def not_probabilities(result: StepResult, criterion: Any) -> str | None:
    """Targets of cross_entropy in the shape of the outputs, (B, C), that are not class probabilities.

    Rows of zeros are allowed: that is how samples are ignored.
    """
    outputs, targets = result.outputs, result.targets
    name = getattr(getattr(criterion, "func", None) or type(criterion), "__name__", "")
    both = isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.shape == targets.shape
    if name not in ("cross_entropy", "CrossEntropyLoss") or not both or targets.dim() < 2:
        return None
    others = "use mse_loss for numbers, BCEWithLogitsLoss for classes that do not exclude each other"
    if outputs.shape[1] == 1:
        return f"{name} of a single output is always 0; {others}"
    sums = targets.detach().float().sum(1).flatten()  # (B, C, ...) -> (B * ...)
    deviation = (sums - 1).abs() * (sums != 0)
    if not bool((targets < 0).any() | (deviation > SUM_TOLERANCE).any()):
        return None
    return (
        f"{name} expects class probabilities, but these targets are not (range {float(targets.min()):.4g} to "
        f"{float(targets.max()):.4g}, one row sums to {float(sums[deviation.argmax()]):.4g}). "
        f"Class indices are int64 of shape (B,); {others}"
    )


def non_finite_loss(loss: float, step: int, epoch: int, indices: Tensor, checkpoints: Path) -> TrainingError:
    """indices: the samples of the step, int64 of shape (B,)."""
    samples = ", ".join(map(str, indices[:8].tolist())) + (", ..." if len(indices) > 8 else "")
    message = (
        f"the loss is {loss} at step {step} (epoch {epoch}, samples {samples}).\n"
        "Try a lower learning rate (--lr), trainer.clip_grad_norm=1 or runtime.precision=fp32, and check these samples "
        "for values that are not finite and for targets that the loss does not accept."
    )
    if any(checkpoints.glob("step-*")):
        message += f"\nThe checkpoints in {checkpoints} are from before that step."
    return TrainingError(message)
