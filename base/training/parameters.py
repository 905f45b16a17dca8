"""Which optimizer and parameter group trains each parameter, and which parameters are frozen in an epoch."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from base.training.loss import stateful_loss
from utils import checkpoint
from utils.errors import ConfigError
from utils.schema import FreezeConfig, KeyPath, OptimizerConfig, component_path
from utils.text import closest, listed
from utils.tree import has_strides, tensors

Parameters = dict[str, nn.Parameter]
"""By name, as in ``model.named_parameters()``; names in the loss begin with "loss."."""
REST = ["*"]
"""The patterns of one of several optimizers that trains all that no other one does."""


@dataclass(frozen=True)
class ParameterGroup:
    name: str
    """"" for parameters with the optimizer's own arguments."""
    parameters: list[nn.Parameter]
    args: Mapping[str, Any]
    path: KeyPath
    """Config path of the arguments."""


def parameters_of(model: nn.Module, loss: Any) -> Parameters:
    """All trainable parameters: the model's, and the loss's if it has any."""
    module = stateful_loss(loss)
    of_loss = module.named_parameters(prefix="loss") if module is not None else ()
    return dict([*model.named_parameters(), *of_loss])


def unregistered_weights(model: nn.Module) -> str | None:
    """A message about weights to train that torch does not know of, so that they would be neither trained nor saved.

    They are in a plain list or dict of modules, or a tensor that is not an ``nn.Parameter``.
    """
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            for part in instances(value, (nn.Module, Tensor)):
                weights = part.parameters() if isinstance(part, nn.Module) else [part]
                if any(id(weight) not in known and weight.requires_grad and weight.is_leaf for weight in weights):
                    where = ".".join(filter(None, (name, attribute)))
                    return (
                        f"{where} is a plain {type(value).__name__} with weights that would be neither trained nor "
                        "saved; use nn.Parameter or nn.ModuleList, or requires_grad_(False) if that is intended"
                    )
    return None


def unsaved_weights(model: nn.Module, trained: Collection[str]) -> list[str]:
    """The trained parameters that the model's own ``state_dict`` leaves out, so that no checkpoint would have them."""
    state = checkpoint.plain({"model": model.state_dict()})["model"]  # raises if it cannot be saved
    pointers = {tensor.data_ptr() for tensor in tensors(state) if has_strides(tensor)}  # it may have other names
    unnamed = {name: each for name, each in model.named_parameters() if name in trained and name not in state}
    return [name for name, each in unnamed.items() if each.data_ptr() not in pointers]


def instances(value: Any, kinds: type[Any] | tuple[type[Any], ...]) -> Iterator[Any]:
    """The objects of some classes in a value: itself, or those in a list, tuple or dict."""
    if isinstance(value, kinds):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from instances(item, kinds)


def divide_parameters(
    parameters: Parameters, optimizers: Mapping[str, OptimizerConfig], *, frozen: Collection[str]
) -> dict[str, list[ParameterGroup]]:
    """The parameter groups of each optimizer, by its name; parameters without a group come first.

    frozen: parameters that no optimizer needs to train.

    Raises ConfigError if a pattern matches nothing, or if a parameter is in two optimizers or, although it requires a
    gradient, in none.
    """
    owners = dict[str, str]()
    divided = {}
    for optimizer, config in sorted(optimizers.items(), key=lambda item: item[1].params == REST):
        at = component_path("optimizer", optimizer)
        selected = _of_optimizer(parameters, optimizer, config, at)
        if config.params == REST:
            selected = {name: parameter for name, parameter in selected.items() if name not in owners}
            if not selected:
                raise ConfigError(
                    "the other optimizers already have all parameters; leave this one out", (*at, "params")
                )
        if twice := next((name for name in selected if name in owners), None):
            message = f"{twice} is in two optimizers, {owners[twice]} and {optimizer}; it can only be in one"
            raise ConfigError(message, (*at, "params") if config.params else at)
        owners |= dict.fromkeys(selected, optimizer)
        divided[optimizer] = _groups(selected, config, at)
    unowned = [name for name in parameters if name not in owners and name not in frozen]
    if untrained := [name for name in unowned if parameters[name].requires_grad]:
        raise ConfigError(
            f"no optimizer trains {listed(untrained)}. Add a pattern to the params of one, or freeze them: "
            '"trainer": {"freeze": [{"params": [...]}]}, or requires_grad_(False) in the model',
            ("optimizer",),
        )
    return {optimizer: divided[optimizer] for optimizer in optimizers}


