"""BatchNorm folded into convolutions, for inference.

In evaluation, BatchNorm multiplies each channel by a scale and adds a shift. As it follows an activation, it cannot be
folded into the convolution before it. These norms are folded forward, exactly except for rounding:

    norm2 of the last layer   into the classifier, because the mean over positions and the linear layer are linear
    norm1                     its shift, into the bias of the pointwise convolution, which has no border. Its scale
                              joins the residual's addition, z + scale · σ(Depthwise(z)): one pass over the activation
                              instead of two. Without that residual, the scale goes into the pointwise weights

The patch embedding's norm and the other layers' norm2 stay. The depthwise convolution after them pads with zeros, so at
the border a part of the shift is missing from its sums, and the residual reads the same values. The scale alone could
be folded, but the shift's pass over the activation would remain.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from LLMConvMixer import ConvMixer, ConvMixerLayer


@torch.no_grad()
def fold_batch_norm(model: ConvMixer) -> ConvMixer:
    """Copy the model, and fold BatchNorm where this is exact; the logits are the same."""
    folded = copy.deepcopy(model).eval()
    layers = cast(list[ConvMixerLayer], list(folded.conv_mixer_layers))
    if not isinstance(layers[-1].norm2, nn.BatchNorm2d):
        return folded
    if not layers[-1].residual_pointwise:
        fold_into(folded.classification.linear, *scale_and_shift(layers[-1].norm2))
        layers[-1].norm2 = nn.Identity()
    folded.conv_mixer_layers = nn.ModuleList(FoldedLayer(layer) for layer in layers)
    return folded


class FoldedLayer(nn.Module):
    """A ConvMixerLayer in evaluation without norm1; it takes over the layer's modules and changes their weights."""

    scale: Tensor

    def __init__(self, layer: ConvMixerLayer) -> None:
        super().__init__()
        self.residual_depthwise, self.residual_pointwise = layer.residual_depthwise, layer.residual_pointwise
        self.depth_wise_conv, self.act1 = layer.depth_wise_conv, layer.act1
        self.point_wise_conv, self.act2, self.norm2 = layer.point_wise_conv, layer.act2, layer.norm2
        scale, shift = scale_and_shift(cast(nn.BatchNorm2d, layer.norm1))
        has_residual = self.residual_depthwise or self.residual_pointwise
        fold_into(self.point_wise_conv, torch.ones_like(scale) if has_residual else scale, shift)
        if self.residual_pointwise:  # this residual reads norm1's result, too
            cast(nn.BatchNorm2d, self.norm2).bias.add_(shift)
        self.register_buffer("scale", scale.to(layer.depth_wise_conv.weight.dtype)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer: [batch, d_model, height, width] → the same shape."""
        mixed = self.act1(self.depth_wise_conv(x))
        if self.residual_depthwise:
            x = torch.addcmul(x, mixed, self.scale)
        else:
            x = mixed * self.scale if self.residual_pointwise else mixed
        mixed = self.norm2(self.act2(self.point_wise_conv(x)))
        return x + mixed if self.residual_pointwise else mixed


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return BatchNorm's scale and shift in evaluation, for each channel, in float64."""
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    scale = norm.weight.double() / torch.sqrt(variance + norm.eps)
    return scale, norm.bias.double() - mean * scale


def fold_into(consumer: nn.Conv2d | nn.Linear, scale: Tensor, shift: Tensor) -> None:
    """Fold scale and shift of the input into a linear or 1×1 layer."""
    weight, bias = consumer.weight, cast(Tensor, consumer.bias)
    matrix = weight.double().flatten(1)
    bias.copy_(bias.double() + matrix @ shift)
    weight.copy_((matrix * scale).view_as(weight))
