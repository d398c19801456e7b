"""PyTorch's depthwise convolution (cuDNN or oneDNN), with which other backends are compared in tests.

The grid keeps its size as with PyTorch's padding="same": `before(k)` zeros to the left and above, `after(k)` to the
right and below.
"""

from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    k = weight.shape[-1]
    if k % 2:
        return F.conv2d(x, weight, bias, padding="same", groups=len(weight))
    x = F.pad(x, (before(k), after(k), before(k), after(k)))  # as padding="same", but without PyTorch's warning
    return F.conv2d(x, weight, bias, groups=len(weight))


def before(kernel_size: int) -> int:
    return (kernel_size - 1) // 2


def after(kernel_size: int) -> int:
    return kernel_size // 2


def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """Compute the gradient of the input: a convolution with rotated kernel and swapped padding."""
    k = weight.shape[-1]
    if k % 2:
        return convolution(dy, weight.flip(2, 3))
    pad = (after(k), before(k), after(k), before(k))
    return F.conv2d(F.pad(dy, pad), weight.flip(2, 3), groups=len(weight))


def weight_gradient(x: Tensor, dy: Tensor, k: int) -> Tensor:
    """Compute the gradient of the weight with PyTorch's function, which can be differentiated again."""
    padded = F.pad(x, (before(k), after(k), before(k), after(k)))
    return conv2d_weight(padded, (x.shape[1], 1, k, k), dy, groups=x.shape[1])
