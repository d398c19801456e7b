"""The pointwise convolution, without the transposes that cuDNN adds to it in NCHW."""

import torch
from torch import Tensor, nn


class PointwiseConv2d(nn.Conv2d):
    """A convolution with kernel 1 from all channels to as many, with the parameters of nn.Conv2d.

    cuDNN computes it in channels last. With backend="banded", which needs NCHW, it is a matrix product for each image
    in bf16 and fp16. In fp32 it stays a convolution, which PyTorch allows TF32 where it allows matrix products none.

    Args:
        channels: channels of the grid.
        backend: as that of DepthwiseConv2d.
    """

    def __init__(self, channels: int, *, backend: str = "auto") -> None:
        super().__init__(channels, channels, kernel_size=1)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] → the same shape."""
        if self.backend != "banded":
            return super().forward(x)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if dtype.itemsize != 2:
            return super().forward(x)
        matrix = self.weight.flatten(1).expand(len(x), -1, -1)  # torch.matmul would transpose x to save this
        y = torch.bmm(matrix, x.flatten(2))
        return (y if self.bias is None else y + self.bias.to(dtype)[:, None]).view(x.shape)
