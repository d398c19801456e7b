"""PyTorch's convolution, with the weight gradient as one convolution over many images (CPU).

oneDNN's forward pass is fast, but its weight gradient is computed tap by tap, which is slow for large kernels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ops.depthwise_reference import after, before, convolution, input_gradient

__all__ = ["convolution", "input_gradient", "weight_gradient"]

ROWS = 64  # rows of a column of images, which fits into the processor's cache


def weight_gradient(x: Tensor, dy: Tensor, k: int) -> Tensor:
    """Compute the gradient [channels, 1, k, k] from x and dy, both [batch, channels, height, width].

    dw[c, i, j] is the sum over b, v, u of x[b, c, v + i - before, u + j - before] · dy[b, c, v, u]; before is the
    padding above and to the left. This is a depthwise convolution of all images, stacked in one tall column with zeros
    between them, with all of dy as the kernel. It is summed over columns of about ROWS rows.
    """
    batch, channels, height, width = x.shape
    top, spacing = before(k), height + after(k)
    n = min(batch, max(1, ROWS // spacing))  # images in a column
    dtype = torch.promote_types(x.dtype, torch.float32)  # accumulate in fp32
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
