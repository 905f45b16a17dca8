"""Builds the objects of a run from a checked config, for training and testing alike."""

import functools
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from base.base_data_loader import BaseDataLoader
from base.base_trainer import BaseTrainer
from base.construct import arguments_of, call, check_attributes, check_overrides, check_super, construct
from base.data.batches import Batches
from base.data.stream import StreamBatches, check_not_empty
from base.experiment import Experiment, Training
from base.losses import build_loss
from base.metric import of_entry
from base.training.library_metric import LibraryMetric
from base.training.metrics import Metrics
from base.training.parameters import (
    Frozen,
    Mismatch,
    ParameterGroup,
    divide_parameters,
    parameters_of,
    replaced_arguments,
    unregistered_weights,
    unsaved_weights,
)
from base.training.schedule import Schedule, ScheduledOptimizer
from logger.console import Console
from utils.config import LoadedConfig, to_json
from utils.config.resume import saved_config
from utils.config.schedulers import length_conflict, make_scheduler, with_mode
from utils.determinism import use_deterministic_kernels
from utils.distributed import ProcessGroup, get_process_group
from utils.errors import ConfigError
from utils.extras import find_extra
from utils.optimizers import needs_closure
from utils.paths import code_digests
from utils.prepare import prepare_model, prepare_optimizer, supports_fused
from utils.random import isolated, seed_generators
from utils.registry import DATA_LOADERS, METRICS, MODELS, OPTIMIZERS, SCHEDULERS, TRAINERS
from utils.runtime import Runtime
from utils.schema import Component, KeyPath, component_path
from utils.signals import SignalWatch
from utils.text import count, listed
from utils.tree import has_strides, to_device


def with_facts(loaded: LoadedConfig) -> tuple[LoadedConfig, BaseDataLoader | None]:
    """The config with its data loader's facts filled in, and that loader; None if it refers to no facts."""
    if not loaded.from_data:
        return loaded, None
    process_group = get_process_group()
    process_group.connect(loaded.config.runtime.timeout)
    data = build_data_loader(loaded)
    seed_generators(loaded.config.seed, "training data")  # as in build_training: the data loader may keep what it draws
    with process_group.main_process_first():
        facts = call(loaded, ("data_loader", "args"), loaded.config.data_loader.type, data.facts, dict)
    return loaded.with_facts({str(name): fact for name, fact in facts.items()}), data


def build_data_loader(loaded: LoadedConfig) -> BaseDataLoader:
    return _data_loader(loaded, loaded.config.data_loader, ("data_loader",))


def _data_loader(loaded: LoadedConfig, component: Component, path: KeyPath) -> BaseDataLoader:
    seed_generators(loaded.config.seed, "data loader", *path)
    loader = construct(loaded, DATA_LOADERS, component, path, BaseDataLoader)  # type: ignore[type-abstract]
    check_super(loaded, path, loader, "device_cache", "batch_size=batch_size, ...")
    check_overrides(loaded, path, loader, BaseDataLoader)
    return loader


def build_model(loaded: LoadedConfig) -> nn.Module:
    """The model with its initial weights, determined by the seed. Raises ConfigError if some have no values yet."""
    seed_generators(loaded.config.seed, "model")
    model = construct(loaded, MODELS, loaded.config.model, ("model",), nn.Module)
    named_tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    if without_values := [name for name, tensor in named_tensors if nn.parameter.is_lazy(tensor) or tensor.is_meta]:
        message = (
            f"{loaded.config.model.type} has tensors without values: {listed(without_values)}. Call lazy layers on "
            "zeros once in its constructor, and create tensors on the CPU, not on device meta"
        )
        raise loaded.error(("model",), message)
    if unregistered := unregistered_weights(model):
        raise loaded.error(("model",), unregistered)
    for buffer in filter(has_strides, model.buffers()):
        if any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True)):
            # an expanded buffer, whose elements share memory, cannot be loaded
            buffer.data = buffer.data.clone(memory_format=torch.contiguous_format)
    return model


