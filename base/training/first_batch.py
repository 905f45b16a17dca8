"""What to say when the parts of a config do not fit each other, or the loss is lost."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from base.data.sources import describe_batch
from base.metric import StepResult
from utils.distributed import current
from utils.errors import TrainingError, UserError
from utils.user_code import format_error, user_line

MISFITS = (RuntimeError, ValueError, TypeError, IndexError)
SUM_TOLERANCE = 0.02  # of probabilities, in bf16 too


def misfit(error: Exception, batch: Any, class_names: Sequence[str] | None) -> Exception:
    """What goes wrong with the very first batch is most often a config whose parts do not fit each other."""
    classes = f" The data have {len(class_names)} classes." if class_names else ""
    line = user_line(error) or f"  {format_error(error)}"
    return current().peer_failure(error) or UserError(
        f"the first batch ({describe_batch(batch)}) does not go through model, loss and metrics: {error}\n"
        f"{line}\nDo the shapes of data_loader, model and loss in the config fit each other?{classes}"
    )


def other_classes(result: StepResult, class_names: Sequence[str] | None) -> str | None:
    """What to say where a classifier has more outputs, (B, C), than the data have classes: it learns all the same."""
    outputs, targets = result.outputs, result.targets
    if not (class_names and isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return None
    if outputs.dim() != 2 or targets.dim() != 1 or targets.is_floating_point() or outputs.shape[1] <= len(class_names):
        return None
    return (
        f"the model has {outputs.shape[1]} outputs, and the data have {len(class_names)} classes: "
        f"model.args.num_classes={len(class_names)} perhaps"
    )


def doubts(result: StepResult, criterion: Any, class_names: Sequence[str] | None) -> Iterator[str]:
    """What is surely a mistake in a first batch that went through all the same."""
    found = (other_classes(result, class_names), no_probabilities(result, criterion))
    yield from filter(None, found)


def no_probabilities(result: StepResult, criterion: Any) -> str | None:
    """What to say where cross_entropy takes numbers for probabilities of the classes, (B, C), which are none.

    Rows of zeros alone stay out of it: that is how samples are left out.
    """
    outputs, targets = result.outputs, result.targets
    name = getattr(getattr(criterion, "func", None) or type(criterion), "__name__", "")
    both = isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.shape == targets.shape
    if name not in ("cross_entropy", "CrossEntropyLoss") or not both or targets.dim() < 2:
        return None
    others = "for numbers to predict there is mse_loss, for classes that do not exclude each other BCEWithLogitsLoss"
    if outputs.shape[1] == 1:
        return f"{name} of a single output is always 0; {others}"
    sums = targets.detach().float().sum(1).flatten()  # (B, ...) -> (B * ...)
    wrong = (sums - 1).abs() * (sums != 0)
    if not bool((targets < 0).any() | (wrong > SUM_TOLERANCE).any()):
        return None
    return (
        f"{name} takes targets of the outputs' shape as probabilities of {outputs.shape[1]} classes, and these are "
        f"none (from {float(targets.min()):.4g} to {float(targets.max()):.4g}; those of a sample add up to "
        f"{float(sums[wrong.argmax()]):.4g}). Indices of classes are int64 of shape (B,); {others}"
    )


def not_finite(loss: float, step: int, epoch: int, indices: Tensor, checkpoints: Path) -> TrainingError:
    """indices: the samples of the step, int64 of shape (B,)."""
    samples = ", ".join(map(str, indices[:8].tolist())) + (", ..." if len(indices) > 8 else "")
    return TrainingError(
        f"the loss is {loss} at step {step} (in epoch {epoch}, with the samples {samples}).\n"
        "Try a lower learning rate (--lr), trainer.clip_grad_norm=1 or runtime.precision=fp32, and look "
        "for values in these samples that are not finite, and at whether the loss takes such targets."
        + (f"\nThe checkpoints in {checkpoints} are from before that step." if any(checkpoints.glob("step-*")) else "")
    )
