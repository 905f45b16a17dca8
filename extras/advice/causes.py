"""The usual causes of errors in a step, which torch's messages do not name, and of a loss that is not finite."""

import copy
import re
import traceback
from collections.abc import Iterable
from typing import Any

from base.base_trainer import BaseTrainer
from base.data.batches import Batches, BatchRange
from base.data.stream import StreamBatches
from base.training.first_batch import DO_THEY_MATCH, may_not_match
from utils.text import closest
from utils.tree import tensors

CAUSES = {  # by patterns of torch's and Python's messages
    "on the (same|expected) device|and weight type": "a tensor on a different device from the batch: create it there, "
    "as by torch.ones(..., device=inputs.device); if a module keeps it, register it with register_buffer",
    "NVIDIA driver|not compiled with CUDA": "a .cuda() in the code: leave it out, since model and batch are moved to "
    "runtime.device",
    "does not require grad": "a loss that is cut off from the weights, for example by detach(), argmax() or item(); "
    "with several optimizers, also by being computed in another's block of self.optimizing",
    r"Target -?\d+ is out of bounds": "a class index that is not below the number of the model's outputs (classes "
    "count from 0), or a target below 0 that the loss does not ignore: -100, unless ignore_index names another",
    "index out of range in self": "an index that is not below the size of an embedding, such as a token that is not in "
    "the vocabulary",
    "Expected target size": "classes that are not on axis 1: outputs have the shape (B, C, ...), so that a language "
    "model with logits of (B, T, C) returns logits.transpose(1, 2)",
    r"result type Float can't be cast to the desired output type (Long|Int|Bool)": "integers as targets of a loss that "
    "takes floats: convert them in the data loader, for example with targets.float()",
    r"(loss|entropy\w*)\(\): argument '(input|target)'.* must be Tensor, not|"
    r"'(tuple|list|dict|str|NoneType|float|ndarray)' object has no attribute '(size|dim|is_floating_point)'": "outputs "
    "or targets that are not tensors: a model returns the tensor alone, or train_step takes it from the outputs; "
    "targets are numbers or tensors",
    r"^\w+\(\): argument 'input'.* must be Tensor, not tuple": "a layer that gets a tuple: nn.RNN, nn.LSTM, nn.GRU and "
    "nn.MultiheadAttention return their outputs with something else, so take the first: outputs, _ = layer(x)",
    "'list' object has no attribute": "samples that are lists of numbers, of which collation makes a list of tensors: "
    "let the data set return torch.tensor(...) or a NumPy array",
    r"Expected input batch_size .* to match target batch_size": "outputs whose first axis was reshaped, but not that "
    "of the targets, such as logits of (B * T, C) for targets of (B, T): cross_entropy takes (B, C, T) for these",
    r"invalid combination of arguments - got \((list|tuple|dict|str|NoneType)": "inputs that are not one tensor: let "
    "the data set return a tensor as input, or let the model or the step take it from the inputs",
    r"'TrainingLog' object is not callable|Metrics\.update\(\) (takes|got)": "self.log(name, value), as elsewhere: "
    "return StepResult(..., log={name: value}), and list the names in the class attribute logs",
    "has no attribute 'optimizer'": "a hand-written loop in train_step: self.backward(loss) is enough, since the base "
    "class clears the gradients and steps the optimizer",
    "(must|to) have the same dtype|should be the same|does not match weight dtype|must have the type torch": "inputs "
    "whose dtype differs from the weights', such as NumPy's float64, or integers: convert them in the data loader, as "
    "in inputs.float()",
    "expected (target dtype to be|scalar type) Long": "targets of cross_entropy that are not class indices of "
    "int64: targets.long(); for numbers, use mse_loss",
    "multi-target not supported": "targets of shape (B, 1), where cross_entropy takes class indices of shape (B,): "
    "targets.squeeze(1)",
    "floating point type for target with class probabilities": "integers in the outputs' shape, such as one-hot "
    "vectors: cross_entropy takes class indices of shape (B,), or probabilities as floats",
    "all elements of input should be between 0 and 1": "logits as outputs, where BCELoss takes probabilities: use "
    "BCEWithLogitsLoss, which applies the sigmoid itself",
    "backward through the graph a second time": "a tensor that is kept from an earlier step with its graph, such as a "
    "hidden state or a memory: keep tensor.detach(). With several optimizers: outputs that two blocks of "
    "self.optimizing share; compute them again in each, or detach them in one",
    "modified by an inplace operation": "an operation in place, such as x += 1 or relu_(), on a value that a gradient "
    "needs: x = x + 1",
    r"mat1 and mat2 shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)": r"a linear layer that gets \1 features, "
    r"but has in_features=\2",
    r"expected input\[.*\] to have (\d+) channels, but got (\d+) channels": r"images with \2 channels, where a "
    r"convolution has in_channels=\1",
    # torch's message for view()
    "view size is not compatible": "the memory format of images and the outputs of convolutions, channels_last here, "
    "which is faster; use x.flatten(1) or x.reshape(...) in place of x.view(...)",
}
ELSEWHERE = {
    "device": "self.runtime.device; batch and model are on it already",
    "writer": "StepResult(..., log={...}), self.picture(tag, images) or self.text(tag, markdown)",
    "logger": "self.console.info(text), or self.text(tag, markdown) for TensorBoard",
    "config": "an argument of the trainer's constructor, set by trainer.args",
    "data_loader": "self.experiment.data",
    "len_epoch": "self.steps_per_epoch()",
    "current_epoch": "self.progress.epochs, which counts the finished ones",
    "global_step": "self.progress.steps",
}
"""Attributes of trainers of other templates and libraries, and what a trainer here has instead."""
STEPS = ("train_step", "eval_step")
OTHER_PARTS = (
    "a batch whose parts are not those that the step unpacks: let the data set return (input, target), or let the "
    "step unpack what it returns"
)


