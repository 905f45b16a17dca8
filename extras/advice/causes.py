"""The usual causes of errors in a step, which torch's messages do not name, and of a loss that is not finite."""

import copy
import re
import traceback
from collections.abc import Iterable
from typing import Any

from base.base_trainer import BaseTrainer
from base.data.batches import Batches, BatchRange
from base.data.sample_random import as_tensor
from base.data.stream import StreamBatches
from base.training.first_batch import DO_THEY_MATCH, may_not_match
from utils.text import closest
from utils.tree import tensors

OTHER_DEVICE = (
    "a tensor on another device than the batch: create it there, for example by torch.ones(..., device=inputs.device); "
    "if a module keeps it, register it with register_buffer"
)
OWN_CUDA = "a .cuda() in the code: leave it out, since model and batch are moved to runtime.device"
CAUSES = {  # by patterns of torch's and Python's messages
    "on the same device": OTHER_DEVICE,
    "on the expected device": OTHER_DEVICE,
    "and weight type": OTHER_DEVICE,
    "NVIDIA driver": OWN_CUDA,
    "not compiled with CUDA": OWN_CUDA,
    "differentiated Tensors does not require grad": "torch.autograd.grad for an input without a gradient: "
    "x = x.detach().requires_grad_(), before it goes through the model",
    "does not require grad": "a loss that is cut off from the weights, for example by detach(), argmax() or item(); "
    "with several optimizers, also by being computed in another's block of self.optimizing",
    r"Target -\d+ is out of bounds": "a target below 0 that the loss does not ignore: mark targets to ignore by -100, "
    "or name theirs as ignore_index",
    r"Target \d+ is out of bounds": "a class index that is not below the number of the model's outputs: classes "
    "count from 0",
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
    "'list' object has no attribute '(values|items|keys)'": "a list where the code expects a dict: torchvision's "
    "detectors return losses in training, but detections in evaluation, where eval_step returns NaN as its loss",
    "'list' object has no attribute": "samples that are lists of numbers, of which collation makes a list of tensors: "
    "let the data set return torch.tensor(...) or a NumPy array",
    r"Expected input batch_size .* to match target batch_size": "outputs whose first axis was reshaped, but not that "
    "of the targets, such as logits of (B * T, C) for targets of (B, T): cross_entropy takes (B, C, T) for these",
    r"invalid combination of arguments - got \((list|tuple|dict|str|NoneType)": "inputs that are not one tensor: let "
    "the data set return a tensor as input, or let the model or the step take it from the inputs",
    "'TrainingLog' object is not callable": "self.log(name, value), as elsewhere: return StepResult(..., "
    "log={name: value}), and list the names in the class attribute logs",
    r"Metrics\.update\(\) (takes|got|missing)": "self.train_metrics.update(name, value), as elsewhere: return "
    "StepResult(..., log={name: value}), and list the names in the class attribute logs",
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
    "weight tensor should be defined either for all": "class weights that are not one for each of the model's outputs",
    "Class values must be smaller than num_classes": "a class index that is not below num_classes: classes count "
    "from 0",
    "backward through the graph a second time": "a tensor that is kept from an earlier step with its graph, such as a "
    "hidden state or a memory: keep tensor.detach(). With several optimizers: outputs that two blocks of "
    "self.optimizing share; compute them again in each, or detach them in one",
    "modified by an inplace operation": "an operation in place, such as x += 1 or relu_(), on a value that a gradient "
    "needs: x = x + 1",
    r"mat1 and mat2 shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)": r"a linear layer that gets \1 features, "
    r"but has in_features=\2",
    r"expected input\[.*\] to have (\d+) channels, but got (\d+) channels": r"images with \2 channels, where a "
    r"convolution has in_channels=\1",
    "one of the following scalar types: Long, Int": "floats where an embedding takes indices: the data set returns "
    "them as int64",
    # torch's message for view()
    "view size is not compatible": "the memory format of images and the outputs of convolutions, channels_last here, "
    "which is faster; use x.flatten(1) or x.reshape(...) in place of x.view(...)",
    'missing the required "forward"': "a model without a method forward, or with another name for it",
}
OTHER_PARTS = (
    "a batch whose parts are not those that the step unpacks: let the data set return (input, target), or let the "
    "step unpack what it returns"
)
# attributes of trainers elsewhere, and what a trainer has here
FORMER_ATTRIBUTES = {
    "config": "arguments of its constructor, from trainer.args",
    "current_epoch": "self.progress.epochs",
    "device": "self.runtime.device",
    "global_step": "self.progress.steps",
    "hparams": "arguments of its constructor, from trainer.args",
    "data_loader": "self.experiment.data",
    "len_epoch": "self.steps_per_epoch()",
    "log_dict": "StepResult(..., log={...}) and the class attribute logs",
    "logger": "self.picture, self.text, and StepResult(..., log={...})",
    "lr_scheduler": '"lr_scheduler" in the config, which the loop steps',
    "manual_backward": "self.backward(loss)",
    "metric_ftns": '"metrics" in the config',
    "optimizers": "with self.optimizing(NAME), for each of several optimizers",
    "training": "self.model.training",
    "writer": "self.picture, self.text, and StepResult(..., log={...})",
}


