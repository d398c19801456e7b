"""How Triton's kernels are started: by PyTorch, within a graph that it compiles, or only written down for a table."""

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
    arguments: dict[str, Any]  # tensors, numbers and compile-time constants, by parameter; num_warps, num_stages


recording: list[Launch] | None = None


def launch(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    if recording is not None:
        recording.append(Launch(kernel, grid, arguments))
    elif is_interpreted():  # which torch.library does not know
        kernel[grid](**arguments)
    else:
        a_tensor = next(value for value in arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(a_tensor):  # Triton starts kernels on the current device, wherever the tensors are
            torch.library.wrap_triton(kernel)[grid](**arguments)


@contextmanager
def record() -> Iterator[list[Launch]]:
    """Write kernels down instead of starting them, so that tensors may be on the device "meta"."""
    global recording
    recording = []
    try:
        yield recording
    finally:
        recording = None


def is_interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, slowly: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@torch.compiler.assume_constant_result
def unavailable(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on a device; None where they can."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "meta" or is_interpreted():
        return None
    if device.type != "cuda":
        return f"needs a CUDA GPU, not {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a GPU of compute capability 8.0 (Ampere) or later"
    return None