def build_experiment(loaded: LoadedConfig, data: BaseDataLoader | None = None) -> Experiment:
    """The parts shared by training and testing. Raises ConfigError with the source location of a part that fails.

    loaded, data: from ``with_facts``.
    """
    config = loaded.config
    try:
        runtime = Runtime(config.runtime, full_states=config.trainer.checkpoint == "full")
    except ConfigError as error:
        raise loaded.error(error.path, error.message) from error
    process_group = runtime.process_group
    _check_processes(loaded, process_group)
    data = build_data_loader(loaded) if data is None else data
    model = build_model(loaded)
    criterion, sum_loss = build_loss(loaded, runtime.device)
    data.device = runtime.device
    prepare_model(runtime, model)
    make_metrics = functools.partial(_metrics, loaded, runtime, sum_loss)
    make_metrics()  # to report mistakes now
    console = Console(config.trainer.verbosity, silent=not process_group.is_main_process)
    use_deterministic_kernels(config.runtime.deterministic, runtime.device)
    return Experiment(
        saved_config=saved_config(config),
        seed=config.seed,
        runtime=runtime,
        data=data,
        model=model,
        criterion=criterion,
        sum_loss=sum_loss,
        make_metrics=make_metrics,
        console=console,
        signals=SignalWatch(process_group),
        supervised=getattr(TRAINERS[config.trainer.type], "supervised", True),
    )


def _check_processes(loaded: LoadedConfig, process_group: ProcessGroup) -> None:
    """Raise UserError if a batch has fewer samples than there are processes, or if they differ in config or code."""
    batch = loaded.config.data_loader.args.get("batch_size")
    if isinstance(batch, int) and batch < process_group.world_size:
        message = (
            f"{count(batch, 'sample')} cannot be shared by {process_group.world_size} processes; "
            "batch_size is the total over all processes"
        )
        raise loaded.error(("data_loader", "args", "batch_size"), message)
    if process_group.world_size > 1:
        code = {f"code in {folder}/": digest for folder, digest in code_digests().items()}
        process_group.check_same({"config": to_json(loaded.config), **code, "version of torch": torch.__version__})


def build_trainer(loaded: LoadedConfig, experiment: Experiment) -> BaseTrainer:
    settings = loaded.config.trainer
    if (hints := find_extra("hints")) and (hint := hints.hook_hint(TRAINERS[settings.type])):
        raise loaded.error(("trainer",), hint)
    at = ("trainer", "args")
    # modules that it gets or creates have the same weights in training, in tests and in every process
    with isolated(loaded.config.seed, "trainer"):
        args = to_device(arguments_of(loaded, TRAINERS, settings.type, settings.args, at), experiment.runtime.device)
        make = functools.partial(TRAINERS[settings.type], experiment, settings, **args)
        trainer = call(loaded, at, settings.type, make, BaseTrainer)
    check_super(loaded, ("trainer",), trainer, "train_metrics", "experiment, settings")
    check_overrides(loaded, ("trainer",), trainer, BaseTrainer)
    check_attributes(loaded, ("trainer",), trainer)
    return trainer


def build_training(loaded: LoadedConfig, experiment: Experiment) -> Training:
    """The parts only training needs. Reads the training data, writes nothing."""
    config, settings, data = loaded.config, loaded.config.trainer, experiment.data
    at, name = ("data_loader", "args"), config.data_loader.type
    process_group = experiment.runtime.process_group
    seed_generators(config.seed, "training data")
    with process_group.main_process_first():
        batches = call(loaded, at, name, lambda: data.training(config.seed), Batches)
        validation = _validation(loaded, data)
        for part in validation.values():
            check_not_empty(part)
    if isinstance(batches, StreamBatches) and settings.steps_per_epoch is None:
        raise loaded.error(("trainer", "steps_per_epoch"), "a stream of unknown length needs trainer.steps_per_epoch")
    for part in (batches, *validation.values()):
        part.divide(process_group.rank, process_group.world_size)
    if not validation:
        _check_without_validation(loaded)
    optimizers, frozen = _optimizers(loaded, experiment, batches)
    seed_generators(config.seed, "training", *process_group.key)
    return Training(batches, validation, optimizers, frozen)


