"""Random numbers, constants and grey levels of a batch, as tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Draw = Callable[[int], Tensor]  # draw(n) returns [n, batch], uniform in 0 … 1

CONSTANTS: dict[tuple[tuple[Any, ...], torch.device], Tensor] = {}


def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Put numbers on the device as floats; they are cached, as a copy from the host would wait for the device."""
    if (values, device) not in CONSTANTS:
        CONSTANTS[values, device] = torch.tensor(values, dtype=torch.float32, device=device)
    return CONSTANTS[values, device]


def random_integers(uniform: Tensor, count: Tensor | int) -> Tensor:
    """Convert to whole numbers 0 … count - 1, each equally likely, as floats."""
    return (uniform * count).floor().clamp(max=count - 1)


def per_pixel(values: Tensor) -> Tensor:
    """Reshape [batch] to [batch, 1, 1, 1]."""
    return values[:, None, None, None]


def to_levels(values: Tensor) -> Tensor:
    """Convert to whole grey levels, truncated as in C."""
    return values.clamp(0, 255).to(torch.uint8)


def uniform_in(limits: Any, uniform: Tensor) -> Tensor:
    """Scale random numbers in 0 … 1 to the limits."""
    return limits[0] + (limits[1] - limits[0]) * uniform
