"""Triton's kernels give what float64 gives: on a GPU if there is one, else slowly in Triton's interpreter."""

import os
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from benchmarks import kernels
from config.errors import ConfigError
from ops.depthwise import IMPLEMENTATION, TRITON, depthwise, unsupported_reason
from processes import REPOSITORY

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []  # there compiled, and among what -m gpu selects
LARGER = pytest.mark.slow
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of the largest value

SHAPES = [  # batch, channels, height, width, kernel
    (1, 2, 1, 1, 3),  # one image, one position
    (3, 2, 5, 3, 2),
    (2, 3, 8, 8, 5),
    (5, 1, 17, 12, 9),  # rows that do not fill the last strip, columns that do not fill a power of two
    *(pytest.param(shape, marks=LARGER) for shape in ((2, 1, 1, 7, 31), (1, 1, 32, 32, 9), (1, 1, 64, 33, 4))),
    pytest.param((33, 1, 16, 16, 1), marks=LARGER),  # more strips than one program takes
]


def tensors(shape: tuple[int, ...], dtype: torch.dtype, device: str = DEVICE) -> list[Tensor]:
    """x, weight, bias and the gradient of the result."""
    torch.manual_seed(0)
    batch, channels, height, width, k = shape
    x = (batch, channels, height, width)
    return [
        torch.randn(size, dtype=torch.float64).to(device, dtype).requires_grad_()
        for size in (x, (channels, 1, k, k), (channels,), x)
    ]


def with_gradients(backend: str, x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    y = depthwise(x, weight, bias, backend)
    return y, *torch.autograd.grad(y, (x, weight, bias), dy)


def in_float64(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    return with_gradients("reference", *(tensor.detach().double().requires_grad_() for tensor in (x, *rest)))


def check(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    for ours, true in zip(found, expected, strict=True):
        torch.testing.assert_close(
            ours.double(), true, atol=TOLERANCE[dtype] * float(true.detach().abs().max()), rtol=0
        )


@pytest.mark.slow
@pytest.mark.parametrize("backend", [backend for backend in TRITON if backend in IMPLEMENTATION])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_depthwise_equals_float64(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    low = tensors(shape, dtype)
    found = with_gradients(backend, *low)
    assert {tensor.dtype for tensor in found} == {dtype}
    check(found, in_float64(*low), dtype)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_kernels_start_on_the_device_of_their_tensors() -> None:
    low = tensors((2, 3, 8, 8, 5), torch.float32, "cuda:1")
    assert torch.cuda.current_device() == 0
    check(with_gradients("banded", *low), in_float64(*low), torch.float32)


def test_float64_is_none_of_its_types() -> None:
    x, weight, *_ = tensors((1, 2, 3, 3, 3), torch.float64)
    assert "64" in str(unsupported_reason("banded", x, weight))


@pytest.mark.slow
def test_kernels_compile_for_an_absent_gpu_without_spills() -> None:
    options = ["target=sm_90,sm_80", "model.kernel_size=9", "model.patch_size=1"]
    compiled = subprocess.run(
        [sys.executable, "src/benchmark.py", "kernels", *options],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = [
        line.split()
        for line in compiled.splitlines()
        if re.match(r" (convolution|input_gradient|weight_gradient) ", line)
    ]
    assert len(rows) == 2 * 3
    for row in rows:
        assert row[2] == "0"  # bytes spilled
        assert "wgmma" in row or "mma" in row
        assert int(row[6]) >= 8  # warps that fit on a multiprocessor


@pytest.mark.parametrize(
    ("override", "named"),
    [("target=sm_70", "target=sm_70"), ("model.kernel_size=33", "33")],
)
def test_what_cannot_be_compiled_for_is_an_error(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        kernels.run([override])
