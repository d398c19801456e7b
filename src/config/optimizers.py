"""Optimizers of torch.optim by name: their classes, their arguments, and what does not fit."""

import difflib
import inspect
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from config.errors import ConfigError, first_line, shown
from config.schema import SGD, Adam, Optimizer

if TYPE_CHECKING:
    import torch


def optimizer_class(name: str) -> "type[torch.optim.Optimizer]":
    """Find a class of torch.optim by its name in upper or lower case.

    Raises:
        ConfigError: torch.optim has no such optimizer.
    """
    import torch  # takes seconds; only runs with an optimizer of their own are checked with it

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
    """Arguments of the class besides lr and what differs between parameters; lists become tuples."""
    arguments: dict[str, Any] = {"fused": True} if isinstance(config, Adam | SGD) else {}
    general = {item.name for item in fields(Optimizer)}
    arguments |= {item.name: getattr(config, item.name) for item in fields(config) if item.name not in general}
    arguments |= config.arguments
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}


def check_optimizer(config: Optimizer) -> None:
    """Try a step of an optimizer that no class in config/schema.py describes.

    Raises:
        ConfigError: torch.optim does not have it, or it does not take an argument or the model's parameters.
    """
    if isinstance(config, Adam | SGD) and not config.arguments:
        return
    kind = optimizer_class(config.name)
    parameters = set(inspect.signature(kind).parameters)
    elsewhere = {item.name for item in fields(config)}
    for key, value in config.arguments.items():
        if key in elsewhere:
            raise ConfigError(f"optimizer.arguments.{key}={shown(value)}: has its own key. Fix: optimizer.{key}=…")
        if key not in parameters - {"params"}:
            expected = sorted(parameters - {"params"} - elsewhere)
            raise ConfigError(
                f"optimizer.arguments.{key}={shown(value)}: torch.optim.{kind.__name__} has no such argument; "
                f"expected one of {', '.join(expected)}"
            )
    if config.weight_decay and "weight_decay" not in parameters:
        raise ConfigError(
            f"optimizer.weight_decay={config.weight_decay}: torch.optim.{kind.__name__} has none. "
            "Fix: optimizer.weight_decay=0"
        )
    if error := trial_error(kind, config):
        raise ConfigError(f"optimizer.name={config.name}: {error}; optimizer.arguments={config.arguments}")


def trial_error(kind: "type[torch.optim.Optimizer]", config: Optimizer) -> str | None:
    """Take one step with parameters of the shapes that a model has; return what it fails with."""
    import torch

    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 2, 1, 1), (2,))]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    try:
        make: Any = kind
        make(parameters, lr=config.lr, **optimizer_arguments(config)).step()
    except Exception as error:  # each optimizer has its own checks
        return first_line(error)
    return None
