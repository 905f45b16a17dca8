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
    ParameterGroup,
    divide_parameters,
    parameters_of,
    replaced_arguments,
    unregistered_weights,
    unsaved_weights,
)
from base.training.schedule import Schedule, ScheduledOptimizer
from logger.console import Console
from utils.config import LoadedConfig, located, to_json
from utils.config.resume import saved_config
from utils.config.schedulers import length_conflict, make_scheduler, with_mode
from utils.determinism import use_deterministic_kernels
from utils.distributed import ProcessGroup, get_process_group
from utils.errors import ConfigError, errors_at
from utils.optimizers import needs_closure
from utils.paths import code_digests
from utils.prepare import prepare_model, prepare_optimizer, supports_fused
from utils.random import isolated, seed_generators
from utils.registry import DATA_LOADERS, METRICS, MODELS, OPTIMIZERS, SCHEDULERS, TRAINERS
from utils.runtime import Runtime
from utils.schema import Component, Config, KeyPath, TrainerConfig, component_path
from utils.signals import SignalWatch
from utils.text import count, listed
from utils.tree import has_strides, to_device


@located
def with_facts(loaded: LoadedConfig) -> tuple[LoadedConfig, BaseDataLoader | None]:
    """The config with its data loader's facts filled in, and that loader; None if it refers to no facts."""
    if not loaded.from_data:
        return loaded, None
    process_group = get_process_group()
    process_group.connect(loaded.config.runtime.timeout)
    data = build_data_loader(loaded)
    seed_generators(loaded.config.seed, "training data")  # as in build_training: the data loader may keep what it draws
    with process_group.main_process_first():
        facts = call(("data_loader", "args"), loaded.config.data_loader.type, data.facts, dict)
    return loaded.with_facts({str(name): fact for name, fact in facts.items()}), data


@located
def build_data_loader(loaded: LoadedConfig) -> BaseDataLoader:
    return _data_loader(loaded.config.data_loader, ("data_loader",), loaded.config.seed)


def _data_loader(component: Component, path: KeyPath, seed: int) -> BaseDataLoader:
    seed_generators(seed, "data loader", *path)
    loader = construct(DATA_LOADERS, component, path, BaseDataLoader)  # type: ignore[type-abstract]
    check_super(path, loader, "device_cache", "batch_size=batch_size, ...")
    check_overrides(path, loader, BaseDataLoader)
    return loader


@located
def build_model(loaded: LoadedConfig) -> nn.Module:
    """The model with its initial weights, determined by the seed. Raises ConfigError if some have no values yet."""
    seed_generators(loaded.config.seed, "model")
    model = construct(MODELS, loaded.config.model, ("model",), nn.Module)
    named_tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    if without_values := [name for name, tensor in named_tensors if nn.parameter.is_lazy(tensor) or tensor.is_meta]:
        message = (
            f"{loaded.config.model.type} has tensors without values: {listed(without_values)}. Call lazy layers on "
            "zeros once in its constructor, and create tensors on the CPU, not on device meta"
        )
        raise ConfigError(message, ("model",))
    if unregistered := unregistered_weights(model):
        raise ConfigError(unregistered, ("model",))
    for buffer in filter(has_strides, model.buffers()):
        if any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True)):
            # an expanded buffer, whose elements share memory, cannot be loaded
            buffer.data = buffer.data.clone(memory_format=torch.contiguous_format)
    return model


@located
def build_experiment(loaded: LoadedConfig, data: BaseDataLoader | None = None) -> Experiment:
    """The parts shared by training and testing. Raises ConfigError with the source location of a part that fails.

    loaded, data: from ``with_facts``.
    """
    config = loaded.config
    runtime = Runtime(config.runtime, full_states=config.trainer.checkpoint == "full")
    process_group = runtime.process_group
    _check_processes(config, process_group)
    data = build_data_loader(loaded) if data is None else data
    model = build_model(loaded)
    criterion, sum_loss = build_loss(loaded, runtime.device)
    data.device = runtime.device
    prepare_model(runtime, model)
    make_metrics = functools.partial(_metrics, config, runtime, sum_loss)
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


def _check_processes(config: Config, process_group: ProcessGroup) -> None:
    """Raise UserError if a batch has fewer samples than there are processes, or if they differ in config or code."""
    batch = config.data_loader.args.get("batch_size")
    if isinstance(batch, int) and batch < process_group.world_size:
        message = (
            f"{count(batch, 'sample')} cannot be shared by {process_group.world_size} processes; "
            "batch_size is the total over all processes"
        )
        raise ConfigError(message, ("data_loader", "args", "batch_size"))
    if process_group.world_size > 1:
        code = {f"code in {folder}/": digest for folder, digest in code_digests().items()}
        process_group.check_same({"config": to_json(config), **code, "version of torch": torch.__version__})


