"""Triton's kernels give what float64 gives: on a GPU if there is one, else slowly in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from ops.depthwise import IMPLEMENTATION, TRITON, depthwise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LARGER = pytest.mark.slow
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of the largest value

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