def usual_cause(error: Exception, batch: Any = None) -> str:
    """The usual cause of an error in a step for a batch, and what to do; "" if there are many."""
    called = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    in_step = called[-1] in ("train_step", "eval_step")
    if re.search(r"element \d+ of tensors does not require grad", str(error)):
        second = "a second derivative needs create_graph=True in the first"
        in_evaluation = not {"eval_step", "evaluate", "_evaluate"}.isdisjoint(called)
        if in_evaluation and "backward" in called:  # eval_step may be train_step, or call it
            return (
                "a backward pass in an evaluation, which runs without gradients: if torch.is_grad_enabled(): "
                "self.backward(loss)"
            )
        if in_evaluation and "train_step" not in called:
            return (
                "a gradient in eval_step, which runs without gradients: compute it inside torch.enable_grad(); "
                f"{second}, too"
            )
        if called[-2:-1] == ["grad"]:
            return f"torch.autograd.grad of what has no graph: {second}"
    if isinstance(error, NotImplementedError) and called[-1] == "eval_step":
        return (
            "a validation of its own in validate() alone: test.py calls evaluate(), which must return the same "
            "(docs/training.md: A validation of your own)"
        )
    if re.search("values to unpack|cannot unpack non-iterable", str(error)) and in_step:
        return OTHER_PARTS
    if isinstance(batch, dict) and len(batch) == 2 and re.search(r"\bstr\b", str(error)):
        return f'"inputs, targets = batch", which gives the keys of a dict; read batch["{next(iter(batch))}"] instead'
    attribute = re.match(r"'(?!Tensor)[A-Z]\w*' object has no attribute '(\w+)'", str(error))
    if attribute and in_step and attribute[1] in FORMER_ATTRIBUTES:
        return f"self.{attribute[1]}, which a trainer does not have here; use {FORMER_ATTRIBUTES[attribute[1]]}"
    found = ((re.search(pattern, str(error)), cause) for pattern, cause in CAUSES.items())
    return next((match.expand(cause) for match, cause in found if match), "")


def step_advice(trainer: BaseTrainer, error: Exception, batch: Any) -> str:
    """What to do about an error in the step of a first batch: parts of the config probably do not match."""
    class_names = trainer.experiment.data.class_names
    classes = f" The data set has {len(class_names)} classes." if class_names else ""
    if cause := usual_cause(error, batch):
        return f"The usual cause is {cause}.{classes}"
    as_dict = "The batch is a dict: train_step reads its parts by their keys." if isinstance(batch, dict) else ""
    eager = "Does it run with runtime.compile=false? " if trainer.runtime.settings.compile else ""
    if not may_not_match(error):
        meant = f'Did you mean "{close}"?' if (close := _meant(error)) else ""
        return f"{eager}{meant} {as_dict}".strip()
    return f"{eager}{DO_THEY_MATCH}{classes} {as_dict}".strip()


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
        indices = as_tensor(batches.sample_indices(batch_range))
        for tensor in tensors(micro_batch.data):
            if tensor.is_floating_point() and tensor.dim() and len(tensor) == len(indices):
                finite = tensor.reshape(len(tensor), -1).isfinite().all(1).cpu()
                broken.update(indices[~finite].tolist())
    return list(map(str, sorted(broken)))
