"""Random numbers, constants and grey levels of a batch, as tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Draw = Callable[[int], Tensor]  # draw(n): [n, batch], uniform in 0 … 1

CONSTANTS: dict[tuple[tuple[Any, ...], torch.device], Tensor] = {}


def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Numbers as floats on the device; kept, for a copy from the host waits for what is going on there."""
    if (values, device) not in CONSTANTS:
        CONSTANTS[values, device] = torch.tensor(values, dtype=torch.float32, device=device)
    return CONSTANTS[values, device]


def random_integers(uniform: Tensor, count: Tensor | int) -> Tensor:
    """Whole numbers 0 … count - 1, each as likely, as floats."""
    return (uniform * count).floor().clamp(max=count - 1)


def per_pixel(values: Tensor) -> Tensor:
    """From [batch] to [batch, 1, 1, 1]."""
    return values[:, None, None, None]


def to_levels(values: Tensor) -> Tensor:
    """Whole grey levels, cut off as in C."""
    return values.clamp(0, 255).to(torch.uint8)


def uniform_in(limits: Any, uniform: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * uniform
