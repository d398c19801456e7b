"""The layouts in which ConvMixer's weights are published, and the architecture that weights imply.

    ours      patch_emb.conv, conv_mixer_layers.N.depth_wise_conv, …, classification.linear: this repository and the
              annotated implementation (labml_nn.conv_mixer)
    authors   0, 2, N.0.fn.0, …: a plain nn.Sequential (locuslab/convmixer and convmixer-cifar10)
    timm      stem.0, stem.2, blocks.N.0.fn.0, …, head (its convmixer.py)

Weights determine their model except for its activation.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from LLMConvMixer import NORMS, ConvClassificationHead, ConvMixer, ConvMixerLayer, ConvPatchEmbeddings

# Pattern of a key that each layer has once, by layout.
DEPTHWISE = {
    "ours": r"conv_mixer_layers\.\d+\.depth_wise_conv\.weight",
    "authors": r"\d+\.0\.fn\.0\.weight",
    "timm": r"blocks\.\d+\.0\.fn\.0\.weight",
}
COUNTER = "num_batches_tracked"  # BatchNorm's counter, which evaluation does not need and some files lack


class LayoutError(ValueError):
    """An error for weights that are not a ConvMixer's; the message names the first differences."""


@dataclass(frozen=True)
class Architecture:
    """The architecture that weights imply."""

    d_model: int
    depth: int
    kernel_size: int
    patch_size: int
    channels: int
    n_classes: int
    norm: str

    def __str__(self) -> str:
        return f"ConvMixer-{self.d_model}/{self.depth}, kernel {self.kernel_size}, patch {self.patch_size}"

    @property
    def model_keys(self) -> dict[str, Any]:
        """The architecture as keys of `model`."""
        return {key: value for key, value in asdict(self).items() if key not in ("channels", "n_classes")}

    def with_norm(self, norm: str) -> "Architecture":
        """Return the architecture with another normalization if its tensors are the same, else this one."""
        other = replace(self, norm=norm)
        if norm == self.norm or norm not in NORMS:
            return self
        shapes = [{name: like.shape for name, like in shape.empty_tensors().items()} for shape in (self, other)]
        return other if shapes[0] == shapes[1] else self

    def empty_tensors(self) -> dict[str, Tensor]:
        """Make the tensors of such a model by our names, without content."""
        with torch.device("meta"):
            model = ConvMixer(
                ConvMixerLayer(self.d_model, self.kernel_size, norm=self.norm),
                self.depth,
                ConvPatchEmbeddings(self.d_model, self.patch_size, self.channels, norm=self.norm),
                ConvClassificationHead(self.d_model, self.n_classes),
            )
        return model.state_dict()


def module_names(layout: str, depth: int) -> dict[str, str]:
    """Map our name of every module with weights to the layout's."""
    if layout == "authors":
        patch_emb, layers, head = "", [str(3 + i) for i in range(depth)], str(3 + depth + 2)  # pool, flatten, linear
    else:
        patch_emb, layers, head = "stem.", [f"blocks.{i}" for i in range(depth)], "head"
    names = {"patch_emb.conv": f"{patch_emb}0", "patch_emb.norm": f"{patch_emb}2"}
    for i, layer in enumerate(layers):
        prefix = f"conv_mixer_layers.{i}"
        names |= {
            f"{prefix}.depth_wise_conv": f"{layer}.0.fn.0",
            f"{prefix}.norm1": f"{layer}.0.fn.2",
            f"{prefix}.point_wise_conv": f"{layer}.1",
            f"{prefix}.norm2": f"{layer}.3",
        }
    names["classification.linear"] = head
    return names if layout != "ours" else {name: name for name in names}


def to_layout(weights: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Rename weights from our names to the layout's."""
    names = module_names(layout, count_layers(weights, "ours"))
    return {rename(name, names): tensor for name, tensor in weights.items()}


def from_layout(weights: Mapping[str, Tensor]) -> tuple[str, Architecture, dict[str, Tensor]]:
    """Recognize the layout of weights; return it, the architecture, and the weights under our names in fp32.

    Raises:
        LayoutError: A tensor is missing, unexpected or of another shape.
    """
    layout = max(DEPTHWISE, key=lambda layout: count_layers(weights, layout))
    depth = count_layers(weights, layout)
    if not depth:
        raise LayoutError(
            "expected a ConvMixer with conv_mixer_layers.0.… (ours), 3.0.fn.0.… (the authors') or blocks.0.0.fn.0.… "
            f"(timm's), found {enumerate_first(list(weights))}"
        )
    file_names = module_names(layout, depth)
    our_names = {name: module for module, name in file_names.items()}
    tensors = {rename(name, our_names): tensor for name, tensor in weights.items()}
    architecture = read_architecture(tensors, file_names)
    expected = architecture.empty_tensors()
    tensors = {name: torch.zeros((), dtype=torch.int64) for name in expected if name.endswith(COUNTER)} | tensors
    differences = [
        *(f"{rename(name, file_names)} is missing" for name in expected if name not in tensors),
        *(f"{rename(name, file_names)} is unexpected" for name in tensors if name not in expected),
        *(
            f"{rename(name, file_names)} is {list(tensors[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ),
    ]
    if differences:
        raise LayoutError(f"looks like {architecture}, but {enumerate_first(differences)}")
    return layout, architecture, {name: tensors[name].to(like.dtype).contiguous() for name, like in expected.items()}


def read_architecture(tensors: Mapping[str, Tensor], file_names: Mapping[str, str]) -> Architecture:
    """Read the architecture from the shapes of tensors.

    Args:
        tensors: Tensors by our names.
        file_names: The file's name of each module, for errors.

    Raises:
        LayoutError: A tensor is missing or has another number of dimensions.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors:
            raise LayoutError(f"{rename(name, file_names)} is missing")
        if tensors[name].ndim != dimensions:
            raise LayoutError(
                f"{rename(name, file_names)} is {list(tensors[name].shape)}, not of {dimensions} dimensions"
            )
        return tuple(tensors[name].shape)

    d_model, channels, _, patch_size = shape("patch_emb.conv.weight", 4)
    *_, kernel_size = shape("conv_mixer_layers.0.depth_wise_conv.weight", 4)
    n_classes, _ = shape("classification.linear.weight", 2)
    has_statistics, has_norm = "patch_emb.norm.running_mean" in tensors, "patch_emb.norm.weight" in tensors
    return Architecture(
        d_model=d_model,
        depth=count_layers(tensors, "ours"),
        kernel_size=kernel_size,
        patch_size=patch_size,
        channels=channels,
        n_classes=n_classes,
        norm="batch" if has_statistics else "layer" if has_norm else "none",
    )


def count_layers(weights: Mapping[str, Tensor], layout: str) -> int:
    return sum(bool(re.fullmatch(DEPTHWISE[layout], name)) for name in weights)


def rename(name: str, modules: Mapping[str, str]) -> str:
    """Rename a tensor, e.g. "stem.0.weight" to "patch_emb.conv.weight", if `modules` contains its module."""
    module, dot, parameter = name.rpartition(".")
    return f"{modules.get(module, module)}{dot}{parameter}"


def enumerate_first(items: list[str]) -> str:
    """List the first three items, and count the others."""
    shown = ", ".join(items[:3]) or "no weights"
    return shown if len(items) <= 3 else f"{shown}, and {len(items) - 3} more"