def _of_optimizer(parameters: Parameters, name: str, config: OptimizerConfig, at: KeyPath) -> Parameters:
    if config.params is None and not name:
        return parameters
    pattern = f"{name}.*"
    if config.params is None and not any(matches(each, [pattern]) for each in parameters):
        raise ConfigError(
            f'{no_match(pattern, parameters)}; name its parameters in "params", for example ["*"] for all that no '
            "other optimizer has",
            at,
        )
    _check_patterns(config.params or (), parameters, (*at, "params"))
    return {each: parameter for each, parameter in parameters.items() if matches(each, config.params or [pattern])}


def _check_patterns(patterns: Sequence[str], parameters: Parameters, at: KeyPath) -> None:
    """Raise ConfigError at the first pattern that matches nothing. at: of the patterns."""
    for index, pattern in enumerate(patterns):
        if not any(matches(name, [pattern]) for name in parameters):
            raise ConfigError(no_match(pattern, parameters), (*at, index))


def _groups(parameters: Parameters, config: OptimizerConfig, at: KeyPath) -> list[ParameterGroup]:
    remaining, groups = dict(parameters), list[ParameterGroup]()
    names = dict[str, int]()
    for index, group in enumerate(config.groups):
        path = (*at, "groups", index)
        _check_patterns(group.params, parameters, (*path, "params"))
        matching = {each: parameter for each, parameter in remaining.items() if matches(each, group.params)}
        if not matching:
            message = f"{listed(group.params)}: an earlier group already has all of these parameters"
            raise ConfigError(message, (*path, "params"))
        remaining = {each: parameter for each, parameter in remaining.items() if each not in matching}
        name = group.name or re.sub(r"\W+", "_", group.params[0]).strip("_") or "group"
        names[name] = names.get(name, 0) + 1
        name = name if names[name] == 1 else f"{name}_{names[name]}"
        groups.append(ParameterGroup(name, list(matching.values()), group.args, (*path, "args")))
    if remaining:
        groups.insert(0, ParameterGroup("", list(remaining.values()), {}, (*at, "args")))
    return groups


def replaced_arguments(optimizer: OptimizerConfig, groups: Sequence[ParameterGroup]) -> Iterator[tuple[KeyPath, str]]:
    """The paths of an optimizer's arguments that every group replaces by its own, with the reason."""
    for key in optimizer.args:
        if all(key in group.args for group in groups):
            path = (*groups[0].path[:-3], "args", key)
            yield path, "has no effect: the groups have all of the parameters, and each group sets its own value"


class Frozen:
    """The parameters frozen by ``trainer.freeze``, per epoch.

    Raises ConfigError if a pattern matches nothing, or an epoch would have nothing to train.
    """

    def __init__(
        self, model: nn.Module, parameters: Parameters, config: Sequence[FreezeConfig], *, epochs: int
    ) -> None:
        self.model, self.parameters, self.config = model, parameters, config
        self.trainable = {name for name, parameter in parameters.items() if parameter.requires_grad}
        for index, entry in enumerate(config):
            _check_patterns(entry.params, parameters, ("trainer", "freeze", index, "params"))
        for epoch in {0, *(entry.epochs for entry in config if entry.epochs is not None and entry.epochs < epochs)}:
            if not self.trainable - self.names(epoch):
                raise ConfigError(f"in epoch {epoch + 1}, every parameter is frozen", ("trainer", "freeze"))

    def names(self, epochs: int) -> set[str]:
        """Names of the parameters frozen after this many epochs."""
        entries = [entry for entry in self.config if entry.epochs is None or epochs < entry.epochs]
        patterns = [pattern for entry in entries for pattern in entry.params]
        return {name for name in self.parameters if matches(name, patterns)}

    def apply(self, epochs: int) -> None:
        """Freeze and thaw parameters for the epoch after ``epochs``.

        Modules whose parameters are all frozen go into evaluation mode. Call it after ``model.train()``.
        """
        if not self.config:
            return
        frozen = self.names(epochs)
        for name in self.trainable:
            self.parameters[name].requires_grad_(name not in frozen)
        if frozen:
            for module in self.model.modules():
                parameters = list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    module.eval()


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def no_match(pattern: str, names: Mapping[str, Any], *, what: str = "parameter") -> str:
    modules = dict[str, None]()  # all modules around the names, as in "backbone.*" and "backbone.layer1.*"
    for name in names:
        *parents, _ = name.split(".")
        modules |= {".".join([*parents[: index + 1], "*"]): None for index in range(len(parents))}
    close = closest(pattern, [*modules, *names])
    parts = dict.fromkeys(f"{name.partition('.')[0]}.*" if "." in name else name for name in names)
    meant = f'did you mean "{close}"?' if close else f"expected one of: {listed(list(parts))}"
    return f'no {what} matches "{pattern}"; {meant}'
