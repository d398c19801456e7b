"""The model summary: parameters, multiply-accumulates and activation memory of each part."""

import math
import os
import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor, UntypedStorage
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from config.errors import ConfigError
from config.schema import Config
from runtime.console import si
from training.model import make_model

PARTS = {  # patterns of module names; a convolution includes its activation and norm
    "patch embedding": r"patch_emb",
    "depthwise": r"depth_wise_conv|act1|norm1",
    "pointwise": r"point_wise_conv|act2|norm2",
    "head": r"classification",
}


@dataclass
class Part:
    """A part of the model, all layers together.

    Attributes:
        macs: Multiply-accumulates of one image's forward pass, in convolutions and the classifier.
        activation_bytes: Memory that training keeps for one image in fp32 until its backward pass.
    """

    name: str
    parameters: int = 0
    macs: int = 0
    activation_bytes: int = 0


def check_memory(config: Config, channels: int, image_size: tuple[int, int], images: int) -> None:
    """Check that a batch fits into this machine's memory, before anything of its size is allocated.

    The estimate is too low: pixels in 8 and 32 bits, and the first activation in 16.

    Args:
        images: Number of images on one device at once.

    Raises:
        ConfigError: The batch is too large.
    """
    pixels = math.prod(image_size)
    activations = config.model.d_model * pixels // config.model.patch_size**2
    needed = images * (5 * channels * pixels + 2 * activations)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise ConfigError(
            f"data.image_size={max(image_size)}: a batch of {images:,} takes more than {si(needed)}B, and this "
            f"machine has {si(memory)}B. Fix: a smaller data.image_size, data.batch_size or model.d_model"
        )


def summarize(config: Config, channels: int, n_classes: int, image_size: tuple[int, int]) -> list[Part]:
    """Count each part, in the order of PARTS, and the total, by running the model on PyTorch's "meta" device.

    Multiply-accumulates are those of the model's equations. A backend may compute more to be faster.
    """
    trainer = replace(config.trainer, checkpoint_activations=False)
    plain = replace(config, model=replace(config.model, backend="reference"), trainer=trainer)
    parts = {name: Part(name) for name in PARTS}
    images = 2 if image_size == (config.model.patch_size,) * 2 else 1  # BatchNorm needs two values
    kept: dict[int, UntypedStorage] = {}  # keeps storages alive, so that no later one reuses an address

    def part_of(path: str) -> Part:
        return parts[next((name for name, pattern in PARTS.items() if re.search(pattern, path)), "depthwise")]

    def count(tensor: Tensor) -> None:  # returns no tensor: the graph would refer to itself, and never be freed
        storage = tensor.untyped_storage()
        if storage._cdata not in kept:
            kept[storage._cdata] = storage
            innermost = max(counter.mod_tracker.parents, key=len)
            part_of(innermost).activation_bytes += tensor.numel() * tensor.itemsize // images

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = make_model(plain, channels, n_classes).train()
        storages = [parameter.untyped_storage() for parameter in model.parameters()]
        kept |= {storage._cdata: storage for storage in storages}
        with saved_tensors_hooks(count, lambda nothing: nothing):
            model(torch.empty(images, channels, *image_size))
    for path, parameter in model.named_parameters():
        part_of(path).parameters += parameter.numel()
    leaves = {f"{type(model).__name__}.{path}" for path, module in model.named_modules() if not list(module.children())}
    for path, counts in counter.get_flop_counts().items():
        if path in leaves:
            part_of(path).macs += sum(counts.values()) // 2 // images
    total = Part("total")
    for part in parts.values():
        total.parameters += part.parameters
        total.macs += part.macs
        total.activation_bytes += part.activation_bytes
    return [*parts.values(), total]


def as_lines(parts: list[Part]) -> list[str]:
    """Format a line for each part, in columns."""
    return [
        f"{part.name:<15} {part.parameters:>11,} parameters {part.macs / 1e6:>10,.2f} M MACs "
        f"{part.activation_bytes / 2**20:>9,.2f} MiB activations"
        for part in parts
    ]
