"""Optimizers of torch.optim by name: their classes, their arguments, and checks of both."""

import difflib
import inspect
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from config.errors import ConfigError, first_line, format_value
from config.schema import SGD, Adam, Optimizer

if TYPE_CHECKING:
    import torch


def optimizer_class(name: str) -> "type[torch.optim.Optimizer]":
    """Find an optimizer's class in torch.optim by its name in upper or lower case.

    Raises:
        ConfigError: torch.optim has no such optimizer.
    """
    import torch  # takes seconds, which runs with Adam, AdamW and SGD need not wait for

    classes = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if name.lower() not in classes:
        similar = difflib.get_close_matches(name.lower(), classes, n=1) or sorted(classes)
        raise ConfigError(
            f"optimizer.name={name}: torch.optim has no such optimizer. Fix: optimizer.name="
            f"{', '.join(classes[key].__name__ for key in similar)}"
        )
    return classes[name.lower()]


def optimizer_arguments(config: Optimizer) -> dict[str, Any]:
    """Collect the arguments that all parameters share, without the learning rate; lists become tuples."""
    arguments: dict[str, Any] = {"fused": True} if isinstance(config, Adam | SGD) else {}
    general = {item.name for item in fields(Optimizer)}
    arguments |= {item.name: getattr(config, item.name) for item in fields(config) if item.name not in general}
    arguments |= config.arguments
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}


def check_optimizer(config: Optimizer) -> None:
    """Try a step of an optimizer that no class in config/schema.py describes.

    Raises:
        ConfigError: torch.optim has no such optimizer, or the optimizer does not accept an argument or the parameters.
    """
    if isinstance(config, Adam | SGD) and not config.arguments:
        return
    kind = optimizer_class(config.name)
    parameters = set(inspect.signature(kind).parameters)
    elsewhere = {item.name for item in fields(config)}
    for key, value in config.arguments.items():
        if key in elsewhere:
            raise ConfigError(
                f"optimizer.arguments.{key}={format_value(value)}: has its own key. Fix: optimizer.{key}=…"
            )
        if key not in parameters - {"params"}:
            expected = sorted(parameters - {"params"} - elsewhere)
            raise ConfigError(
                f"optimizer.arguments.{key}={format_value(value)}: torch.optim.{kind.__name__} has no such argument; "
                f"expected one of {', '.join(expected)}"
            )
    if config.weight_decay and "weight_decay" not in parameters:
        raise ConfigError(
            f"optimizer.weight_decay={config.weight_decay}: torch.optim.{kind.__name__} has no weight decay. "
            "Fix: optimizer.weight_decay=0"
        )
    if error := step_error(kind, config):
        raise ConfigError(f"optimizer.name={config.name}: {error}; optimizer.arguments={config.arguments}")


def step_error(kind: "type[torch.optim.Optimizer]", config: Optimizer) -> str | None:
    """Try one step with parameters of a model's shapes; return the error message, None if the step works."""
    import torch

    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 2, 1, 1), (2,))]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    try:
        make: Any = kind
        make(parameters, lr=config.lr, **optimizer_arguments(config)).step()
    except Exception as error:  # Each optimizer raises errors of different types.
        return first_line(error)
    return None
