"""Metrics that are means over samples: each function returns one float per sample, shape (B,), which is then averaged.

For metrics that are not means over samples (F1, AUROC ...), name a class of torchmetrics in the config.
"""

from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from utils.errors import ConfigError
from utils.registry import METRICS


@METRICS.register
def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 if the largest of the logits, shape (B, C), is that of the target class, int64 of shape (B,)."""
    _check_classes("accuracy", outputs)
    return (outputs.argmax(1) == targets).float()


@METRICS.register
def top_k_accuracy(outputs: Tensor, targets: Tensor, *, k: PositiveInt = 5) -> Tensor:
    """1 if the target class, int64 of shape (B,), is among the k largest logits, shape (B, C).

    k: how many of the classes count, at most C.
    """
    _check_classes("top_k_accuracy", outputs)
    if k > outputs.shape[1]:
        raise ConfigError(f"metrics: top_k_accuracy: k = {k} is more than the {outputs.shape[1]} classes of the model")
    return (outputs.topk(k, dim=1).indices == targets[:, None]).any(1).float()


def _check_classes(name: str, outputs: Tensor) -> None:
    """Raise ConfigError for outputs without a logit of each class, of which the largest would always be the first."""
    if outputs.dim() < 2 or outputs.shape[1] == 1:
        raise ConfigError(
            f"metrics: {name} takes logits of at least two classes, of shape (B, C), got {tuple(outputs.shape)}; "
            'for a single output that says yes or no, use {"type": "Accuracy", "args": {"task": "binary"}}'
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
