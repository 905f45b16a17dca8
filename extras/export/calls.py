"""Arguments for calling a model, recorded from the trainer's own evaluation step, so that any kind of batch works."""

import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from base.base_data_loader import BaseDataLoader
from base.base_trainer import BaseTrainer
from base.data.batches import Batches, MicroBatch
from base.data.sources import TensorSource
from utils.errors import DataError, UserError
from utils.random import isolated
from utils.tree import map_tensors, tensors
from utils.user_code import format_error_with_source

SAMPLES = 64
"""Samples in the first of two batches; the other has one. Sizes that differ between them become dynamic axes."""
TRIED = 16
"""Number of single samples from which the smallest is chosen: a text is padded only to the longest in its batch."""


@dataclass
class Call:
    """The model's arguments for a batch, on the CPU."""

    samples: int
    arguments: dict[str, Any]
    """By the parameter names of ``forward``: nests of tensors."""
    stored: Tensor | None
    """The batch as stored by the data set, if the only argument is ``transform`` applied to it."""
    transform: Callable[[Tensor], Tensor] | None


def record_calls(trainer: BaseTrainer) -> list[Call]:
    """Record how the trainer calls the model for a batch of test data and for a single sample.

    Raises UserError if the test data cannot be read or is a single sample, or if the trainer does not call the model.
    """
    trainer.experiment.data.num_workers = 0
    calls = [_call(trainer, *_read(trainer.experiment.data, *size)) for size in ((SAMPLES, 1), (1, TRIED))]
    if calls[0].samples == calls[1].samples:
        raise UserError("the test data has a single sample; tracing the model needs batches of two sizes")
    return calls


def _read(data: BaseDataLoader, size: int, tried: int) -> tuple[Batches, MicroBatch]:
    """The test data in batches of this size, and of the first few the one with the smallest tensors.

    A loader without test data gives its training data, not augmented.
    """
    data.eval_batch_size = size
    if not data.defines("test_data"):
        data.test_data = partial(data.training_data, augment=False)  # type: ignore[method-assign]
    try:
        batches = data.test()
        first = itertools.islice(batches.one_pass(), tried)
        return batches, min(first, key=lambda each: sum(tensor.numel() for tensor in tensors(each.data)))
    except Exception as error:  # any error: the loader may be the user's
        what = f"{type(data).__name__}: the test data cannot be read: {format_error_with_source(error)}"
        raise DataError(f"tracing the model needs a batch of test data. {what}") from error


def _call(trainer: BaseTrainer, batches: Batches, batch: MicroBatch) -> Call:
    """Raises UserError if the evaluation step fails, or does not call the model's own ``forward``."""
    model, step = trainer.experiment.model, f"{type(trainer).__name__}.eval_step"
    model.eval()
    with recorded(model) as calls, isolated(trainer.experiment.seed, "export"), torch.no_grad():
        try:
            trainer.eval_step(trainer.runtime.to_device(batch.data))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"a test batch of {batch.size} failed in {step}: {format_error_with_source(error)}"
            ) from error
    if not calls:
        raise UserError(
            f"{step} never calls {type(model).__name__} itself, only parts of it, so there is nothing to trace"
        )
    positional, keywords = calls[0]
    arguments = dict(inspect.signature(model.forward).bind(*positional, **keywords).arguments)
    stored, transform = _stored(batches, batch.size, [*positional, *keywords.values()])
    return Call(batch.size, arguments, stored, transform)


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Yields a list that collects copies of the arguments, as (args, kwargs), of each call of a model."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(map_tensors(lambda tensor: tensor.detach().cpu().clone(), (args, kwargs)))

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _stored(
    batches: Batches, size: int, arguments: list[Any]
) -> tuple[Tensor | None, Callable[[Tensor], Tensor] | None]:
    """The first samples as stored and what prepares them, if that reproduces the only argument exactly."""
    source = batches.source
    if not isinstance(source, TensorSource) or source.transform is None or len(arguments) != 1:
        return None, None
    plain = Batches(TensorSource(source.inputs, source.targets), batch_size=size, indices=batches.indices)
    stored: Tensor = next(iter(plain.one_pass())).data[0].clone()
    prepared, argument = source.transform(stored.clone()), arguments[0]
    same = isinstance(argument, Tensor) and prepared.dtype == argument.dtype and torch.equal(prepared, argument)
    return (stored, source.transform) if same else (None, None)


def dynamic_shapes(first: Any, second: Any, name: Callable[[tuple[int, int]], Any], where: str) -> Any:
    """The ``dynamic_shapes`` of torch.export: the same nest, with ``{axis: name}`` per tensor for axes that vary.

    first, second: arguments of two calls. name: names a pair of sizes. Raises UserError for other differences.
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor) and first.dim() == second.dim():
        pairs = enumerate(zip(first.shape, second.shape, strict=True))
        return {axis: name(pair) for axis, pair in pairs if pair[0] != pair[1]}
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return {key: dynamic_shapes(first[key], second[key], name, f"{where}.{key}") for key in first}
    if isinstance(first, (list, tuple)) and type(first) is type(second) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        items = [dynamic_shapes(*pair, name, f"{where}.{index}") for index, pair in pairs]
        return items if isinstance(first, list) else tuple(items)
    if not [*tensors([first, second])] and type(first) is type(second) and first == second:
        return None
    raise UserError(f"{where} differs between two batches in more than the sizes of tensors")
