"""The loss of the first batch, compared with that of an uninformed guess."""

import math
from typing import Any

from torch import Tensor

from base.experiment import Experiment
from base.metric import StepResult
from base.training.library_metric import CLASS_LOGITS
from extras.check.check_result import CheckResult
from extras.classification import may_be_classes
from utils.schema import Config
from utils.tree import tensors


def first_loss(result: StepResult, config: Config, experiment: Experiment) -> CheckResult:
    """result: of the first batch, in evaluation."""
    loss, component = float(result.loss), config.losses.get("")
    outputs, targets = _only(result.outputs), _only(result.targets)
    if component is None or outputs is None or targets is None or not experiment.supervised:
        return check_first_loss(loss)
    classes, names = count_classes(outputs, targets), experiment.data.class_names
    if classes and may_be_classes(component.type, classes, names, int(targets.max()) if len(targets) else None):
        takes_logs = component.type == "NLLLoss"
        return check_first_loss(
            loss,
            classes=classes,
            count=targets.numel() if experiment.sum_loss else 1,
            certain=takes_logs or component.type in CLASS_LOGITS,
            nll=takes_logs and not _are_log_probabilities(outputs),
            pretrained=_may_be_pretrained(config, experiment),
        )
    baseline = math.nan
    if targets is result.targets and outputs is result.outputs and targets.shape == outputs.shape:
        constant = targets.to(outputs.dtype).mean(0).expand_as(outputs)
        baseline = float(experiment.criterion(constant, targets))
    return check_first_loss(loss, baseline=baseline)


def _may_be_pretrained(config: Config, experiment: Experiment) -> bool:
    """Whether weights come from a file, or some are frozen, which would make no sense for random ones."""
    frozen = config.trainer.freeze or not all(each.requires_grad for each in experiment.model.parameters())
    return config.model.weights is not None or bool(frozen)


def _are_log_probabilities(outputs: Tensor) -> bool:
    """outputs: (B, C, ...)."""
    return bool((outputs.detach().float().logsumexp(1).abs() < 1e-3).all())


def count_classes(outputs: Tensor, targets: Tensor) -> int:
    """C for logits (B, C, ...) or (B, ..., C) and class indices (B, ...); 0 for anything else."""
    if targets.is_floating_point() or targets.is_complex() or outputs.dim() != targets.dim() + 1 or targets.dim() < 1:
        return 0
    if outputs.shape[:1] + outputs.shape[2:] == targets.shape:
        return outputs.shape[1]
    return outputs.shape[-1] if outputs.shape[:-1] == targets.shape else 0


def check_first_loss(
    loss: float,
    *,
    classes: int = 0,
    count: int = 1,
    baseline: float = math.nan,
    certain: bool = True,
    nll: bool = False,
    pretrained: bool = False,
) -> CheckResult:
    """The loss of the untrained model compared with an uninformed guess.

    classes: the loss is a cross-entropy of class indices, which is ln C for C equally likely classes, summed over count
    samples. certain: whether that is known; a user's own loss may be anything. nll: it takes log-probabilities, but the
    outputs are none. pretrained: whether the model may start from trained weights, perhaps with a new last layer.
    baseline: for any other loss, the loss of a constant output; NaN if unknown.
    """
    loss += 0.0  # no -0, which some losses give for 0
    if not math.isfinite(loss):
        cause = "a logarithm or division in the model or the loss, or unscaled inputs"
        return CheckResult("first loss", "FAIL", f"the loss is {loss} before the first step", cause)
    if classes > 1:
        return _check_classes(loss, classes, count, certain=certain, nll=nll, pretrained=pretrained)
    if not math.isfinite(baseline):
        return CheckResult("first loss", "ok", f"{loss:.4g}")
    text = f"{loss:.4g}; predicting the mean of the targets would give {baseline:.4g}"
    far = loss > 10 * abs(baseline)
    cause = "initial weights or inputs that are too large, or unscaled targets" if far else ""
    return CheckResult("first loss", "note" if far else "ok", text, cause)


def _check_classes(loss: float, classes: int, count: int, *, certain: bool, nll: bool, pretrained: bool) -> CheckResult:
    expected = math.log(classes) * count
    times = f" x {count}" if count > 1 else ""
    text = f"{loss:.4g}; equally likely classes would give ln {classes}{times} = {expected:.4g}"
    if loss > 2 * expected:
        cause = "initial weights or inputs that are too large"
        if pretrained:
            return CheckResult(
                "first loss", "note", text, f"weights trained on other data, a new layer on large features, or {cause}"
            )
        return CheckResult("first loss", "FAIL" if certain else "note", text, cause)
    if loss < expected / 2 and certain:
        if nll or loss < 0:
            return CheckResult("first loss", "FAIL", text, "a loss that expects log_softmax but gets logits (nll_loss)")
        if pretrained:
            return CheckResult("first loss", "ok", f"{text}; the weights may not be random")
        return CheckResult("first loss", "note", text, "pretrained weights, or targets leaking into the inputs")
    return CheckResult("first loss", "ok", text)


def _only(nest: Any) -> Tensor | None:
    """The only tensor in a nest, if there is just one."""
    found = list(tensors(nest))
    return found[0] if len(found) == 1 else None
