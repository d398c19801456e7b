"""Tests of the depthwise convolution: every backend's results and gradients equal PyTorch's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import checked
from LLMConvMixer import ConvClassificationHead, ConvMixer, ConvMixerLayer, ConvPatchEmbeddings
from ops.depthwise import IMPLEMENTATION, TRITON, DepthwiseConv2d, depthwise, fastest
from tracking.identity import run_id
from training.model import make_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FAST = [backend for backend in IMPLEMENTATION if backend not in TRITON]  # those: test_kernels.py
KERNELS = (1, 2, 3, 5, 8, 9, 15)
GRIDS = ((1, 1), (1, 7), (5, 3), (8, 8), (17, 12), (32, 32), (64, 33))


def tensors(k: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Draw x, weight, bias and the gradient of the result."""
    torch.manual_seed(0)
    shapes = [(3, 4, height, width), (4, 1, k, k), (4,), (3, 4, height, width)]
    return [torch.randn(shape, dtype=torch.float64).to(DEVICE, dtype).requires_grad_() for shape in shapes]


def with_gradients(backend: str, x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    y = depthwise(x, weight, bias, backend)
    return y, *torch.autograd.grad(y, (x, weight, bias), dy)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("k", KERNELS)
@pytest.mark.parametrize("grid", GRIDS)
def test_equals_the_reference_in_float64(backend: str, k: int, grid: tuple[int, int]) -> None:
    x, *rest = tensors(k, *grid)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
        computed, expected = with_gradients(backend, x, *rest), with_gradients("reference", x, *rest)
        for ours, theirs in zip(computed, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("k", "grid"), [(5, (16, 16)), (9, (8, 8)), (9, (32, 32))])
def test_half_precision_is_as_exact_as_the_reference(backend: str, k: int, grid: tuple[int, int]) -> None:
    low = tensors(k, *grid, torch.bfloat16)
    exact = with_gradients("reference", *(tensor.detach().double().requires_grad_() for tensor in low))
    computed, reference = with_gradients(backend, *low), with_gradients("reference", *low)
    for ours, theirs, true in zip(computed, reference, exact, strict=True):
        error, allowed = ((tensor.double() - true).square().mean().sqrt() for tensor in (ours, theirs))
        assert error <= 1.25 * allowed + 1e-12


@pytest.mark.parametrize("backend", FAST)
def test_compiled_under_autocast_and_under_torch_func(backend: str) -> None:
    x, weight, bias, _ = tensors(5, 8, 8)

    def loss(x: Tensor, weight: Tensor, backend: str = backend) -> Tensor:
        return depthwise(x, weight, bias, backend).square().sum()

    expected = torch.func.grad(loss, argnums=(0, 1))(x, weight, "reference")
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1))(x, weight), expected)
    compiled = torch.compile(loss, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x, weight), (x, weight)), expected)
    # Per-sample gradients of the kernel.
    gradients = torch.func.vmap(torch.func.grad(lambda image, w: loss(image[None], w), argnums=1), (0, None))(x, weight)
    torch.testing.assert_close(gradients.sum(0), expected[1])
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y = depthwise(x, weight, bias, backend)
    assert y.dtype == torch.bfloat16
    dw = torch.autograd.grad(y.float().square().sum(), weight)[0]
    assert dw.dtype == weight.dtype
    torch.testing.assert_close(dw, expected[1], atol=0.05 * float(expected[1].detach().abs().max()), rtol=0)


@pytest.mark.parametrize("backend", FAST)
def test_it_can_be_differentiated_twice(backend: str) -> None:
    x, weight, bias, _ = tensors(3, 4, 5)
    assert torch.autograd.gradgradcheck(lambda x, w: depthwise(x[:1, :2], w[:2], bias[:2], backend), (x, weight))


def convmixer(backend: str) -> ConvMixer:
    torch.manual_seed(0)
    layer = ConvMixerLayer(16, 5, backend=backend)
    return ConvMixer(layer, 2, ConvPatchEmbeddings(16, 2, 3), ConvClassificationHead(16, 10))


@pytest.mark.parametrize("backend", FAST)
def test_model_trains_as_the_reference_from_its_checkpoint(backend: str) -> None:
    fast, reference = convmixer(backend).double(), convmixer("reference").double()
    reference.load_state_dict(fast.state_dict())
    x, labels = torch.randn(8, 3, 16, 16).double(), torch.arange(8)
    for model in (fast, reference):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
    for (name, ours), theirs in zip(fast.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0, msg=name)


def test_auto_goes_by_the_shape() -> None:
    def chosen(channels: int, k: int, dtype: torch.dtype = torch.float32, side: int = 8) -> str:
        conv = DepthwiseConv2d(channels, k).to(dtype)
        return fastest(torch.randn(1, channels, side, side, dtype=dtype), conv.weight)

    assert chosen(256, 9) == chosen(128, 7) == chosen(256, 5, side=16) == "stacked"
    assert chosen(256, 5) == chosen(64, 9) == chosen(256, 9, torch.bfloat16) == "reference"


def test_the_backend_is_a_key_and_no_part_of_a_runs_identity() -> None:
    layers: Any = make_model(checked("model.backend=stacked"), 1, 10).conv_mixer_layers
    assert layers[0].depth_wise_conv.backend == "stacked"
    assert run_id(checked("model.backend=stacked")) == run_id(checked())
    with pytest.raises(ValueError, match="backend='fast': expected one of auto, reference"):
        ConvMixerLayer(8, 3, backend="fast")
