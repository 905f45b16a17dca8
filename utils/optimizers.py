"""Optimizers: which need a closure, what their state needs, and how it is loaded."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from utils.errors import ConfigError
from utils.extras import find_extra
from utils.tree import to_device
from utils.user_code import format_error_with_source

INITIAL_ONLY = {"Adagrad": {"initial_accumulator_value"}, "LBFGS": {"history_size"}, "Rprop": {"lr"}}
"""Arguments of torch's optimizers that are used only when a parameter's state is created. LBFGS does not shorten a
history longer than a new ``history_size``."""
STARTS_AS_ZEROS = {"amsgrad": "max_exp_avg_sq", "centered": "grad_avg", "momentum": "momentum_buffer"}
"""State that Adam, AdamW and RMSprop create only together with the rest, by the argument that needs it."""


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether ``step`` needs a closure that evaluates the loss, as in LBFGS."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def inner_optimizers(optimizer: Optimizer) -> dict[str, Optimizer]:
    """The optimizers that another one contains, such as the ``base_optimizer`` of many SAMs, by attribute."""
    return {name: value for name, value in vars(optimizer).items() if isinstance(value, Optimizer)}


def forgets(optimizer: Optimizer, inner: Optimizer) -> bool:
    """Whether the state of an optimizer that this one contains is lost in a checkpoint.

    Methods of its own are trusted. Those of torch save only the outer optimizer's state, and replace it on loading.
    """
    saves = type(optimizer).state_dict is not Optimizer.state_dict or inner.state is optimizer.state
    loads = type(optimizer).load_state_dict is not Optimizer.load_state_dict
    return not (saves and loads)


def start_state(optimizer: Optimizer) -> None:
    """Give parameters the state that torch's optimizers need, but do not create themselves.

    An argument that is set on resume, such as ``amsgrad``, may need zeros that the run did not have.
    """
    if type(optimizer) in (Adam, AdamW, RMSprop):
        for group in optimizer.param_groups:
            needed = [name for key, name in STARTS_AS_ZEROS.items() if group.get(key)]
            for parameter in group["params"]:
                if state := optimizer.state.get(parameter):
                    for name in needed:
                        state.setdefault(name, torch.zeros_like(parameter))
    elif type(optimizer) is SGD and optimizer.defaults["fused"]:
        _start_momentum(optimizer)


def _start_momentum(optimizer: SGD) -> None:
    """Give parameters the momentum that the kernel of a fused SGD needs for all of a group or for none.

    Some, such as thawed ones, get their first gradient later than others. Without dampening, zeros are equivalent to
    none; with it, only groups with some momentum get them.
    """
    for group in optimizer.param_groups:
        trained = [parameter for parameter in group["params"] if parameter.requires_grad]
        missing = [each for each in trained if optimizer.state.get(each, {}).get("momentum_buffer") is None]
        if group["momentum"] and (not group["dampening"] or len(missing) < len(trained)):
            for parameter in missing:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def step_error(optimizer: Optimizer, error: Exception, *, resumed: bool) -> ConfigError:
    """The error of an optimizer's step, with what may be its cause. resumed: whether its state is a saved one."""
    advice = find_extra("advice")
    causes = advice.causes_in_optimizer(optimizer, resumed=resumed) if advice else ()
    what = f"optimizer: {type(optimizer).__name__}.step failed: {format_error_with_source(error)}"
    return ConfigError("\n".join([what, *causes]))


# ------------------------------------------------------------------ the state of an optimizer


def laid_out_like(value: Any, parameter: Tensor) -> Any:
    """A saved value in the memory format of its parameter.

    A fused kernel walks through memory as laid out: a momentum in another format would be applied to other weights.
    """
    if not isinstance(value, Tensor) or value.shape != parameter.shape or value.layout != parameter.layout:
        return value
    strides = zip(parameter.shape, value.stride(), parameter.stride(), strict=True)
    if all(size == 1 or own == other for size, own, other in strides):  # of a size of 1, any is the same
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def check_layouts(optimizer: Optimizer, parameters: Mapping[str, Any]) -> None:
    """Raise ConfigError if a fused kernel would apply state to other weights: a step has changed the memory format.

    parameters: by name.
    """
    if not optimizer.defaults.get("fused"):
        return
    for name, parameter in parameters.items():
        if any(laid_out_like(value, parameter) is not value for value in optimizer.state.get(parameter, {}).values()):
            raise ConfigError(
                f"the first step gave {name} another memory format, in which {type(optimizer).__name__} would take its "
                "state for that of other weights; assign values in place, as in weight.copy_(values)"
            )


def check_gradients(optimizer: Optimizer, parameters: Mapping[str, Any]) -> None:
    """Raise ConfigError if a fused kernel would apply gradients to other weights: one has another memory format.

    torch's own never has, but the user may replace them. parameters: by name.
    """
    for name, parameter in parameters.items() if optimizer.defaults.get("fused") else ():
        if laid_out_like(parameter.grad, parameter) is not parameter.grad:
            raise ConfigError(
                f"compute_gradients gave {name} a gradient in another memory format, which "
                f"{type(optimizer).__name__} would take for that of other weights; assign it in place, as in "
                "weight.grad.copy_(values)"
            )


def parameters_in(optimizer: Optimizer) -> list[Any]:
    """The parameters of all groups, in the order in which a state numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def adapt_state(
    optimizer: Optimizer, state: dict[str, Any], *, adapt: Callable[[Any, Tensor], Any] = laid_out_like
) -> dict[str, Any]:
    """A saved state in the form this optimizer loads: with its own kernels, and values as parameters need them."""
    parameters = parameters_in(optimizer)
    # other keys are the optimizer's own, as for state that parameters share
    indices = [key for key in state["state"] if type(key) is int]
    groups_differ = len(state["param_groups"]) != len(optimizer.param_groups)
    if groups_differ or len(indices) > len(parameters):
        return state  # torch reports what is wrong with it

    groups = [
        saved | {key: own[key] for key in ("fused", "foreach") if key in own}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    states = dict(state["state"])
    for key in indices:
        if isinstance(states[key], dict):
            states[key] = {name: adapt(value, parameters[key]) for name, value in states[key].items()}
    return {"state": states, "param_groups": groups}


def load_exactly(optimizer: Optimizer, *, adapt: Callable[[Any, Tensor], Any] = laid_out_like) -> None:
    """Let an optimizer load any saved state in the form it needs, with the dtypes that the state was saved with.

    adapt: gives the form, from a saved value and its parameter.
    """
    adapted = dict[int, Any]()  # while a state is being loaded

    def before(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        state = adapt_state(optimizer, state, adapt=adapt)
        adapted.clear()
        adapted.update(state["state"])
        return state

    def after(optimizer: Optimizer) -> None:
        parameters = parameters_in(optimizer)
        for index, values in adapted.items():
            if type(index) is int and isinstance(values, dict):  # torch has cast all but "step"
                parameter = parameters[index]
                saved = {name: to_device(value, parameter.device) for name, value in values.items() if name != "step"}
                optimizer.state[parameter].update(saved)
        adapted.clear()

    try:
        optimizer.register_load_state_dict_pre_hook(before)
    except AttributeError:  # its constructor does not call that of torch, as in many Lookaheads
        if inner_optimizers(optimizer):
            return  # whose own hooks are called
        name = type(optimizer).__name__
        raise ConfigError(f"{name}.__init__ must call super().__init__(params, defaults)") from None
    optimizer.register_load_state_dict_post_hook(after)
