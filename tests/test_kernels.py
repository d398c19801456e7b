"""Triton's kernels give what float64 gives: on a GPU if there is one, else slowly in Triton's interpreter."""

import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import kernels
from ops.depthwise import IMPLEMENTATION, TRITON, depthwise
from processes import REPOSITORY

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LARGER = pytest.mark.slow
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of the largest value

SHAPES = [  # batch, channels, height, width, kernel
    (1, 2, 1, 1, 3),  # one image, one position
    (3, 2, 5, 3, 2),
    (2, 3, 8, 8, 5),
    (5, 1, 17, 12, 9),  # rows that do not fill the last strip, columns that do not fill a power of two
    *(pytest.param((2, 2, *grid, k), marks=LARGER) for grid in ((1, 7), (32, 32), (64, 33)) for k in (1, 4, 9, 31)),
    pytest.param((70, 1, 16, 16, 9), marks=LARGER),  # more strips than one program takes
]


def tensors(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """x, weight, bias and the gradient of the result."""
    torch.manual_seed(0)
    batch, channels, height, width, k = shape
    x = (batch, channels, height, width)
    return [
        torch.randn(size, dtype=torch.float64).to(DEVICE, dtype).requires_grad_()
        for size in (x, (channels, 1, k, k), (channels,), x)
    ]


def with_gradients(backend: str, x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    y = depthwise(x, weight, bias, backend)
    return y, *torch.autograd.grad(y, (x, weight, bias), dy)


def in_float64(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    return with_gradients("reference", *(tensor.detach().double().requires_grad_() for tensor in (x, *rest)))


@pytest.mark.parametrize("backend", [backend for backend in TRITON if backend in IMPLEMENTATION])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_depthwise_equals_float64(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    low = tensors(shape, dtype)
    for ours, true in zip(with_gradients(backend, *low), in_float64(*low), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), true, atol=TOLERANCE[dtype] * float(true.abs().max()), rtol=0)


@pytest.mark.slow
def test_the_fused_layer_compiles_for_a_gpu_that_is_not_there_without_spills() -> None:
    compiled = subprocess.run(
        [sys.executable, "src/benchmark.py", "kernels", "target=sm_90"],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = [line.split() for line in compiled.splitlines() if re.match(r" (forward|backward) \d", line)]
    assert len(rows) == 6 * len(kernels.SHAPES)
    for row in rows:
        assert row[3] == "0"  # bytes spilled
        assert "wgmma" in row
        assert int(row[7]) >= 1  # blocks that fit on a multiprocessor


@pytest.mark.skipif(torch.cuda.is_available(), reason="counted in Triton's interpreter")
def test_a_kernel_makes_the_passes_that_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses that its loads and stores really touch, in units of an activation."""
    from triton.runtime.interpreter import InterpreterBuilder

    touched: set[int] = set()

    def watch(name: str, mask_at: int) -> None:
        original = getattr(InterpreterBuilder, name)

        def call(self: Any, pointers: Any, *rest: Any) -> Any:
            mask = np.broadcast_to(rest[mask_at].data, pointers.data.shape).astype(bool)
            touched.update(pointers.data[mask].tolist())
            return original(self, pointers, *rest)

        monkeypatch.setattr(InterpreterBuilder, name, call)

    watch("create_masked_load", mask_at=0)
    watch("create_masked_store", mask_at=1)
    counted, batch, channels, side, k = {}, 8, 3, 16, 3
    launches = kernels.layer_kernels(batch, channels, side, k, torch.float32, "relu")
    for name, launch in launches.items():
        real = {
            key: torch.ones(value.untyped_storage().size() // 4).as_strided(value.shape, value.stride())
            if isinstance(value, Tensor) else value
            for key, value in launch.arguments.items()
        }  # fmt: skip
        touched.clear()
        launch.kernel[launch.grid](**real, num_warps=launch.warps, num_stages=launch.stages)
        size = batch * channels * side * side
        activations = [value for value in real.values() if isinstance(value, Tensor) and value.numel() == size]
        for value in activations:
            start = value.data_ptr()
            assert all(start + 4 * i in touched for i in range(0, size, 7))
        counted[name] = len(activations)
        assert counted[name] == kernels.passes(launch)
        assert len(touched) < (counted[name] + 0.6) * size  # and what belongs to the channels
    assert sum(counted.values()) <= 22
