"""Depthwise convolution, the operation that makes ConvMixer slow, in several ways with one result.

    reference   PyTorch's own, cuDNN or oneDNN underneath; what the others are tested against
    stacked     PyTorch's own, but the gradient of the kernel as a convolution over all images at once (CPU)
    toeplitz    matrix products: on a small grid a depthwise convolution is a dense matrix for each channel (GPU)
    auto        whichever was measured to be the fastest for the shape and device (src/benchmark.py depthwise)

All keep the grid's size as PyTorch's padding="same" does: `before(k)` zeros on the left and on top,
`after(k)` on the right and below.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

BACKENDS = ("auto", "reference", "stacked", "toeplitz")


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that keeps the grid's size, with the parameters of nn.Conv2d(groups=channels).

    Args:
        channels: channels of the grid.
        kernel_size: side of the kernel, odd or even.
        backend: one of BACKENDS; they differ in speed and in rounding.

    Raises:
        ValueError: there is no such backend.
    """

    def __init__(self, channels: int, kernel_size: int, *, backend: str = "auto") -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r}: expected one of {', '.join(BACKENDS)}")
        super().__init__(channels, channels, kernel_size, groups=channels, padding="same")
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] → the same shape."""
        return depthwise(x, self.weight, self.bias, self.backend)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: str = "auto") -> Tensor:
    """
    Args:
        x: [batch, channels, height, width].
        weight: [channels, 1, kernel_size, kernel_size].
        bias: [channels].
    """
    if backend == "auto":
        backend = fastest(x, weight)
    if backend == "reference":
        return same_conv(x, weight, bias)
    if torch.is_autocast_enabled(x.device.type):  # which reaches PyTorch's operations, not these functions' backward
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return WithOwnGradients.apply(x, weight, bias, backend)


def fastest(x: Tensor, weight: Tensor) -> str:
    """By shape and device alone, never by the clock: a run that goes on must compute as it did before."""
    if x.device.type == "cpu" and weight.requires_grad and x.dtype == torch.float32:
        channels, _, k, _ = weight.shape
        pays = (k >= 7 and channels >= 128) or (k >= 5 and channels >= 256 and x.shape[-1] >= 16)
        if pays and not torch.is_autocast_enabled("cpu"):
            return "stacked"
    return "reference"


def same_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    k = weight.shape[-1]
    if k % 2:
        return F.conv2d(x, weight, bias, padding="same", groups=len(weight))
    x = F.pad(x, (before(k), after(k), before(k), after(k)))  # PyTorch would do the same, and warn
    return F.conv2d(x, weight, bias, groups=len(weight))


def before(kernel_size: int) -> int:
    return (kernel_size - 1) // 2


def after(kernel_size: int) -> int:
    return kernel_size // 2


class WithOwnGradients(Function):
    """A backend's convolution and the two gradients that it has for it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
        return CONVOLUTION[backend](x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, str], output: Tensor) -> None:
        x, weight, _, ctx.backend = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs_dx, needs_dw, needs_db, _ = ctx.needs_input_grad
        dx = INPUT_GRADIENT[ctx.backend](dy, weight) if needs_dx else None
        dw = WEIGHT_GRADIENT[ctx.backend](x, dy, weight.shape[-1]) if needs_dw else None
        return dx, dw, dy.sum((0, 2, 3)) if needs_db else None, None


# Stacked: PyTorch's convolution but for the kernel's gradient, which oneDNN computes slowly where kernels are large.

ROWS = 64  # of a column of images; they stay in the processor's cache


def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """The gradient of same_conv's input: the same, with kernel and padding turned round."""
    k = weight.shape[-1]
    if k % 2:
        return same_conv(dy, weight.flip(2, 3))
    pad = (after(k), before(k), after(k), before(k))
    return F.conv2d(F.pad(dy, pad), weight.flip(2, 3), groups=len(weight))