def _check_without_validation(loaded: LoadedConfig) -> None:
    """Raise ConfigError if the config needs validation data."""
    settings = loaded.config.trainer
    if getattr(TRAINERS[settings.type], "validate", None) is not BaseTrainer.validate:
        return  # which may use no validation data
    message = "needs validation data, but there is none: data_loader.args.validation_split is 0"
    if settings.monitored_name.startswith("val_"):
        raise loaded.error(("trainer", "monitor"), message)
    if settings.validate_every_steps:
        raise loaded.error(("trainer", "validate_every_steps"), message)


def _validation(loaded: LoadedConfig, data: BaseDataLoader) -> dict[str, Batches]:
    """The batches of each validation set by name; a single one has the name ""."""
    at = ("data_loader", "args")
    # what is held out is of the training data, which the loader may draw again
    seed_generators(loaded.config.seed, "training data" if data._holds_out() else "validation data")
    held_out: Batches | None = call(loaded, at, type(data).__name__, data.validation, (Batches, type(None)))
    if not loaded.config.validations:
        return {} if held_out is None else {"": held_out}
    if held_out is not None:
        raise loaded.error(
            ("validation",),
            f"{type(data).__name__} also has validation data; leave out this key, or its validation_split, folds, "
            "split() or validation_data()",
        )
    return {
        name: _validation_set(loaded, component, component_path("validation", name), data.device)
        for name, component in loaded.config.validations.items()
    }


def _validation_set(loaded: LoadedConfig, component: Component, path: KeyPath, device: torch.device) -> Batches:
    """The held-out part of a separate data loader, or else its test data. device: where training runs."""
    loader = _data_loader(loaded, component, path)
    loader.device = device
    seed_generators(loaded.config.seed, "validation data", *path)

    def make() -> Batches:
        held_out = loader.validation()
        return loader.test() if held_out is None else held_out

    return call(loaded, (*path, "args"), component.type, make, Batches)


def _metrics(loaded: LoadedConfig, runtime: Runtime, sum_loss: bool, *, training: bool = False) -> Metrics:
    functions, library, definitions = {}, dict[str, LibraryMetric](), {}
    losses = loaded.config.losses
    for index, metric in enumerate(loaded.config.metrics):
        if training and not metric.training:
            continue
        name, component = metric.logged_name, METRICS[metric.type]
        args = arguments_of(loaded, METRICS, metric.type, metric.args, ("metrics", index, "args"))
        make = functools.partial(component, **args)
        definitions[name] = metric.model_dump(exclude={"training"} if metric.entry else {"training", "entry"})
        if inspect.isclass(component):
            from torchmetrics import Metric  # slow to import

            built = call(loaded, ("metrics", index), metric.type, make, Metric).to(runtime.device)
            loss = losses.get(metric.entry or "")
            library[name] = LibraryMetric(name, built, loss.type if loss else "", entry=metric.entry)
        else:
            functions[name] = functools.partial(of_entry, make, name, metric.entry) if metric.entry else make
    logs = getattr(TRAINERS[loaded.config.trainer.type], "logs", ())
    weights = {name: loss.weight for name, loss in losses.items() if name}
    return Metrics(
        functions,
        library,
        sum_loss=sum_loss,
        process_group=runtime.process_group,
        definitions=definitions,
        logs=[*logs, *weights],
        loss_weights={} if training or sum_loss else weights,
    )


