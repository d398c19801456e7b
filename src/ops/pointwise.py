"""The pointwise convolution, in NCHW without cuDNN's transposes."""

import torch
from torch import Tensor, nn


class PointwiseConv2d(nn.Conv2d):
    """A convolution with kernel 1 over all channels, with the parameters of nn.Conv2d.

    cuDNN transposes NCHW to channels last. With backend="banded", which needs NCHW, bf16 and fp16 use a matrix product
    for each image instead. fp32 stays a convolution: PyTorch allows it TF32, but not matrix products by default.

    Args:
        channels: Channels of the grid.
        backend: The backend of the layer's DepthwiseConv2d.
    """

    def __init__(self, channels: int, *, backend: str = "auto") -> None:
        super().__init__(channels, channels, kernel_size=1)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """Mix channels at every position of [batch, channels, height, width]; the shape stays the same."""
        if self.backend != "banded":
            return super().forward(x)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if dtype.itemsize != 2:
            return super().forward(x)
        matrix = self.weight.flatten(1).expand(len(x), -1, -1)  # torch.matmul would transpose x
        y = torch.bmm(matrix, x.flatten(2))
        return (y if self.bias is None else y + self.bias.to(dtype)[:, None]).view(x.shape)
