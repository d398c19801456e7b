"""Augmentation of whole batches on the device, with different random operations for each image.

`BatchTransform` converts the CPU's transform (pipeline/transforms.py) to batches, uint8 [batch, channels, height,
width]. Its operations have the probabilities and the arithmetic of timm, torchvision and Pillow. After every step
levels are whole numbers, rounded where Pillow rounds and truncated where Pillow truncates. tests/test_gpu_chance.py
compares the two.

No function of this package waits for the device or loops over images.
"""

from collections.abc import Callable
from typing import Any

import timm.data.auto_augment
import torch
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms

from config.errors import ConfigError
from pipeline.gpu_transforms.color import color_jitter
from pipeline.gpu_transforms.geometry import random_hflip, random_resized_crop, random_shift, random_vflip
from pipeline.gpu_transforms.rand_augment import TIMM_LEVELS, rand_augment, torchvision_rand_augment
from pipeline.gpu_transforms.values import Draw

STEPS: dict[type, Callable[[Any, Tensor, Draw], Tensor]] = {
    RandomResizedCropAndInterpolation: random_resized_crop,
    transforms.RandomCrop: random_shift,
    transforms.RandomHorizontalFlip: random_hflip,
    transforms.RandomVerticalFlip: random_vflip,
    timm.data.auto_augment.RandAugment: rand_augment,
    transforms.RandAugment: torchvision_rand_augment,
    transforms.ColorJitter: color_jitter,
}


class BatchTransform:
    """A transform of one image, converted to batches.

    Attributes:
        numbers: Random numbers used for an image.

    Args:
        shape: Shape of an image, (channels, height, width).

    Raises:
        ConfigError: The transform has a step or an operation that this package does not have.
    """

    def __init__(self, transform: transforms.Compose, shape: tuple[int, ...], device: torch.device) -> None:
        self.steps = transform.transforms
        for step in self.steps:
            if type(step) not in STEPS:
                raise ConfigError(f"data.pipeline=device: has no {type(step).__name__}; expected data.pipeline=cpu")
            if isinstance(step, timm.data.auto_augment.RandAugment):
                missing = sorted({op.name for op in step.ops} - set(TIMM_LEVELS))
                if missing or step.choice_weights is not None:
                    raise ConfigError(
                        f"data.pipeline=device: has no {', '.join(missing) or 'weighted choice of operations'}; "
                        "expected augmentation.auto_augment without -t…, or data.pipeline=cpu"
                    )
        self.numbers = 0

        def count(n: int) -> Tensor:
            self.numbers += n
            return torch.zeros(n, 1, device=device)

        self.apply(torch.zeros(1, *shape, dtype=torch.uint8, device=device), count)  # This also caches the constants.

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Augment a batch.

        Args:
            images: uint8 [batch, channels, height, width].
            uniforms: Random numbers in 0 … 1, [numbers, batch].
        """
        used = 0

        def draw(n: int) -> Tensor:
            nonlocal used
            used += n
            return uniforms[used - n : used]

        return self.apply(images, draw)

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Apply all steps, with random numbers from `draw`."""
        for step in self.steps:
            images = STEPS[type(step)](step, images, draw)
        return images


def exact_division() -> dict[str, Any]:
    """Set Inductor's option to round a division as eager PyTorch does; Triton's division is approximate."""
    names = {"eager_numerics.division_rounding", "emulate_divison_rounding"}  # in newer and older versions of PyTorch
    return dict.fromkeys(names & set(torch._inductor.list_options()), True)