def stacked_weight_gradient(x: Tensor, dy: Tensor, k: int) -> Tensor:
    """[batch, channels, height, width] twice → [channels, 1, k, k].

    dw[c, i, j], the sum over all b, v, u of x[b, c, v + i - before, u + j - before] · dy[b, c, v, u], is a
    depthwise convolution itself: of all images in one tall column, zeros between them, with all of dy as the
    kernel. It is summed column by column of about ROWS rows.
    """
    if torch.is_grad_enabled():
        return plain_weight_gradient(x, dy, k)
    batch, channels, height, width = x.shape
    top, spacing = before(k), height + after(k)
    n = min(batch, max(1, ROWS // spacing))  # images in a column
    dtype = torch.promote_types(x.dtype, torch.float32)  # sums want their digits
    column = x.new_zeros(n * spacing + top, width + k - 1, channels, dtype=dtype)
    kernel = x.new_zeros(n * spacing, width, channels, dtype=dtype)
    x_places = column[top:].unflatten(0, (n, spacing))[:, :height, top : top + width]
    dy_places = kernel.unflatten(0, (n, spacing))[:, :height]
    dw = x.new_zeros(channels, k, k, dtype=dtype)
    for x_part, dy_part in zip(x.split(n), dy.split(n), strict=True):
        x_places[: len(x_part)] = x_part.permute(0, 2, 3, 1)
        dy_places[: len(x_part)] = dy_part.permute(0, 2, 3, 1)
        rows = len(x_part) * spacing - after(k)
        image, gradients = column[: rows + k - 1].permute(2, 0, 1), kernel[:rows].permute(2, 0, 1)
        dw += F.conv2d(image, gradients.unsqueeze(1), groups=channels)
    return dw.unsqueeze(1).to(x.dtype)


def plain_weight_gradient(x: Tensor, dy: Tensor, k: int) -> Tensor:
    """The same as PyTorch computes it; it can be differentiated again."""
    padded = F.pad(x, (before(k), after(k), before(k), after(k)))
    return conv2d_weight(padded, (x.shape[1], 1, k, k), dy, groups=x.shape[1])


# Toeplitz: strips of the grid times a matrix for each channel; both gradients are such products, too.
#
# A strip of `height` rows depends on height + k - 1 rows of the input: [channels, batch · strips, rows in] ×
# [channels, rows in, rows out], where a row is `width` positions. The matrix holds the kernel along its
# diagonals, so that its gradient, summed along them, is the kernel's.


def strip_height(height: int) -> int:
    """Rows of a strip: all of a small grid; of a large one 8, as the matrix grows with the square."""
    return height if height <= 16 else 8


def strips_of(x: Tensor, k: int, above: int) -> Tensor:
    """[batch, channels, height, width] → [channels, batch · strips, rows in · width]."""
    channels, height, width = x.shape[1:]
    s = strip_height(height)
    padded = F.pad(x, (0, 0, above, k - 1 - above + -height % s))
    return padded.unfold(2, s + k - 1, s).permute(1, 0, 2, 4, 3).reshape(channels, -1, (s + k - 1) * width)


def toeplitz_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return toeplitz_product(x, weight, before(weight.shape[-1]), bias)


def toeplitz_input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    return toeplitz_product(dy, weight.flip(2, 3), after(weight.shape[-1]))


def toeplitz_product(x: Tensor, weight: Tensor, above: int, bias: Tensor | None = None) -> Tensor:
    """Depthwise convolution with `above` zeros above and on the left, the rest of k - 1 below and on the right."""
    batch, channels, height, width = x.shape
    s, k = strip_height(height), weight.shape[-1]
    index = toeplitz_index(s, width, k, above, x.device)
    matrix = F.pad(weight.flatten(1), (0, 1))[:, index]  # [channels, rows in · width, rows out · width]
    strips = strips_of(x, k, above)
    y = torch.bmm(strips, matrix) if bias is None else torch.baddbmm(bias[:, None, None], strips, matrix)
    y = y.view(channels, batch, -1, width)[:, :, :height].transpose(0, 1)
    return y.contiguous(memory_format=torch.channels_last) if x.stride(1) == 1 else y.contiguous()


@cache
def toeplitz_index(s: int, width: int, k: int, left: int, device: torch.device) -> Tensor:
    """Which of the k · k kernel values stands where in the matrix; k · k where none does."""
    row_in, column_in = torch.arange(s + k - 1, device=device), torch.arange(width, device=device)
    i = row_in[:, None, None, None] - torch.arange(s, device=device)[:, None]
    j = column_in[:, None, None] - column_in + left
    inside = (i >= 0) & (i < k) & (j >= 0) & (j < k)
    return torch.where(inside, i * k + j, k * k).view((s + k - 1) * width, s * width)


def toeplitz_weight_gradient(x: Tensor, dy: Tensor, k: int) -> Tensor:
    """[batch, channels, height, width] twice → [channels, 1, k, k]."""
    channels, height, width = x.shape[1:]
    s = strip_height(height)
    strips = F.pad(dy, (0, 0, 0, -height % s)).unfold(2, s, s).permute(1, 0, 2, 4, 3).reshape(channels, -1, s * width)
    matrix = exact_bmm(strips_of(x, k, before(k)).transpose(1, 2), strips).view(channels, s + k - 1, width, s, width)
    matrix = F.pad(matrix, (0, 0, 0, 0, before(k), after(k)))  # so that every diagonal has its full length
    windows = matrix.unfold(1, s, 1).unfold(2, width, 1)  # [channels, i, j, row out, column out, row in, column in]
    return windows.diagonal(0, 3, 5).diagonal(0, 3, 4).sum((-2, -1)).unsqueeze(1).to(x.dtype)


def exact_bmm(a: Tensor, b: Tensor) -> Tensor:
    """torch.bmm whose result is at least in float32: it will be summed."""
    if a.dtype.itemsize >= 4:
        return torch.bmm(a, b)
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.bmm(a.float(), b.float())


CONVOLUTION = {"stacked": same_conv, "toeplitz": toeplitz_conv}
INPUT_GRADIENT = {"stacked": input_gradient, "toeplitz": toeplitz_input_gradient}
WEIGHT_GRADIENT = {"stacked": stacked_weight_gradient, "toeplitz": toeplitz_weight_gradient}
