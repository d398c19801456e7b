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
from torch.nn import functional as F

from benchmarks import kernels
from config.errors import ConfigError
from ops.depthwise import IMPLEMENTATION, TRITON, depthwise, why_not
from ops.fused_layer import Embed
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
    assert "64" in str(why_not("banded", x, weight))


@pytest.mark.slow
def test_a_pointwise_product_of_more_than_one_tile_equals_float64() -> None:
    """270 channels of 300 inputs and 70 positions fill no tile; the weight is not contiguous."""
    torch.manual_seed(0)
    kernel = torch.randn(300, 270).t().unflatten(1, (3, 10, 10))
    leaves = [torch.randn(300, 70), kernel, *(torch.randn(270) for _ in range(3))]
    patches, *weights = (leaf.to(DEVICE).requires_grad_() for leaf in leaves)
    dz = torch.randn(270, 70, device=DEVICE)
    stored, norm = Embed.apply(patches, [], 1e-5, "relu", *weights)
    mean, _, _, scale, shift = norm[:, :, None]
    z = stored * scale + shift
    sums = torch.zeros_like(norm)
    sums[0], sums[1] = dz.sum(1), (dz * (stored - mean)).sum(1)
    found = torch.autograd.grad((stored, norm), (patches, *weights), (dz, sums))

    exact = [tensor.detach().double().requires_grad_() for tensor in (patches, *weights)]
    u = exact[1].flatten(1) @ exact[0] + exact[2][:, None]
    true = F.batch_norm(u.relu().t(), None, None, exact[3], exact[4], training=True, eps=1e-5).t()
    check((z, *found), (true, *torch.autograd.grad(true, exact, dz.double())), torch.float32)


@pytest.mark.slow
def test_the_fused_layer_compiles_for_a_gpu_that_is_not_there_without_spills() -> None:
    options = ["target=sm_90,sm_80", "model.kernel_size=9", "model.patch_size=1"]
    compiled = subprocess.run(
        [sys.executable, "src/benchmark.py", "kernels", *options],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = [line.split() for line in compiled.splitlines() if re.match(r" \w+\.(forward|backward)", line)]
    assert len(rows) == 2 * 6
    for row in rows:
        assert row[2] == "0"  # bytes spilled
        assert "wgmma" in row or "mma" in row
        assert int(row[6]) >= 8  # warps that fit on a multiprocessor
    assert sum(int(row[7]) for row in rows) <= 2 * 22  # passes


@pytest.mark.parametrize(
    ("override", "named"),
    [("target=sm_70", "target=sm_70"), ("model.kernel_size=33", "33"), ("model.norm=layer", "norms")],
)
def test_what_cannot_be_compiled_for_is_an_error(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        kernels.run([override])


@pytest.mark.skipif(torch.cuda.is_available(), reason="counted in Triton's interpreter")
def test_a_kernel_makes_the_passes_that_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses that its loads and stores really touch, in units of an activation."""
    from triton.runtime.interpreter import InterpreterBuilder

    touched: list[np.ndarray] = []

    def watch(name: str, mask_at: int) -> None:
        original = getattr(InterpreterBuilder, name)

        def call(self: Any, pointers: Any, *rest: Any) -> Any:
            mask = np.broadcast_to(rest[mask_at].data, pointers.data.shape).astype(bool)
            touched.append(np.unique(pointers.data[mask]))
            return original(self, pointers, *rest)

        monkeypatch.setattr(InterpreterBuilder, name, call)

    watch("create_masked_load", mask_at=0)
    watch("create_masked_store", mask_at=1)
    batch, channels, side, k = 8, 2, 16, 3
    size, counted = batch * channels * side**2, 0
    for name, launch in kernels.layer_kernels(batch, channels, side, k, torch.float32, "relu").items():
        real = {
            key: torch.ones(value.untyped_storage().size() // 4).as_strided(value.shape, value.stride())
            if isinstance(value, Tensor) else value
            for key, value in launch.arguments.items()
        }  # fmt: skip
        touched.clear()
        launch.kernel[launch.grid](**real)
        addresses = np.unique(np.concatenate(touched))
        activations = [value for value in real.values() if isinstance(value, Tensor) and value.numel() == size]
        for value in activations:
            assert np.isin(value.data_ptr() + 4 * np.arange(size), addresses).all()
        assert len(activations) == kernels.passes(launch, size)
        if "ward" in name:  # others are small
            assert len(addresses) < (len(activations) + 0.6) * size  # and what belongs to the channels
        counted += len(activations)
    assert counted <= 22
