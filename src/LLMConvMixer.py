"""ConvMixer, the model of "Patches Are All You Need?" (Trockman & Kolter, arXiv 2201.09792).

An image becomes a grid of patch embeddings. Every layer mixes the grid across positions with a depthwise
convolution, then across channels with a pointwise convolution. The head averages all positions and
classifies. The grid keeps its size from the first layer to the last.

    layer = ConvMixerLayer(d_model=256, kernel_size=9)
    patch_emb = ConvPatchEmbeddings(d_model=256, patch_size=1, in_channels=3)
    classification = ConvClassificationHead(d_model=256, n_classes=10)
    model = ConvMixer(layer, 8, patch_emb, classification)      # ConvMixer-256/8
    logits = model(torch.randn(4, 3, 32, 32))                   # [4, 10]

Parameters have the names of the annotated implementation (labml_nn.conv_mixer), so that its checkpoints
load without conversion. They need activation="gelu". Options that the paper does not describe are
keyword-only and off by default.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from ops.depthwise import DepthwiseConv2d
from ops.pointwise import PointwiseConv2d


class ConvPatchEmbeddings(nn.Module):
    """The embeddings of an image's patches: z0 = BN(σ(Conv(x))), the paper's equation 1.

    Args:
        d_model: Channels of an embedding.
        patch_size: Side of a patch in pixels; kernel and stride of the convolution.
        in_channels: Channels of the image.
        activation: "relu" or "gelu".
        norm: "batch", "layer" (over channels, at every position) or "none".
    """

    def __init__(
        self, d_model: int, patch_size: int, in_channels: int, *, activation: str = "relu", norm: str = "batch"
    ) -> None:
        super().__init__()
        check_sizes(d_model=d_model, patch_size=patch_size, in_channels=in_channels)
        check_names(activation, norm)
        self.d_model = d_model
        self.conv = nn.Conv2d(in_channels, d_model, kernel_size=patch_size, stride=patch_size)
        self.act = ACTIVATIONS[activation]()
        self.norm = NORMS[norm](d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Embed [batch, in_channels, height, width] as [batch, d_model, height / patch_size, width / patch_size].

        Pixels beyond the last whole patch are ignored.
        """
        return self.norm(self.act(self.conv(x)))