@located
def build_trainer(loaded: LoadedConfig, experiment: Experiment) -> BaseTrainer:
    settings = loaded.config.trainer
    at = ("trainer", "args")
    # modules that it gets or creates have the same weights in training, in tests and in every process
    with isolated(loaded.config.seed, "trainer"):
        args = to_device(arguments_of(TRAINERS, settings.type, settings.args, at), experiment.runtime.device)
        make = functools.partial(TRAINERS[settings.type], experiment, settings, **args)
        trainer = call(at, settings.type, make, BaseTrainer)
    check_super(("trainer",), trainer, "train_metrics", "experiment, settings")
    check_overrides(("trainer",), trainer, BaseTrainer)
    check_attributes(("trainer",), trainer)
    return trainer


@located
def build_training(loaded: LoadedConfig, experiment: Experiment) -> Training:
    """The parts only training needs. Reads the training data, writes nothing."""
    config, settings, data = loaded.config, loaded.config.trainer, experiment.data
    process_group = experiment.runtime.process_group
    seed_generators(config.seed, "training data")
    with process_group.main_process_first():
        batches = call(("data_loader", "args"), config.data_loader.type, lambda: data.training(config.seed), Batches)
        validation, loaders = _validation(config, data)
        for part in validation.values():
            check_not_empty(part)
    if isinstance(batches, StreamBatches) and settings.steps_per_epoch is None:
        raise ConfigError("a stream of unknown length needs trainer.steps_per_epoch", ("trainer", "steps_per_epoch"))
    for part in (batches, *validation.values()):
        part.divide(process_group.rank, process_group.world_size)
    if not validation:
        _check_without_validation(settings)
    optimizers, frozen = _optimizers(loaded, experiment, batches)
    seed_generators(config.seed, "training", *process_group.key)
    return Training(batches, validation, optimizers, frozen, [data, *loaders])


def _check_without_validation(settings: TrainerConfig) -> None:
    """Raise ConfigError if the config needs validation data."""
    if getattr(TRAINERS[settings.type], "validate", None) is not BaseTrainer.validate:
        return  # which may use no validation data
    message = "needs validation data, but there is none: data_loader.args.validation_split is 0"
    if settings.monitored_name.startswith("val_"):
        raise ConfigError(message, ("trainer", "monitor"))
    if settings.validate_every_steps:
        raise ConfigError(message, ("trainer", "validate_every_steps"))


def _validation(config: Config, data: BaseDataLoader) -> tuple[dict[str, Batches], list[BaseDataLoader]]:
    """The batches of each validation set by name, and the loaders of those that have their own.

    A single set has the name "".
    """
    # what is held out is of the training data, which the loader may draw again
    seed_generators(config.seed, "training data" if data.holds_out() else "validation data")
    at: KeyPath = ("data_loader", "args")
    held_out: Batches | None = call(at, type(data).__name__, data.validation, (Batches, type(None)))
    if not config.validations:
        return ({} if held_out is None else {"": held_out}), []
    if held_out is not None:
        raise ConfigError(
            f"{type(data).__name__} also has validation data; leave out this key, or its validation_split, folds, "
            "split() or validation_data()",
            ("validation",),
        )
    sets, loaders = dict[str, Batches](), list[BaseDataLoader]()
    for name, component in config.validations.items():
        path = component_path("validation", name)
        loader = _data_loader(component, path, config.seed)
        loader.device = data.device
        loaders.append(loader)
        seed_generators(config.seed, "validation data", *path)
        at = (*path, "args")
        batches: Batches | None = call(at, component.type, loader.validation, (Batches, type(None)))
        sets[name] = call(at, component.type, loader.test, Batches) if batches is None else batches
    return sets, loaders


