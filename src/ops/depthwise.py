"""Depthwise convolution, ConvMixer's slowest operation, with several backends.

    reference   PyTorch's convolution (cuDNN or oneDNN), with which the others are compared in tests
    stacked     CPU: PyTorch's convolution, but the weight gradient is one convolution over many images
    banded      CUDA: Triton, rows of the grid times banded matrices, on tensor cores, in NCHW (see ops/pointwise.py)
    auto        CPU: chosen by shape; CUDA: measured by the run (training/selection.py)

Each backend is a module depthwise_NAME.py with the convolution and its two gradients. All keep the size of the grid, as
PyTorch's padding="same" does.
"""

from collections import Counter
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from config.backends import BACKENDS
from ops import depthwise_reference, depthwise_stacked, launch

TRITON = ("banded",)
IMPLEMENTATION: dict[str, ModuleType] = {"stacked": depthwise_stacked}
if find_spec("triton"):
    from ops import depthwise_banded

    IMPLEMENTATION["banded"] = depthwise_banded


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that keeps the grid's size, with the parameters of nn.Conv2d(groups=channels).

    Args:
        channels: Channels of the grid.
        kernel_size: Side of the kernel, odd or even.
        backend: One of BACKENDS, which differ in speed and rounding; otherwise a ValueError.
    """

    def __init__(self, channels: int, kernel_size: int, *, backend: str = "auto") -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r}: expected one of {', '.join(BACKENDS)}")
        super().__init__(channels, channels, kernel_size, groups=channels, padding="same")
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the grid [batch, channels, height, width]; the shape stays the same."""
        return depthwise(x, self.weight, self.bias, self.backend)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Convolve each channel with a separate kernel.

    Args:
        x: Grid [batch, channels, height, width].
        weight: Kernels [channels, 1, kernel_size, kernel_size].
        bias: [channels].

    Raises:
        ValueError: The backend does not support this shape, type or device.
    """
    if backend == "auto":
        backend = fastest(x, weight)
    count_convolution(backend)
    if backend == "reference" or not x.numel() or torch.jit.is_tracing():  # traced files hold PyTorch's operations only
        return depthwise_reference.convolution(x, weight, bias)
    if reason := unsupported_reason(backend, x, weight):
        raise ValueError(f"backend={backend!r}: {reason}")
    if torch.is_autocast_enabled(x.device.type):  # autocast does not reach a Function's backward
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    operation = WithOwnGradients if torch.compiler.is_compiling() else WithForwardMode
    return operation.apply(x, weight, bias, backend)


COMPUTED: Counter[str] = Counter()  # number of convolutions by backend; a compiled graph counts once, when traced


@torch.compiler.assume_constant_result
def count_convolution(backend: str) -> None:
    COMPUTED[backend] += 1


def fastest(x: Tensor, weight: Tensor) -> str:
    """Choose a backend by shape and device, without measuring, so that a resumed run computes the same."""
    if x.device.type == "cpu" and weight.requires_grad and x.dtype == torch.float32:
        channels, _, k, _ = weight.shape
        pays = (k >= 7 and channels >= 128) or (k >= 5 and channels >= 256 and x.shape[-1] >= 16)
        if pays and not torch.is_autocast_enabled("cpu"):
            return "stacked"
    return "reference"


def unsupported_reason(backend: str, x: Tensor, weight: Tensor) -> str | None:
    """Explain why a backend does not support this shape, type or device; None if it does."""
    if backend not in TRITON:
        return None
    height, width, k = *x.shape[-2:], weight.shape[-1]
    if max(height, width) > 64 or k > 31:
        return f"supports grids up to 64×64 and kernels up to 31, not {height}×{width} and {k}"
    if x.numel() >= 2**31:
        return "supports fewer than 2³¹ values in a batch's grid"
    if x.dtype == torch.float64:
        return "supports bf16, fp16 and fp32, not fp64"
    return launch.unavailable(x.device)


class WithOwnGradients(Function):
    """The autograd function of a backend's convolution and its two gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
        return IMPLEMENTATION[backend].convolution(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, str], output: Tensor) -> None:
        x, weight, _, ctx.backend = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs_dx, needs_dw, needs_db, _ = ctx.needs_input_grad
        # The reference can be differentiated again.
        backend = depthwise_reference if torch.is_grad_enabled() else IMPLEMENTATION[ctx.backend]
        dx = backend.input_gradient(dy, weight) if needs_dx else None
        dw = backend.weight_gradient(x, dy, weight.shape[-1]) if needs_dw else None
        return dx, dw, dy.sum((0, 2, 3)) if needs_db else None, None


class WithForwardMode(WithOwnGradients):
    """The same with forward-mode derivatives, which torch.compile cannot trace (PyTorch 2.14)."""

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None, _: None) -> Tensor:
        """Sum the changes with each operand: the convolution is linear in each."""
        x, weight = ctx.saved_tensors
        dy = x.new_zeros(x.shape) if db is None else db[:, None, None].expand(x.shape)
        if dx is not None:
            dy = dy + depthwise_reference.convolution(dx, weight)
        return dy if dw is None else dy + depthwise_reference.convolution(x, dw)


torch.fx.wrap("depthwise")  # torch.fx takes it as one operation: it looks at tensors' devices