class ConvMixerLayer(nn.Module):
    """One layer: mix across positions, then across channels (the paper's equations 2 and 3).

        z' = BN(σ(Depthwise(z))) + z
        z  = BN(σ(Pointwise(z')))

    Args:
        d_model: Channels of the grid.
        kernel_size: Side of the depthwise kernel, odd or even; the grid keeps its size.
        activation: "relu" or "gelu".
        norm: "batch", "layer" (over channels, at every position) or "none".
        residual_depthwise: Add the input of the depthwise convolution to its output.
        residual_pointwise: Add the input of the pointwise convolution to its output.
        dropout: Probability of dropping a value of the layer's input.
        stochastic_depth: Probability of dropping a residual branch of a whole image
            (Huang et al., arXiv 1603.09382).
        backend: The implementation of the convolutions (ops/depthwise.py); all have the same parameters.
    """

    def __init__(
        self,
        d_model: int,
        kernel_size: int,
        *,
        activation: str = "relu",
        norm: str = "batch",
        residual_depthwise: bool = True,
        residual_pointwise: bool = False,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_sizes(d_model=d_model, kernel_size=kernel_size)
        check_names(activation, norm)
        if not 0 <= stochastic_depth <= 1:
            raise ValueError(f"stochastic_depth={stochastic_depth}: expected a probability, 0 to 1")
        self.d_model = d_model
        self.residual_depthwise = residual_depthwise
        self.residual_pointwise = residual_pointwise
        self.dropout = nn.Dropout(dropout)
        self.stochastic_depth = StochasticDepth(stochastic_depth, mode="row")

        self.depth_wise_conv = DepthwiseConv2d(d_model, kernel_size, backend=backend)
        self.act1 = ACTIVATIONS[activation]()
        self.norm1 = NORMS[norm](d_model)

        self.point_wise_conv = PointwiseConv2d(d_model, backend=backend)
        self.act2 = ACTIVATIONS[activation]()
        self.norm2 = NORMS[norm](d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the grid [batch, d_model, height, width]; the shape stays the same."""
        x = self.dropout(x)
        mixed = self.norm1(self.act1(self.depth_wise_conv(x)))
        x = x + self.stochastic_depth(mixed) if self.residual_depthwise else mixed
        mixed = self.norm2(self.act2(self.point_wise_conv(x)))
        return x + self.stochastic_depth(mixed) if self.residual_pointwise else mixed


class ConvClassificationHead(nn.Module):
    """The head: the average over all positions, then a linear layer.

    Args:
        d_model: Channels of the grid.
        n_classes: Number of classes.
        dropout: Probability of dropping a value of the average.
    """

    def __init__(self, d_model: int, n_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        check_sizes(d_model=d_model, n_classes=n_classes)
        self.d_model = d_model
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(d_model, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify the grid [batch, d_model, height, width] with logits [batch, n_classes]."""
        return self.linear(self.dropout(x.mean(dim=(-2, -1))))


class ConvMixer(nn.Module):
    """The model: patch embeddings, `n_layers` layers, classification head.

    Args:
        conv_mixer_layer: The template of all layers. Each layer is a copy with new initial values.
        n_layers: Number of layers.
        patch_emb: The patch embedding.
        classification: The head.
        checkpoint_activations: In training, recompute each layer in the backward pass instead of keeping its
            activations. The results are the same.

    The last layer has the template's `stochastic_depth`. Layers before it drop less, in proportion to their depth
    (Huang et al., equation 4).

    Raises:
        ValueError: The three parts differ in `d_model`, or there is no layer.
    """

    def __init__(
        self,
        conv_mixer_layer: ConvMixerLayer,
        n_layers: int,
        patch_emb: ConvPatchEmbeddings,
        classification: ConvClassificationHead,
        *,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(n_layers=n_layers)
        widths = patch_emb.d_model, conv_mixer_layer.d_model, classification.d_model
        if len(set(widths)) > 1:
            raise ValueError(f"d_model: the embedding, the layer and the head must agree, got {widths}")
        self.patch_emb = patch_emb
        self.conv_mixer_layers = nn.ModuleList(
            fresh_layer(conv_mixer_layer, depth=(i + 1) / n_layers) for i in range(n_layers)
        )
        self.classification = classification
        self.checkpoint_activations = checkpoint_activations

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [batch, channels, height, width] with logits [batch, n_classes]."""
        x = self.patch_emb(x)
        for layer in self.conv_mixer_layers:
            x = recomputed(layer, x) if self.checkpoint_activations and self.training else layer(x)
        return self.classification(x)


PatchEmbeddings = ConvPatchEmbeddings
ClassificationHead = ConvClassificationHead


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of [batch, channels, height, width], at every position."""

    def forward(self, x: Tensor) -> Tensor:
        normalized = super().forward(x.movedim(1, -1)).movedim(-1, 1)
        return normalized.to(x.dtype)  # under autocast LayerNorm returns fp32, at twice the memory


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}
NORMS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm2d, "layer": ChannelLayerNorm, "none": nn.Identity}


def check_sizes(**sizes: int) -> None:
    """Check that sizes are positive, because PyTorch would fail only in `forward`.

    Raises:
        ValueError: A size is below 1.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size}: expected at least 1")


def check_names(activation: str, norm: str) -> None:
    """Check the names of activation and normalization.

    Raises:
        ValueError: A name is unknown.
    """
    for name, value, options in (("activation", activation, ACTIVATIONS), ("norm", norm, NORMS)):
        if value not in options:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(options)}")


def fresh_layer(template: ConvMixerLayer, depth: float) -> ConvMixerLayer:
    """Copy a layer with new initial values, and scale its stochastic depth by `depth`, in (0, 1]."""
    layer = copy.deepcopy(template)
    for module in layer.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    layer.stochastic_depth.p *= depth
    return layer


def recomputed(layer: nn.Module, x: Tensor) -> Tensor:
    """Compute layer(x), and keep only x for the backward pass; BatchNorm updates its statistics once."""
    if torch.compiler.is_compiling():  # a compiled backward pass repeats no update of statistics
        return checkpoint(layer, x, use_reentrant=False)
    return checkpoint(layer, x, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen_statistics(layer)))


@contextmanager
def frozen_statistics(layer: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics unchanged while it normalizes with those of the batch."""
    norms: list[Any] = [module for module in layer.modules() if getattr(module, "track_running_stats", False)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
