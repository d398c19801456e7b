"""Depthwise convolution as matrix products of PyTorch: on a small grid it is a dense matrix for each channel.

A strip of `height` rows depends on height + k - 1 rows of the input: [channels, batch · strips, rows in] ×
[channels, rows in, rows out], where a row is `width` positions. The matrix holds the kernel along its
diagonals, so that its gradient, summed along them, is the kernel's.

Cost: (s + k - 1) · width multiply-accumulates an output instead of k², on tensor cores; for strips of 8 rows and
kernel 9 the input is read twice, and its strips are written once.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ops.depthwise_reference import after, before


def strip_height(height: int) -> int:
    """Rows of a strip: all of a small grid; of a large one 8, as the matrix grows with the square."""
    return height if height <= 16 else 8


def strips_of(x: Tensor, k: int, above: int) -> Tensor:
    """[batch, channels, height, width] → [channels, batch · strips, rows in · width]."""
    channels, height, width = x.shape[1:]
    s = strip_height(height)
    padded = F.pad(x, (0, 0, above, k - 1 - above + -height % s))
    return padded.unfold(2, s + k - 1, s).permute(1, 0, 2, 4, 3).reshape(channels, -1, (s + k - 1) * width)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return toeplitz_product(x, weight, before(weight.shape[-1]), bias)


def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
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


def weight_gradient(x: Tensor, dy: Tensor, k: int) -> Tensor:
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
