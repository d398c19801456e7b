"""RandAugment of a batch, timm's and torchvision's.

An operation is drawn for every image. Operations are of three kinds: a table of grey levels, a blend with a degenerate
image, an affine map. The batch passes through all three, and only the drawn one changes an image.
"""

import math

import timm.data.auto_augment
import torch
from torch import Tensor
from torchvision import transforms

from pipeline.gpu_transforms.color import apply_lut, blend
from pipeline.gpu_transforms.geometry import NEAREST, affine, interpolations
from pipeline.gpu_transforms.values import Draw, constant, random_integers

# The argument of an operation at a level of 0 … 1 is offset ± slope · level, clamped to low … high. If `whole`, the
# product is truncated to a whole number. Source: the level functions in timm/data/auto_augment.py.
ANY = (-math.inf, math.inf)
TIMM_LEVELS: dict[str, tuple[float, float, bool, bool, float, float]] = {
    # offset, slope, signed, whole, low, high
    "AutoContrast": (0, 0, False, False, *ANY),
    "Equalize": (0, 0, False, False, *ANY),
    "Invert": (0, 0, False, False, *ANY),
    "Rotate": (0, 30, True, False, *ANY),  # degrees
    "Posterize": (0, 4, False, True, *ANY),  # bits to keep
    "PosterizeIncreasing": (4, -4, False, True, *ANY),
    "Solarize": (0, 256, False, True, 0, 256),  # lowest level to invert
    "SolarizeIncreasing": (256, -256, False, True, 0, 256),
    "SolarizeAdd": (0, 110, False, True, 0, 128),
    "Color": (0.1, 1.8, False, False, *ANY),  # 1 changes nothing
    "Contrast": (0.1, 1.8, False, False, *ANY),
    "Brightness": (0.1, 1.8, False, False, *ANY),
    "Sharpness": (0.1, 1.8, False, False, *ANY),
    "ColorIncreasing": (1, 0.9, True, False, 0.1, math.inf),
    "ContrastIncreasing": (1, 0.9, True, False, 0.1, math.inf),
    "BrightnessIncreasing": (1, 0.9, True, False, 0.1, math.inf),
    "SharpnessIncreasing": (1, 0.9, True, False, 0.1, math.inf),
    "ShearX": (0, 0.3, True, False, *ANY),
    "ShearY": (0, 0.3, True, False, *ANY),
    "TranslateXRel": (0, 0.45, True, False, *ANY),  # share of the side
    "TranslateYRel": (0, 0.45, True, False, *ANY),
}


def rand_augment(step: timm.data.auto_augment.RandAugment, images: Tensor, draw: Draw) -> Tensor:
    """Apply timm's RandAugment: in every layer each image draws one operation, applied with probability `prob`."""
    names = [op.name for op in step.ops]
    options = step.ops[0]  # All operations have the same options.
    for _ in range(step.num_layers):
        chosen, happens, noise, sign, interpolation = draw(5)
        which = random_integers(chosen, len(names)).long()
        level = random_level(options.magnitude, options.magnitude_std, options.magnitude_max or 10, noise)
        argument = timm_argument(names, which, level, sign)
        which = torch.where(happens < options.prob, which, -1)
        kind = interpolations(options.kwargs["resample"], interpolation)
        images = operate(images, names, which, argument, kind, options.kwargs["fillcolor"], options.prob)
    return images


def random_level(magnitude: float, std: float, highest: float, noise: Tensor) -> Tensor:
    """Draw the level of every image, 0 … 1 for timm's magnitudes 0 … 10, [batch]; `noise` is uniform."""
    if std == math.inf:
        drawn = magnitude * noise
    else:
        normal = math.sqrt(2) * torch.erfinv(2 * noise - 1)
        drawn = magnitude + std * normal if std else torch.full_like(noise, magnitude)
    return drawn.clamp(0, highest) / 10


def timm_argument(names: list[str], which: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Compute the argument of each image's operation, [batch]; negated where `sign` is above one half."""
    table = constant(tuple(TIMM_LEVELS[name] for name in names), level.device)
    offset, slope, signed, is_whole, low, high = table[which].unbind(1)
    amount = slope * level
    amount = torch.where(is_whole > 0, amount.trunc(), amount)
    return (offset + torch.where((signed > 0) & (sign > 0.5), -amount, amount)).clamp(low, high)


def torchvision_rand_augment(step: transforms.RandAugment, images: Tensor, draw: Draw) -> Tensor:
    """Apply torchvision's RandAugment: every operation is applied, with one magnitude.

    Source: torchvision.transforms.RandAugment.
    """
    height, width = images.shape[-2:]
    share = step.magnitude / (step.num_magnitude_bins - 1)
    operations: dict[str, tuple[float, float, bool]] = {
        # offset, amount, signed
        "Identity": (0, 0, False),
        "ShearX": (0, 0.3 * share, True),
        "ShearY": (0, 0.3 * share, True),
        "TranslateXRel": (0, -int(150 / 331 * width * share) / width, True),
        "TranslateYRel": (0, -int(150 / 331 * height * share) / height, True),
        "Rotate": (0, 30 * share, True),
        "Brightness": (1, 0.9 * share, True),
        "Color": (1, 0.9 * share, True),
        "Contrast": (1, 0.9 * share, True),
        "Sharpness": (1, 0.9 * share, True),
        "Posterize": (8 - round(4 * share), 0, False),
        "Solarize": (255 * (1 - share), 0, False),
        "AutoContrast": (0, 0, False),
        "Equalize": (0, 0, False),
    }
    table = constant(tuple(operations.values()), images.device)
    fill = (0,) * images.shape[1]
    for _ in range(step.num_ops):
        chosen, sign = draw(2)
        which = random_integers(chosen, len(operations)).long()
        offset, amount, signed = table[which].unbind(1)
        argument = offset + torch.where((signed > 0) & (sign < 0.5), -amount, amount)
        kind = torch.full_like(which, NEAREST)
        images = operate(images, list(operations), which, argument, kind, fill, prob=1)
    return images


def operate(
    images: Tensor, names: list[str], which: Tensor, argument: Tensor, kind: Tensor, fill: tuple[int, ...], prob: float
) -> Tensor:
    """Apply one operation to every image.

    Args:
        images: uint8 [batch, channels, height, width].
        names: Operations by timm's names; unknown names change nothing.
        which: Index into `names`, [batch]; -1 for none.
        argument: The argument of timm's operation, [batch].
        kind: NEAREST, BILINEAR or BICUBIC, [batch].
        fill: The level of each channel for pixels from outside the image.
        prob: Probability that an image has an operation.
    """
    every = torch.arange(len(names), device=which.device)
    masks = (which == every[:, None]).unbind()
    drawn = {name.removesuffix("Increasing"): mask for name, mask in zip(names, masks, strict=True)}
    images = apply_lut(images, drawn, argument)
    images = blend(images, drawn, argument)
    return affine(images, drawn, argument, kind, fill, prob)
