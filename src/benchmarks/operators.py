"""The depthwise convolution, forward and backward: every backend in both memory formats, shape by shape."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import Record, describe_machine, keep, read
from benchmarks.timing import seconds_of
from config.errors import first_line
from config.schema import BACKENDS
from ops.depthwise import depthwise, fastest, why_not
from runtime.device import keep_freed_memory

FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
CPU_SHAPES = [(64, channels, side, k) for channels, side in ((64, 8), (256, 8), (256, 16)) for k in (3, 5, 7, 9, 15)]
GPU_SHAPES = [(512, 256, side, k) for side in (16, 32, 8) for k in (5, 9, 3, 7, 15)] + [(64, 1536, 32, 9)]


def run(results: Path | None, seconds: float) -> Iterator[Record]:
    """On a GPU in bf16, on the CPU in fp32; what `results` has already is not measured again.

    Yields:
        A shape's milliseconds by format and backend, and what `auto` takes, as soon as they are there.
    """
    deadline = time.monotonic() + seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.backends.cudnn.benchmark = True
    keep_freed_memory()
    where = f"{describe_machine(device)}, {str(dtype).removeprefix('torch.')}"
    known = {record.get("depthwise") for record in read(results) if record["where"] == where}
    for batch, channels, side, k in GPU_SHAPES if device.type == "cuda" else CPU_SHAPES:
        shape = f"{batch} × {channels} × {side}×{side}, kernel {k}"
        if shape in known or time.monotonic() > deadline:
            continue
        x, dy = (torch.randn(batch, channels, side, side, device=device, dtype=dtype) for _ in range(2))
        weight = torch.randn(channels, 1, k, k, device=device, dtype=dtype, requires_grad=True)
        record = {"where": where, "depthwise": shape, "auto": fastest(x, weight), **measure(x, dy, weight)}
        yield keep(record, results)


def measure(x: Tensor, dy: Tensor, weight: Tensor) -> Record:
    milliseconds, errors = {}, {}
    for name, memory_format in FORMATS.items():
        x, dy = x.contiguous(memory_format=memory_format), dy.contiguous(memory_format=memory_format)
        for backend in BACKENDS:
            if backend == "auto" or (backend == "stacked" and x.is_cuda) or why_not(backend, x, weight):
                continue
            try:
                seconds = seconds_of(partial(forward_and_backward, x, dy, weight, backend), x.device)
                milliseconds[f"{backend} {name}"] = 1000 * seconds
            except Exception as error:  # out of memory, no compiler
                errors[f"{backend} {name}"] = first_line(error)
    return {"milliseconds": milliseconds, "errors": errors}


def forward_and_backward(x: Tensor, dy: Tensor, weight: Tensor, backend: str) -> None:
    x = x.detach().requires_grad_()
    torch.autograd.grad(depthwise(x, weight, None, backend), (x, weight), dy)
