"""Metrics averaged over samples: each function returns one float or bool per sample, shape (B,).

For metrics that are not means over samples (F1, AUROC ...), name a class of torchmetrics in the config.
"""

from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from utils.errors import ConfigError
from utils.registry import METRICS


@METRICS.register
def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """True if the target class, int64 of shape (B,), has the largest logit, shape (B, C)."""
    _check_classes("accuracy", outputs, targets)
    return outputs.argmax(1) == targets


@METRICS.register
def top_k_accuracy(outputs: Tensor, targets: Tensor, *, k: PositiveInt = 5) -> Tensor:
    """True if the target class, int64 of shape (B,), is among the k largest logits, shape (B, C).

    k: number of largest logits to consider, at most C.
    """
    _check_classes("top_k_accuracy", outputs, targets)
    if k > outputs.shape[1]:
        raise ConfigError(f"metrics: top_k_accuracy: k = {k} is larger than the model's {outputs.shape[1]} classes")
    return (outputs.topk(k, dim=1).indices == targets[:, None]).any(1)


def _check_classes(name: str, outputs: Tensor, targets: Tensor) -> None:
    """Raise ConfigError for outputs without one logit per class, where the largest would always be the first, and for
    targets that are probabilities or one-hot vectors, (B, C).
    """
    if outputs.dim() < 2 or outputs.shape[1] == 1:
        raise ConfigError(
            f"metrics: {name} needs logits for at least two classes, shape (B, C), got {tuple(outputs.shape)}; "
            'for a single binary output, use {"type": "Accuracy", "args": {"task": "binary"}}'
        )
    if targets.shape == outputs.shape:
        raise ConfigError(
            f"metrics: {name} needs class indices as targets, shape (B,), got {tuple(targets.shape)}; return indices "
            "from the data loader, or leave the metric out"
        )


@METRICS.register
def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, averaged over the elements of each sample. Outputs and targets have the same shape, (B, ...)."""
    return (
        F.mse_loss(outputs, targets, reduction="none").reshape(len(outputs), -1).mean(1)
    )  # (B, ...) -> (B, D) -> (B,)


@METRICS.register
def mean_absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Absolute error, averaged over the elements of each sample. Outputs and targets have the same shape, (B, ...)."""
    return F.l1_loss(outputs, targets, reduction="none").reshape(len(outputs), -1).mean(1)  # (B, ...) -> (B, D) -> (B,)