def usual_cause(error: Exception, batch: Any = None) -> str:
    """The usual cause of an error in a step for a batch, and what to do; "" if there are many."""
    called = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    if "does not require grad" in str(error) and not {"eval_step", "evaluate"}.isdisjoint(called):
        return (
            "a gradient in an evaluation, which runs without gradients: call self.backward(loss) only if "
            "torch.is_grad_enabled(), and compute any other gradient inside torch.enable_grad()"
        )
    if "does not require grad" in str(error) and "grad" in called:  # torch.autograd.grad
        return (
            "a derivative without a graph: of the result of torch.autograd.grad without create_graph=True, of a value "
            "computed in torch.no_grad(), or with respect to an input without requires_grad_() or a frozen parameter"
        )
    in_step = called[-1] in STEPS
    if in_step and re.search("values to unpack|cannot unpack non-iterable", str(error)):
        return OTHER_PARTS
    if isinstance(batch, dict) and len(batch) == 2 and _has_unpacked_keys(error, batch):
        return f'"inputs, targets = batch", which gives the keys of a dict; read batch["{next(iter(batch))}"] instead'
    found = ((re.search(pattern, str(error)), cause) for pattern, cause in CAUSES.items())
    return next((match.expand(cause) for match, cause in found if match), "")


def _has_unpacked_keys(error: Exception, batch: dict[Any, Any]) -> bool:
    """Whether a step has the keys of its batch in variables, as after ``inputs, targets = batch``."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name in STEPS]
    texts = [[value for value in frame.f_locals.values() if isinstance(value, str)] for frame in frames]
    return any(all(key in each for key in batch) for each in texts)


def step_advice(trainer: BaseTrainer, error: Exception, batch: Any) -> str:
    """What to do about an error in the step of a first batch: parts of the config probably do not match."""
    if isinstance(error, AttributeError) and error.obj is trainer and error.name in ELSEWHERE:
        return f"A trainer here has no self.{error.name}: use {ELSEWHERE[error.name]}."
    class_names = trainer.experiment.data.class_names
    classes = f" The data set has {len(class_names)} classes." if class_names else ""
    if cause := usual_cause(error, batch):
        return f"The usual cause is {cause}.{classes}"
    eager = "Does it run with runtime.compile=false? " if trainer.runtime.settings.compile else ""
    if may_not_match(error):
        return f"{eager}{DO_THEY_MATCH}{classes}"
    meant = _meant(error)
    return f'{eager}Did you mean "{meant}"?' if meant else eager.strip()


def _meant(error: Exception) -> str | None:
    """The attribute that a misspelt one may stand for."""
    if not isinstance(error, AttributeError) or error.obj is None:
        return None
    return closest(error.name or "", [name for name in dir(error.obj) if not name.startswith("_")])


def broken_samples(batches: Batches, ranges: Iterable[BatchRange]) -> list[str]:
    """The samples in some batches with values that are not finite; none for a stream, which cannot go back."""
    if isinstance(batches, StreamBatches):
        return []
    alone, broken = copy.copy(batches), set[int]()
    alone.divide(0, 1)
    alone.num_workers = 0
    for batch_range in ranges:
        [micro_batch] = alone.load([batch_range])
        indices = batches.sample_indices(batch_range)
        for tensor in tensors(micro_batch.data):
            if tensor.is_floating_point() and tensor.dim() and len(tensor) == len(indices):
                finite = tensor.reshape(len(tensor), -1).isfinite().all(1).cpu()
                broken.update(indices[~finite].tolist())
    return list(map(str, sorted(broken)))
