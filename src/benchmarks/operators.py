"""The depthwise convolution, forward and backward: every backend, shape by shape.

`depthwise.fastest` chooses by what this shows; where another backend is the faster one, it is time to change it.
"""

from functools import partial

import torch

from benchmarks.timing import seconds_of
from ops.depthwise import BACKENDS, TRITON, depthwise, fastest
from runtime.console import print_table, say
from runtime.device import describe, keep_freed_memory

CPU_SHAPES = [(64, channels, side, k) for channels, side in ((64, 8), (256, 8), (256, 16)) for k in (3, 5, 7, 9, 15)]
GPU_SHAPES = [(512, 256, side, k) for side in (8, 16, 32) for k in (3, 5, 7, 9, 15)] + [(64, 1536, 32, 9)]


def run() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.backends.cudnn.benchmark = True
    keep_freed_memory()
    elsewhere = ("auto", "stacked") if device.type == "cuda" else ("auto", *TRITON)
    names = [name for name in BACKENDS if name not in elsewhere]
    rows = []
    for batch, channels, side, k in GPU_SHAPES if device.type == "cuda" else CPU_SHAPES:
        x, dy = (torch.randn(batch, channels, side, side, device=device, dtype=dtype) for _ in range(2))
        x, dy = (t.contiguous(memory_format=torch.channels_last).requires_grad_() for t in (x, dy))
        weight = torch.randn(channels, 1, k, k, device=device, dtype=dtype, requires_grad=True)

        def step(name: str, x: torch.Tensor = x, weight: torch.Tensor = weight, dy: torch.Tensor = dy) -> None:
            torch.autograd.grad(depthwise(x, weight, None, name), (x, weight), dy.detach())

        milliseconds = {name: 1000 * seconds_of(partial(step, name), device) for name in names}
        figures = [f"{milliseconds[name]:.2f}" for name in names]
        best = min(milliseconds, key=milliseconds.__getitem__)
        rows.append((f"{batch}×{channels}×{side}×{side}", str(k), *figures, best, fastest(x, weight)))
    say(f"forward and backward, ms; {describe(device)}, {dtype}, torch {torch.__version__}")
    print_table("", ("shape", "kernel", *names, "fastest", "auto takes"), rows)
