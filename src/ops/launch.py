"""Launches of Triton kernels: run by PyTorch, traced into a compiled graph, or recorded for `benchmark.py kernels`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


@dataclass
class Launch:
    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # tensors, numbers and constants by parameter name; num_warps, num_stages


recording: list[Launch] | None = None


def launch(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    if recording is not None:
        recording.append(Launch(kernel, grid, arguments))
    elif is_interpreted():  # wrap_triton does not support the interpreter
        kernel[grid](**arguments)
    else:
        a_tensor = next(value for value in arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(a_tensor):  # Triton launches on the current device
            torch.library.wrap_triton(kernel)[grid](**arguments)


@contextmanager
def record() -> Iterator[list[Launch]]:
    """Record launches instead of running them, so that tensors may be on the device "meta"."""
    global recording
    recording = []
    try:
        yield recording
    finally:
        recording = None


def is_interpreted() -> bool:
    """Check if Triton's interpreter runs the kernels on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@torch.compiler.assume_constant_result
def unavailable(device: torch.device) -> str | None:
    """Explain why Triton kernels cannot run on a device; None if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "meta" or is_interpreted():
        return None
    if device.type != "cuda":
        return f"needs a CUDA GPU, not {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a GPU of compute capability 8.0 (Ampere) or later"
    return None