def _optimizers(
    loaded: LoadedConfig, experiment: Experiment, batches: Batches
) -> tuple[dict[str, ScheduledOptimizer], Frozen]:
    """Each optimizer with its schedule, by name, and the frozen parameters."""
    config = loaded.config
    # including frozen ones, which may be thawed later
    parameters = parameters_of(experiment.model, experiment.criterion)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise loaded.error(("model",), f"{config.model.type} has no parameters to train")
    try:
        frozen = Frozen(experiment.model, parameters, config.trainer.freeze, epochs=config.trainer.epochs)
        divided = divide_parameters(parameters, config.optimizers, frozen=frozen.names(config.trainer.epochs))
    except Mismatch as mismatch:
        raise loaded.error(mismatch.path, str(mismatch)) from mismatch
    if unsaved := unsaved_weights(experiment.model, frozen.trainable - frozen.names(config.trainer.epochs)):
        message = (
            f"{config.model.type}.state_dict() leaves out {listed(unsaved)}, so a checkpoint would lack what is "
            "trained; freeze it with requires_grad_(False), or let state_dict() return it"
        )
        raise loaded.error(("model",), message)
    scheduled = {}
    for name, groups in divided.items():
        optimizer = _optimizer(loaded, experiment, name, groups)
        for path, reason in replaced_arguments(config.optimizers[name], groups):
            if loaded.document.is_override(path):
                raise loaded.error(path, reason)
            experiment.console.warn(str(loaded.error(path, reason)))
        settings = config.optimizers[name]
        scheduled[name] = ScheduledOptimizer(
            optimizer,
            schedule=_schedule(loaded, optimizer, name, batches),
            parameters=[parameter for group in groups for parameter in group.parameters],
            name=name,
            group_names=["_".join(filter(None, (name, group.name))) for group in groups],
            clip_norm=settings.clip_grad_norm or config.trainer.clip_grad_norm,
            clip_value=settings.clip_grad_value or config.trainer.clip_grad_value,
        )
    return scheduled, frozen


def _optimizer(loaded: LoadedConfig, experiment: Experiment, name: str, groups: Sequence[ParameterGroup]) -> Optimizer:
    """The named optimizer ("" if there is only one) for its parameter groups."""
    component = loaded.config.optimizers[name]
    at = component_path("optimizer", name)
    args = arguments_of(loaded, OPTIMIZERS, component.type, component.args, (*at, "args"))
    param_groups: list[Any] = [{"params": group.parameters, **group.args} for group in groups]
    fused = supports_fused(experiment.runtime, experiment.model, component.type, args, param_groups)
    if fused is not None and not args.keys() & {"fused", "foreach", "differentiable"}:
        args["fused"] = fused
    params = param_groups if len(groups) > 1 or groups[0].args else groups[0].parameters
    make = functools.partial(OPTIMIZERS[component.type], params, **args)
    optimizer = call(loaded, (*at, "args"), component.type, make, Optimizer)
    check_super(loaded, at, optimizer, "defaults", "params, defaults")
    if "lr" not in optimizer.defaults and any("lr" not in group for group in optimizer.param_groups):
        message = f'{component.type} has no "lr" in its defaults: super().__init__(params, {{"lr": lr}})'
        raise loaded.error(at, message)
    for group in groups:
        if unknown := sorted(group.args.keys() - optimizer.defaults.keys()):
            accepted = ", ".join(sorted(optimizer.defaults))
            raise loaded.error(
                (*group.path, unknown[0]),
                f"{component.type} has a single value for all parameters; a group can set: {accepted}",
            )
    if name and needs_closure(optimizer):
        raise loaded.error(
            at, f"{component.type} evaluates the loss itself, which is not possible with several optimizers"
        )
    try:
        prepare_optimizer(experiment.runtime, experiment.model, optimizer)
    except ConfigError as error:
        raise loaded.error(at, str(error)) from error
    return optimizer


def _schedule(loaded: LoadedConfig, optimizer: Optimizer, name: str, batches: Batches) -> Schedule:
    config = loaded.config
    at, component = config.scheduler_of(name)
    epochs = config.trainer.epochs
    steps = config.trainer.steps_per_epoch or batches.optimizer_steps(config.trainer.accumulate_steps)
    if component is None:
        return Schedule(optimizer, None, per_step=False, steps_per_epoch=steps, length=epochs)
    per_step = component.interval == "step"
    length = epochs * (steps if per_step else 1)
    if problem := length_conflict(component.type, component.args, (*at, "args"), length):
        raise loaded.error(problem.path, problem.message)
    settings = with_mode(component.model_dump(), config.trainer.monitor)

    def build(path: KeyPath, name: str, args: dict[str, Any]) -> LRScheduler:
        arguments = arguments_of(loaded, SCHEDULERS, name, args, (*path, "args"))
        return call(loaded, (*path, "args"), name, functools.partial(SCHEDULERS[name], **arguments), LRScheduler)

    def make(optimizer: Optimizer) -> LRScheduler:
        return make_scheduler(settings, optimizer, length, build, at)

    return Schedule(optimizer, make, per_step=per_step, steps_per_epoch=steps, length=length, settings=settings)
