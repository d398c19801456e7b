"""Crops, flips, shifts and affine maps of a batch."""

import math
from typing import Any

import torch
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms

from pipeline.gpu_transforms.values import Draw, constant, per_pixel, random_integers, to_levels, uniform_in

NEAREST, BILINEAR, BICUBIC = range(3)

# Crops and flips.


def random_resized_crop(step: RandomResizedCropAndInterpolation, images: Tensor, draw: Draw) -> Tensor:
    """Crop a random box of each image, and resize it to the step's size."""
    top, left, height, width = crop_boxes((images.shape[-2], images.shape[-1]), step.scale, step.ratio, draw)
    (uniform,) = draw(1)
    return resized_crop(images, top, left, height, width, step.size, interpolations(step.interpolation, uniform))


def crop_boxes(size: tuple[int, int], scale: Any, ratio: Any, draw: Draw) -> tuple[Tensor, ...]:
    """Draw top, left, height and width, each [batch]: the first of ten attempts that fits, else the middle.

    Source: timm.data.transforms.RandomResizedCropAndInterpolation.get_params.
    """
    height, width = size
    attempts = 10
    area = uniform_in(scale, draw(attempts)) * (height * width)
    aspect = uniform_in((math.log(ratio[0]), math.log(ratio[1])), draw(attempts)).exp()
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (widths <= width) & (heights <= height)
    first = fits.byte().argmax(0, keepdim=True)
    has_fit = fits.any(0)
    middle_width = min(width, round(height * max(ratio)))
    middle_height = min(height, round(width / min(ratio)))
    crop_width = torch.where(has_fit, widths.gather(0, first)[0], middle_width)
    crop_height = torch.where(has_fit, heights.gather(0, first)[0], middle_height)
    down, across = draw(2)
    top = torch.where(has_fit, random_integers(down, height - crop_height + 1), (height - middle_height) // 2)
    left = torch.where(has_fit, random_integers(across, width - crop_width + 1), (width - middle_width) // 2)
    return top, left, crop_height, crop_width


def interpolations(choice: Any, uniform: Tensor) -> Tensor:
    """Choose NEAREST, BILINEAR or BICUBIC for every image, from one or several names of Pillow or torchvision."""
    options = choice if isinstance(choice, (tuple, list)) else (choice,)
    codes = constant(tuple(("NEAREST", "BILINEAR", "BICUBIC").index(option.name) for option in options), uniform.device)
    return codes[random_integers(uniform, len(options)).long()].long()


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: tuple[int, int], kind: Tensor
) -> Tensor:
    """Resize a box of each image as Pillow does: a matrix product for the rows, then one for the columns.

    Args:
        images: uint8 [batch, channels, height, width].
        top, left, height, width: The boxes in pixels, each [batch].
        size: Height and width of the result in pixels.
        kind: BILINEAR or BICUBIC, [batch].
    """
    across = resize_weights(left, width, images.shape[-1], size[1], kind)[:, None]
    down = resize_weights(top, height, images.shape[-2], size[0], kind)[:, None]
    rows = (images.float() @ across.mT + 0.5).floor().clamp(0, 255)
    return to_levels(down @ rows + 0.5)


def resize_weights(start: Tensor, length: Tensor, before: int, after: int, kind: Tensor) -> Tensor:
    """Compute the weight of each pixel of a line for each pixel of the resized line: [batch, after, before].

    If lines become shorter, the filter is stretched until every pixel contributes.
    """
    start, length, kind = start[:, None, None], length[:, None, None], kind[:, None, None]
    pixels = torch.arange(before, device=start.device) + 0.5
    resized = torch.arange(after, device=start.device)[:, None] + 0.5
    scale = length / after
    distance = ((pixels - start - resized * scale) / scale.clamp(min=1)).abs()
    weights = torch.where(kind == BICUBIC, cubic(distance), (1 - distance).clamp(min=0))
    weights = weights * ((pixels > start) & (pixels < start + length))
    return weights / weights.sum(-1, keepdim=True)


def cubic(distance: Tensor) -> Tensor:
    """Evaluate Keys' cubic convolution with a = -1/2, as Pillow resizes; its affine maps use -1."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def random_shift(step: transforms.RandomCrop, images: Tensor, draw: Draw) -> Tensor:
    """Pad with black, then crop at random to the original size."""
    across, down = step.padding
    height, width = step.size
    padded = torch.nn.functional.pad(images, (across, across, down, down))
    uniforms = draw(2)
    rows = random_integers(uniforms[0], 2 * down + 1).long()[:, None] + torch.arange(height, device=images.device)
    columns = random_integers(uniforms[1], 2 * across + 1).long()[:, None] + torch.arange(width, device=images.device)
    padded = padded.gather(2, rows[:, None, :, None].expand(-1, padded.shape[1], -1, padded.shape[3]))
    return padded.gather(3, columns[:, None, None].expand(-1, padded.shape[1], height, -1))


def random_hflip(step: transforms.RandomHorizontalFlip, images: Tensor, draw: Draw) -> Tensor:
    """Mirror images horizontally with the step's probability."""
    return torch.where(per_pixel(draw(1)[0] < step.p), images.flip(-1), images)


def random_vflip(step: transforms.RandomVerticalFlip, images: Tensor, draw: Draw) -> Tensor:
    """Mirror images vertically with the step's probability."""
    return torch.where(per_pixel(draw(1)[0] < step.p), images.flip(-2), images)


# Affine maps: RandAugment's operations that move pixels.

MOVES = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def affine(
    images: Tensor, drawn: dict[str, Tensor], argument: Tensor, kind: Tensor, fill: tuple[int, ...], prob: float
) -> Tensor:
    """Apply an affine map to each image that has drawn one.

    This is the slowest operation, and a sixth of the images need it. Reading their exact number would wait for the
    device, so there is room for eight standard deviations above the mean. Further images, in one of 10¹⁴ batches, are
    not moved.
    """
    batch, _, height, width = images.shape
    names = [name for name in MOVES if name in drawn]
    if not names:
        return images
    share = prob * len(names) / len(drawn)
    room = min(batch, math.ceil(batch * share + 8 * math.sqrt(batch * share * (1 - share)) + 8))
    moves = torch.stack([drawn.get(name, torch.zeros_like(argument, dtype=torch.bool)) for name in MOVES])
    some = moves.any(0).byte().argsort(descending=True, stable=True)[:room]
    angle, shear_x, shear_y, shift_x, shift_y = moves[:, some] * argument[some]
    cos, sin = torch.deg2rad(angle).cos(), torch.deg2rad(angle).sin()
    from_x = (cos, shear_x - sin, shift_x * width + (width - cos * width + sin * height) / 2)
    from_y = (shear_y + sin, cos, shift_y * height + (height - sin * width - cos * height) / 2)
    return images.index_copy(0, some, resample(images[some], from_x, from_y, kind[some], fill))


# Interpolation weights of the four nearest pixels of a line for a position between the second and the third, as
# polynomials of the distance from the second: [kind, neighbor, power]. Pillow's bicubic is Keys' with a = -1.
LINEAR = ((0, 0, 0, 0), (1, -1, 0, 0), (0, 1, 0, 0), (0, 0, 0, 0))
CUBIC = ((0, -1, 2, -1), (1, 0, -2, 1), (0, 1, 1, -1), (0, 0, -1, 1))
CONTRIBUTIONS = (LINEAR, LINEAR, CUBIC)


def resample(
    images: Tensor, from_x: tuple[Tensor, ...], from_y: tuple[Tensor, ...], kind: Tensor, fill: tuple[int, ...]
) -> Tensor:
    """Resample each image with its affine map, as Pillow's `transform` does.

    Args:
        images: uint8 [batch, channels, height, width].
        from_x: (a, b, c), each [batch]; the source's x of the pixel at x, y is a·x + b·y + c.
        from_y: (a, b, c), each [batch]; likewise the source's y.
        kind: NEAREST, BILINEAR or BICUBIC, [batch].
        fill: The level of each channel for sources outside the image.
    """
    batch, channels, height, width = images.shape
    device = images.device
    x = torch.arange(width, device=device).repeat(height)
    y = torch.arange(height, device=device).repeat_interleave(width)
    a, b, c = (torch.stack(pair, 1) for pair in zip(from_x, from_y, strict=True))
    factors = torch.stack((a, b, c + (a + b) / 2))[..., None]  # for the centers of pixels
    sixteen_bits = (factors * 2**16 + 0.5).floor() / 2**16  # Pillow's fixed-point numbers for NEAREST
    a, b, c = torch.where((kind == NEAREST)[:, None, None], sixteen_bits, factors)
    source = a * x + b * y + c  # [batch, 2, pixels]
    size = constant((float(width), float(height)), device)[:, None]
    inside = ((source >= 0) & (source < size)).all(1)
    second = (source - 0.5).floor()
    place = source - 0.5 - second
    place = torch.where((kind == NEAREST)[:, None, None], (place >= 0.5).float(), place)[:, :, None]

    neighbors = second[:, :, None] + constant((-1.0, 0.0, 1.0, 2.0), device)[:, None]
    columns, rows = neighbors.clamp(min=0).minimum(size[:, None] - 1).long().unbind(1)
    index = (rows[:, :, None] * width + columns[:, None]).view(batch, 1, -1)
    values = images.flatten(2).gather(2, index.expand(-1, channels, -1)).view(batch, channels, 4, 4, -1).float()
    zeroth, first, square, cube = constant(CONTRIBUTIONS, device)[kind][:, None, ..., None].unbind(3)
    across, down = (zeroth + place * (first + place * (square + place * cube))).unbind(1)
    resampled = ((values * across[:, None, None]).sum(3) * down[:, None]).sum(2)
    # Pillow truncates; rounding errors may make a whole number slightly too small here.
    resampled = torch.where(inside[:, None], resampled + 3e-4, constant(tuple(map(float, fill)), device)[:, None])
    return to_levels(resampled).view(images.shape)
