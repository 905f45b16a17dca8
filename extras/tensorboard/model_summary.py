"""The layers of a model, its graph, and its results on training samples, computed without side effects."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.versions_pb2 import VersionDef
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from base.base_trainer import BaseTrainer
from base.data.batches import BatchRange
from extras.document import markdown_table
from extras.layers import HEADER, Trace, traced
from extras.tensorboard import pictures
from extras.untouched import untouched
from utils.tree import tensors
from utils.user_code import format_error

if TYPE_CHECKING:
    from extras.report import EvaluationStats

MOST = 5000
"""Maximum number of nodes; with more, as for a loop over a long sequence, browsers cannot draw the graph."""
SAMPLES = 1000
"""Number of training samples to evaluate without validation data."""


def first_batch(trainer: BaseTrainer, samples: int) -> Any:
    """The first training samples, as the model gets them.

    Loaded by the workers, if any: a data set that opens a file in this process might not survive their start.
    """
    batches = trainer.training.batches
    [micro_batch] = batches.load([BatchRange(0, 0, min(samples, batches.num_samples))])
    return micro_batch.data


def model_summary(trainer: BaseTrainer) -> tuple[str, bytes | None]:
    """The table of layers as Markdown, and the graph in TensorBoard's format; None if the model cannot be traced.

    Runs two samples through the model.
    """
    model = trainer.experiment.model
    if trainer.runtime.process_group.world_size > 1:  # the model would wait for the others
        return f"{_size(trainer)}\n\nWith several processes, no table of layers or graph is available.", None
    trace = Trace()
    recorder = Recorder()
    try:
        with untouched(trainer, "model summary"):
            samples = first_batch(trainer, 2)  # starts the workers, which would inherit what is switched on below
            with traced(model, trace), recording(model, recorder), warnings.catch_warnings():
                model.eval()
                warnings.simplefilter("ignore")  # the first training step will show them
                trainer.eval_step(trainer.runtime.to_device(samples))
    except Exception as error:  # from the user's own code, which may not support this batch size
        return f"{_size(trainer)}\n\nNo table of layers or graph: {format_error(error)}", None
    table = "\n".join(markdown_table(HEADER, trace.rows, right=[3]))
    return f"{_size(trainer)}\n\n{table}", recorder.graph().SerializeToString()


def evaluated_training_samples(trainer: BaseTrainer, stats: "EvaluationStats") -> Iterator[Summary]:
    """The pictures of an evaluation of the first training samples, in a run without validation."""
    batches = trainer.training.batches
    ranges = list(itertools.islice(batches.ranges(), min(len(batches), -(-SAMPLES // batches.batch_size))))
    stats.begin_evaluation(sum(batch_range.size for batch_range in ranges))
    with untouched(trainer, "model summary"):
        trainer.experiment.model.eval()
        for micro_batch in batches.load(ranges):
            result = trainer.eval_step(trainer.runtime.to_device(micro_batch.data))
            stats.evaluated(micro_batch.range, micro_batch.data, result)
    stats.end_evaluation()
    yield from pictures.evaluation(stats, "training")


def _size(trainer: BaseTrainer) -> str:
    """Parameters that are frozen in this epoch count: a resumed run writes the same."""
    model, trainable = trainer.experiment.model, trainer.training.frozen.trainable
    parameters = sum(parameter.numel() for name, parameter in model.named_parameters() if name in trainable)
    return f"{type(model).__name__}: {parameters:,} trainable parameters"


class Recorder(TorchFunctionMode):
    """Inside ``recording``, each torch function that the model calls becomes a node of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[NodeDef] = []
        self._scopes: list[str] = []
        self._sources: dict[int, str] = {}
        self._alive: list[Tensor] = []  # otherwise a later tensor might get the id of a freed one
        self._taken: dict[str, int] = {}

    def graph(self) -> GraphDef:
        return GraphDef(node=self.nodes, versions=VersionDef(producer=22))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = list(tensors(result))
        if self._scopes and outputs:
            # for attributes such as x.T, func is the getter
            name = getattr(func.__self__ if func.__name__ == "__get__" else func, "__name__", "function").strip("_")
            self._add(self._scopes[-1] + name, name, [args, kwargs], outputs)
        return result

    def _add(self, name: str, kind: str, arguments: Any, outputs: Sequence[Tensor]) -> None:
        """Add a node with these outputs, after those that produced its arguments. Equal names are numbered."""
        if len(self.nodes) == MOST:
            return
        count = self._taken[name] = self._taken.get(name, 0) + 1
        name = name if count == 1 else f"{name}_{count}"
        inputs = dict.fromkeys(self._sources[id(each)] for each in tensors(arguments) if id(each) in self._sources)
        shapes = [TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in each.shape]) for each in outputs]
        attributes = {"_output_shapes": AttrValue(list=AttrValue.ListValue(shape=shapes))}
        self.nodes.append(NodeDef(name=name, op=kind, input=inputs, attr=attributes))
        self._sources |= {id(tensor): name for tensor in outputs}
        self._alive += outputs

    def enter(self, name: str, _: nn.Module, arguments: Any, keywords: Any) -> None:
        """Enter a layer; the model itself has no name."""
        if not name:
            for tensor in tensors([arguments, keywords]):
                self._add("inputs", "Input", [], [tensor])
        self._scopes.append(f"{name.replace('.', '/')}/" if name else "")

    def exit(self, name: str, _: nn.Module, __: Any, outputs: Any) -> None:
        self._scopes.pop()
        if not name:
            self._add("outputs", "Output", outputs, [])


@contextmanager
def recording(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Inside the block, record what the model computes."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(recorder.enter, name), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(recorder.exit, name)))
    try:
        with recorder:
            yield
    finally:
        for handle in handles:
            handle.remove()
