"""A whole ConvMixer in fused layers (ops/fused_layer.py): model.backend=fused.

The model stays the one of LLMConvMixer.py, with its parameters, buffers and checkpoints; only its forward pass goes
another way, from the images to the logits without a change of layout in between. Where `why_not` knows a reason
against it, the model goes its plain way.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ops import launch

if find_spec("triton"):
    from ops.fused_layer import Embed, Layer, Pool, patches_of


def is_wanted(model: Any, images: Tensor) -> bool:
    return model.conv_mixer_layers[0].depth_wise_conv.backend == "fused" and not (
        why_not(model, images) or launch.unavailable(images.device)
    )


def why_not(model: Any, images: Tensor) -> str | None:
    """Why a ConvMixer has no kernels for images of this shape [batch, channels, height, width]; None where it has."""
    layers, norms, patch_emb = model.conv_mixer_layers, norms_of(model), model.patch_emb
    if images.dim() != 4 or images.shape[1] != patch_emb.conv.in_channels:
        return "images of another shape"
    height, width = grid_of(model, images)
    positions = images.shape[0] * height * width
    if positions < 2:
        return "too few values for statistics"
    parts, patch_values = [patch_emb, *layers, model.classification], patch_emb.conv.weight[0].numel()
    if any(type(norm) is not nn.BatchNorm2d or not norm.affine or not norm.track_running_stats for norm in norms):
        return "norms other than BatchNorm"
    if norms[0].momentum is None or len({(norm.training, norm.momentum, norm.eps) for norm in norms}) > 1:
        return "BatchNorm in several ways, or with a cumulative average"
    if len(activations := activations_of(model)) > 1 or None in activations:
        return "activations other than ReLU alone or GELU alone"
    if layers[0].residual_pointwise:
        return "a residual around the pointwise convolution"
    if any(module.training and module.p for layer in layers for module in (layer.dropout, layer.stochastic_depth)):
        return "dropout within layers"
    if any(module._forward_hooks or module._forward_pre_hooks for part in parts for module in part.modules()):
        return "hooks on what is fused"
    k, values = layers[0].depth_wise_conv.kernel_size[0], positions * max(norms[0].num_features, patch_values)
    return launch.why_not(height, width, k, values, compute_dtype(model, images))


def forward(model: Any, images: Tensor) -> Tensor:
    """[batch, channels, height, width] → logits [batch, n_classes]."""
    patch_emb, norms = model.patch_emb, norms_of(model)
    height, width = grid_of(model, images)
    (activation,), eps, training = activations_of(model), norms[0].eps, norms[0].training
    patches = patches_of(images, patch_emb.conv.kernel_size[0]).to(compute_dtype(model, images))
    # Parameters are a convolution's weight and bias and its BatchNorm's, once here and twice in a layer.
    stored, norm = Embed.apply(patches, given_statistics(patch_emb.norm), eps, activation, *patch_emb.parameters())
    measured = [norm]
    for layer in model.conv_mixer_layers:
        statistics = given_statistics(layer.norm1, layer.norm2)
        options = (height, width, eps, activation, layer.residual_depthwise)
        recompute = model.checkpoint_activations
        stored, norm, first_norm = Layer.apply(stored, norm, statistics, options, recompute, *layer.parameters())
        measured += [first_norm, norm]
    if training:
        update_statistics(norms, measured, stored.shape[1])
    pooled = Pool.apply(stored, norm, height * width, activation)
    head = model.classification
    return head.linear(head.dropout(pooled.to(stored.dtype)))


def norms_of(model: Any) -> list[Any]:
    return [model.patch_emb.norm, *(norm for layer in model.conv_mixer_layers for norm in (layer.norm1, layer.norm2))]


def activations_of(model: Any) -> set[str | None]:
    layers = model.conv_mixer_layers
    modules = [model.patch_emb.act, *(act for layer in layers for act in (layer.act1, layer.act2))]
    return {activation_of(module) for module in modules}


def activation_of(module: nn.Module) -> str | None:
    """How the kernels call it; None where they do not know it."""
    if type(module) is nn.GELU and module.approximate == "none":
        return "gelu"
    return "relu" if type(module) is nn.ReLU else None


def grid_of(model: Any, images: Tensor) -> tuple[int, int]:
    patch_size = model.patch_emb.conv.kernel_size[0]
    return images.shape[-2] // patch_size, images.shape[-1] // patch_size


def compute_dtype(model: Any, images: Tensor) -> torch.dtype:
    device = images.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.patch_emb.conv.weight.dtype


def given_statistics(*norms: Any) -> list[Tensor]:
    """Means and variances in evaluation mode; in training they are measured."""
    return [] if norms[0].training else [value for norm in norms for value in (norm.running_mean, norm.running_var)]


@torch.no_grad()
def update_statistics(norms: list[Any], measured: list[Tensor], count: int) -> None:
    """BatchNorm's running statistics: the mean, and the variance without bias, of `count` values a channel."""
    dtype = norms[0].running_mean.dtype
    means = [norm[0].to(dtype) for norm in measured]
    variances = [(norm[1] * (count / (count - 1))).to(dtype) for norm in measured]
    torch._foreach_lerp_([norm.running_mean for norm in norms], means, norms[0].momentum)
    torch._foreach_lerp_([norm.running_var for norm in norms], variances, norms[0].momentum)
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