def _metrics(config: Config, runtime: Runtime, sum_loss: bool, *, training: bool = False) -> Metrics:
    functions, library, definitions = {}, dict[str, LibraryMetric](), {}
    losses = config.losses
    for index, metric in enumerate(config.metrics):
        if training and not metric.training:
            continue
        name, component = metric.logged_name, METRICS[metric.type]
        args = arguments_of(METRICS, metric.type, metric.args, ("metrics", index, "args"))
        make = functools.partial(component, **args)
        definitions[name] = metric.model_dump(exclude={"training"} if metric.entry else {"training", "entry"})
        if inspect.isclass(component):
            from torchmetrics import Metric  # slow to import

            built = call(("metrics", index), metric.type, make, Metric).to(runtime.device)
            loss = losses.get(metric.entry or "")
            library[name] = LibraryMetric(name, built, loss.type if loss else "", entry=metric.entry)
        else:
            functions[name] = functools.partial(of_entry, make, name, metric.entry) if metric.entry else make
    logs = getattr(TRAINERS[config.trainer.type], "logs", ())
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
        raise ConfigError(f"{config.model.type} has no parameters to train", ("model",))
    frozen = Frozen(experiment.model, parameters, config.trainer.freeze, epochs=config.trainer.epochs)
    divided = divide_parameters(parameters, config.optimizers, frozen=frozen.names(config.trainer.epochs))
    if unsaved := unsaved_weights(experiment.model, frozen.trainable - frozen.names(config.trainer.epochs)):
        message = (
            f"{config.model.type}.state_dict() leaves out {listed(unsaved)}, so a checkpoint would lack what is "
            "trained; freeze it with requires_grad_(False), or let state_dict() return it"
        )
        raise ConfigError(message, ("model",))
    scheduled = {}
    for name, groups in divided.items():
        optimizer = _optimizer(config, experiment, name, groups)
        for path, reason in replaced_arguments(config.optimizers[name], groups):
            if loaded.document.is_override(path):
                raise ConfigError(reason, path)
            experiment.console.warn(str(loaded.document.error(path, reason)))
        settings = config.optimizers[name]
        scheduled[name] = ScheduledOptimizer(
            optimizer,
            schedule=_schedule(config, optimizer, name, batches),
            parameters=[parameter for group in groups for parameter in group.parameters],
            name=name,
            group_names=["_".join(filter(None, (name, group.name))) for group in groups],
            clip_norm=settings.clip_grad_norm or config.trainer.clip_grad_norm,
            clip_value=settings.clip_grad_value or config.trainer.clip_grad_value,
        )
    return scheduled, frozen


def _optimizer(config: Config, experiment: Experiment, name: str, groups: Sequence[ParameterGroup]) -> Optimizer:
    """The named optimizer ("" if there is only one) for its parameter groups."""
    component = config.optimizers[name]
    at = component_path("optimizer", name)
    args = arguments_of(OPTIMIZERS, component.type, component.args, (*at, "args"))
    param_groups: list[Any] = [{"params": group.parameters, **group.args} for group in groups]
    fused = supports_fused(experiment.runtime, experiment.model, component.type, args, param_groups)
    if fused is not None and not args.keys() & {"fused", "foreach", "differentiable"}:
        args["fused"] = fused
    params = param_groups if len(groups) > 1 or groups[0].args else groups[0].parameters
    make = functools.partial(OPTIMIZERS[component.type], params, **args)
    optimizer = call((*at, "args"), component.type, make, Optimizer)
    check_super(at, optimizer, "defaults", "params, defaults")
    if "lr" not in optimizer.defaults and any("lr" not in group for group in optimizer.param_groups):
        message = f'{component.type} has no "lr" in its defaults: super().__init__(params, {{"lr": lr}})'
        raise ConfigError(message, at)
    for group in groups:
        if unknown := sorted(group.args.keys() - optimizer.defaults.keys()):
            accepted = ", ".join(sorted(optimizer.defaults))
            raise ConfigError(
                f"{component.type} has a single value for all parameters; a group can set: {accepted}",
                (*group.path, unknown[0]),
            )
    if name and needs_closure(optimizer):
        message = f"{component.type} evaluates the loss itself, which is not possible with several optimizers"
        raise ConfigError(message, at)
    with errors_at(at):
        prepare_optimizer(experiment.runtime, experiment.model, optimizer)
    return optimizer


def _schedule(config: Config, optimizer: Optimizer, name: str, batches: Batches) -> Schedule:
    at, component = config.scheduler_of(name)
    epochs = config.trainer.epochs
    steps = config.trainer.steps_per_epoch or batches.optimizer_steps(config.trainer.accumulate_steps)
    if component is None:
        return Schedule(optimizer, None, per_step=False, steps_per_epoch=steps, length=epochs)
    per_step = component.interval == "step"
    length = epochs * (steps if per_step else 1)
    if problem := length_conflict(component.type, component.args, (*at, "args"), length):
        raise ConfigError(problem.message, problem.path)
    settings = with_mode(component.model_dump(), config.trainer.monitor)

    def build(path: KeyPath, name: str, args: dict[str, Any]) -> LRScheduler:
        return construct(SCHEDULERS, Component(type=name, args=args), path, LRScheduler)

    def make(optimizer: Optimizer) -> LRScheduler:
        return make_scheduler(settings, optimizer, length, build, at)

    return Schedule(optimizer, make, per_step=per_step, steps_per_epoch=steps, length=length, settings=settings)
