"""Augmentation of whole batches on the device, every image with random operations of its own.

What happens is said once, by the CPU path: `BatchTransform` takes its transform (src/augmentation.py) and does to
uint8 [batch, channels, height, width] what timm, torchvision and Pillow do to one image after the other, with
their probabilities and in their arithmetic: whole grey levels after every step, rounded where Pillow rounds and
cut off where it cuts off. tests/test_device_augmentation.py compares the two.

Nothing in here waits for the device or loops over images. RandAugment draws an operation for every image, and
each operation is one of three kinds: a table of grey levels, a blend with a degenerate image, an affine map. So
the batch goes through all three, and the two that an image has not drawn leave it as it is.
"""

import math
from collections.abc import Callable
from typing import Any

import timm.data.auto_augment
import torch
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms

from config.errors import ConfigError

Draw = Callable[[int], Tensor]  # draw(n): [n, batch], uniform in 0 … 1

NEAREST, BILINEAR, BICUBIC = range(3)


class BatchTransform:
    """The same transform for batches of images of one shape.

    Attributes:
        numbers: how many random numbers it takes for an image.

    Raises:
        ConfigError: the transform has a step or an operation that is missing here.
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

        self.apply(torch.zeros(1, *shape, dtype=torch.uint8, device=device), count)  # makes the constants, too

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """
        Args:
            images: uint8 [batch, channels, height, width].
            uniforms: random numbers in 0 … 1, [numbers, batch].
        """
        taken = 0

        def draw(n: int) -> Tensor:
            nonlocal taken
            taken += n
            return uniforms[taken - n : taken]

        return self.apply(images, draw)

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        for step in self.steps:
            images = STEPS[type(step)](step, images, draw)
        return images


CONSTANTS: dict[tuple[tuple[Any, ...], torch.device], Tensor] = {}


def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Numbers as floats on the device; kept, for a copy from the host waits for what is going on there."""
    if (values, device) not in CONSTANTS:
        CONSTANTS[values, device] = torch.tensor(values, dtype=torch.float32, device=device)
    return CONSTANTS[values, device]


def whole(uniform: Tensor, count: Tensor | int) -> Tensor:
    """Whole numbers 0 … count - 1, each as likely, as floats."""
    return (uniform * count).floor().clamp(max=count - 1)


def per_pixel(values: Tensor) -> Tensor:
    """From [batch] to [batch, 1, 1, 1]."""
    return values[:, None, None, None]


def to_levels(values: Tensor) -> Tensor:
    """Whole grey levels, cut off as in C."""
    return values.clamp(0, 255).to(torch.uint8)


# Crops and flips.


def random_resized_crop(step: RandomResizedCropAndInterpolation, images: Tensor, draw: Draw) -> Tensor:
    top, left, height, width = crop_boxes((images.shape[-2], images.shape[-1]), step.scale, step.ratio, draw)
    (uniform,) = draw(1)
    return resized_crop(images, top, left, height, width, step.size, interpolations(step.interpolation, uniform))


def crop_boxes(size: tuple[int, int], scale: Any, ratio: Any, draw: Draw) -> tuple[Tensor, ...]:
    """Top, left, height and width, each [batch]: the first of ten attempts that fits, else the middle.

    Source: timm.data.transforms.RandomResizedCropAndInterpolation.get_params.
    """
    height, width = size
    attempts = 10
    area = uniform_in(scale, draw(attempts)) * (height * width)
    aspect = uniform_in((math.log(ratio[0]), math.log(ratio[1])), draw(attempts)).exp()
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (widths <= width) & (heights <= height)
    first = fits.byte().argmax(0, keepdim=True)
    found = fits.any(0)
    middle_width = min(width, round(height * max(ratio)))
    middle_height = min(height, round(width / min(ratio)))
    crop_width = torch.where(found, widths.gather(0, first)[0], middle_width)
    crop_height = torch.where(found, heights.gather(0, first)[0], middle_height)
    down, across = draw(2)
    top = torch.where(found, whole(down, height - crop_height + 1), (height - middle_height) // 2)
    left = torch.where(found, whole(across, width - crop_width + 1), (width - middle_width) // 2)
    return top, left, crop_height, crop_width


def uniform_in(limits: Any, uniform: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * uniform


def interpolations(choice: Any, uniform: Tensor) -> Tensor:
    """NEAREST, BILINEAR or BICUBIC for every image, from Pillow's or torchvision's name or several of them."""
    options = choice if isinstance(choice, (tuple, list)) else (choice,)
    codes = constant(tuple(("NEAREST", "BILINEAR", "BICUBIC").index(option.name) for option in options), uniform.device)
    return codes[whole(uniform, len(options)).long()].long()


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: tuple[int, int], kind: Tensor
) -> Tensor:
    """Pillow's `resize` of each image's own box: a matrix product for the rows, then one for the columns.

    Args:
        images: uint8 [batch, channels, height, width].
        top, left, height, width: of the boxes, in pixels, [batch].
        size: height and width of the result.
        kind: BILINEAR or BICUBIC, [batch].
    """
    across = resize_weights(left, width, images.shape[-1], size[1], kind)[:, None]
    down = resize_weights(top, height, images.shape[-2], size[0], kind)[:, None]
    rows = (images.float() @ across.mT + 0.5).floor().clamp(0, 255)
    return to_levels(down @ rows + 0.5)


def resize_weights(start: Tensor, length: Tensor, before: int, after: int, kind: Tensor) -> Tensor:
    """What each pixel of a line contributes to each of the resized line: [batch, after, before].

    Where lines get shorter the filter is stretched, so that every pixel contributes.
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
    """Keys' cubic convolution with a = -1/2, which Pillow resizes with; its affine maps take -1."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def random_shift(step: transforms.RandomCrop, images: Tensor, draw: Draw) -> Tensor:
    """Padded with black, then cropped back."""
    across, down = step.padding
    height, width = step.size
    padded = torch.nn.functional.pad(images, (across, across, down, down))
    uniforms = draw(2)
    rows = whole(uniforms[0], 2 * down + 1).long()[:, None] + torch.arange(height, device=images.device)
    columns = whole(uniforms[1], 2 * across + 1).long()[:, None] + torch.arange(width, device=images.device)
    padded = padded.gather(2, rows[:, None, :, None].expand(-1, padded.shape[1], -1, padded.shape[3]))
    return padded.gather(3, columns[:, None, None].expand(-1, padded.shape[1], height, -1))


def random_hflip(step: transforms.RandomHorizontalFlip, images: Tensor, draw: Draw) -> Tensor:
    return torch.where(per_pixel(draw(1)[0] < step.p), images.flip(-1), images)


def random_vflip(step: transforms.RandomVerticalFlip, images: Tensor, draw: Draw) -> Tensor:
    return torch.where(per_pixel(draw(1)[0] < step.p), images.flip(-2), images)


# RandAugment.

# The argument of an operation at a level of 0 … 1: offset ± slope · level, the product cut off to a whole number
# where `whole`, the result within low and high. Source: the level functions in timm/data/auto_augment.py.
ANY = (-math.inf, math.inf)
TIMM_LEVELS: dict[str, tuple[float, float, bool, bool, float, float]] = {
    # offset, slope, signed, whole, low, high
    "AutoContrast": (0, 0, False, False, *ANY),
    "Equalize": (0, 0, False, False, *ANY),
    "Invert": (0, 0, False, False, *ANY),
    "Rotate": (0, 30, True, False, *ANY),  # degrees
    "Posterize": (0, 4, False, True, *ANY),  # bits that are kept
    "PosterizeIncreasing": (4, -4, False, True, *ANY),
    "Solarize": (0, 256, False, True, 0, 256),  # levels from here on are inverted
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
    """timm's RandAugment: in every layer each image draws one operation, which happens with probability `prob`."""
    names = [op.name for op in step.ops]
    options = step.ops[0]  # all operations have the same
    for _ in range(step.num_layers):
        chosen, happens, noise, sign, interpolation = draw(5)
        which = whole(chosen, len(names)).long()
        level = random_level(options.magnitude, options.magnitude_std, options.magnitude_max or 10, noise)
        argument = timm_argument(names, which, level, sign)
        which = torch.where(happens < options.prob, which, -1)
        kind = interpolations(options.kwargs["resample"], interpolation)
        images = operate(images, names, which, argument, kind, options.kwargs["fillcolor"], options.prob)
    return images


def random_level(magnitude: float, std: float, highest: float, noise: Tensor) -> Tensor:
    """The level of every image, 0 … 1 for timm's magnitudes 0 … 10, [batch]; `noise` is uniform."""
    if std == math.inf:
        drawn = magnitude * noise
    else:
        normal = math.sqrt(2) * torch.erfinv(2 * noise - 1)
        drawn = magnitude + std * normal if std else torch.full_like(noise, magnitude)
    return drawn.clamp(0, highest) / 10


def timm_argument(names: list[str], which: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """The argument of each image's operation, [batch]; negated where `sign` is above one half."""
    table = constant(tuple(TIMM_LEVELS[name] for name in names), level.device)
    offset, slope, signed, is_whole, low, high = table[which].unbind(1)
    amount = slope * level
    amount = torch.where(is_whole > 0, amount.trunc(), amount)
    return (offset + torch.where((signed > 0) & (sign > 0.5), -amount, amount)).clamp(low, high)


def torchvision_rand_augment(step: transforms.RandAugment, images: Tensor, draw: Draw) -> Tensor:
    """torchvision's: every operation happens, with one magnitude. Source: torchvision.transforms.RandAugment."""
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
        which = whole(chosen, len(operations)).long()
        offset, amount, signed = table[which].unbind(1)
        argument = offset + torch.where((signed > 0) & (sign < 0.5), -amount, amount)
        kind = torch.full_like(which, NEAREST)
        images = operate(images, list(operations), which, argument, kind, fill, prob=1)
    return images


def operate(
    images: Tensor,
    names: list[str],
    which: Tensor,
    argument: Tensor,
    kind: Tensor,
    fill: tuple[int, ...],
    prob: float,
) -> Tensor:
    """One operation on every image.

    Args:
        images: uint8 [batch, channels, height, width].
        names: operations by timm's names; one that is not known changes nothing.
        which: index into `names`, [batch]; -1 for none.
        argument: what timm's operation is given, [batch].
        kind: NEAREST, BILINEAR or BICUBIC, [batch].
        fill: what comes in from beyond the edges, for each channel.
        prob: how likely an image's operation is not "none".
    """
    every = torch.arange(len(names), device=which.device)
    masks = (which == every[:, None]).unbind()
    drawn = {name.removesuffix("Increasing"): mask for name, mask in zip(names, masks, strict=True)}
    images = look_up(images, drawn, argument)
    images = enhance(images, drawn, argument)
    return move(images, drawn, argument, kind, fill, prob)


# Operations that give every grey level another one. Each takes the pixels, [batch, channels, pixels], and its
# argument, [batch, 1, 1], and makes tables that broadcast to [batch, channels, 256].


def look_up(images: Tensor, drawn: dict[str, Tensor], argument: Tensor) -> Tensor:
    pixels = images.flatten(2)
    table = grey_levels(images.device).expand(*images.shape[:2], -1)
    for name, make_table in TABLES.items():
        if name in drawn:
            made = make_table(pixels, argument[:, None, None])
            table = torch.where(drawn[name][:, None, None], made, table)
    return to_levels(table).gather(2, pixels.long()).view(images.shape)


def grey_levels(device: torch.device) -> Tensor:
    return torch.arange(256.0, device=device)


def invert(pixels: Tensor, _: Tensor) -> Tensor:
    return 255 - grey_levels(pixels.device)


def posterize(pixels: Tensor, bits: Tensor) -> Tensor:
    step = torch.exp2(8 - bits.clamp(max=8)).round()
    return (grey_levels(pixels.device) / step).floor() * step


def solarize(pixels: Tensor, threshold: Tensor) -> Tensor:
    levels = grey_levels(pixels.device)
    return torch.where(levels < threshold, levels, 255 - levels)


def solarize_add(pixels: Tensor, added: Tensor) -> Tensor:
    levels = grey_levels(pixels.device)
    return torch.where(levels < 128, levels + added, levels).clamp(max=255)


def auto_contrast(pixels: Tensor, _: Tensor) -> Tensor:
    levels = grey_levels(pixels.device)
    darkest, brightest = pixels.float().aminmax(dim=2, keepdim=True)  # amin of bytes is wrong where compiled (2.14)
    stretched = (255 * (levels - darkest) / (brightest - darkest)).floor()
    return torch.where(brightest > darkest, stretched, levels)


def equalize(pixels: Tensor, _: Tensor) -> Tensor:
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int64, device=pixels.device)
    counts.scatter_add_(2, pixels.long(), torch.ones_like(counts[..., :1]).expand(pixels.shape))
    brightest = pixels.float().amax(2, keepdim=True).long()
    step = (pixels.shape[2] - counts.gather(2, brightest)) // 255  # 0: too few pixels to spread
    below = counts.cumsum(2) - counts
    spread = (below + step // 2) // step.clamp(min=1)
    return torch.where(step > 0, spread.float(), grey_levels(pixels.device))


TABLES = {
    "Invert": invert,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
}

# Operations that blend with an image that lacks something: factor 0 gives that one, 1 the image as it is.


def enhance(images: Tensor, drawn: dict[str, Tensor], factor: Tensor) -> Tensor:
    levels = images.float()
    luma = grey(levels)
    degenerate = levels
    for name, degenerated in DEGENERATES.items():
        if name in drawn:
            degenerate = torch.where(per_pixel(drawn[name]), degenerated(levels, luma), degenerate)
    return to_levels(degenerate + per_pixel(factor) * (levels - degenerate))


def grey(images: Tensor) -> Tensor:
    """ITU-R 601-2 luma, [batch, 1, height, width], in Pillow's 16 bits: floats hold these whole numbers exactly."""
    if images.shape[1] == 1:
        return images
    red_green_blue = constant((19595, 38470, 7471), images.device)[:, None, None]
    return (((images * red_green_blue).sum(1, keepdim=True) + 2**15) / 2**16).floor()


def black(_: Tensor, luma: Tensor) -> Tensor:
    return torch.zeros_like(luma)


def without_color(_: Tensor, luma: Tensor) -> Tensor:
    return luma


def without_contrast(_: Tensor, luma: Tensor) -> Tensor:
    pixels = luma.shape[2] * luma.shape[3]
    total = luma.sum((1, 2, 3), keepdim=True, dtype=torch.int64)
    return ((2 * total + pixels) // (2 * pixels)).float()


def smooth(images: Tensor, _: Tensor) -> Tensor:
    """Each pixel but those on the edge as the mean of its 3 x 3 neighborhood, in which it counts five times."""
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    inner = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * images[:, :, 1:-1, 1:-1]
    smoothed = images.clone()
    smoothed[:, :, 1:-1, 1:-1] = (inner / 13 + 0.5).floor()
    return smoothed


DEGENERATES = {"Brightness": black, "Color": without_color, "Contrast": without_contrast, "Sharpness": smooth}


# Operations that move pixels.

MOVES = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def move(
    images: Tensor, drawn: dict[str, Tensor], argument: Tensor, kind: Tensor, fill: tuple[int, ...], prob: float
) -> Tensor:
    """Move the images that are to be moved.

    This takes longest, and a sixth of the images needs it. How many exactly is known to the device alone, so there
    is room for eight standard deviations more than expected; an image beyond that, in one of 10¹⁴ batches, stays.
    """
    batch, _, height, width = images.shape
    known = [name for name in MOVES if name in drawn]
    if not known:
        return images
    share = prob * len(known) / len(drawn)
    room = min(batch, math.ceil(batch * share + 8 * math.sqrt(batch * share * (1 - share)) + 8))
    moves = torch.stack([drawn.get(name, torch.zeros_like(argument, dtype=torch.bool)) for name in MOVES])
    some = moves.any(0).byte().argsort(descending=True, stable=True)[:room]
    angle, shear_x, shear_y, shift_x, shift_y = moves[:, some] * argument[some]
    cos, sin = torch.deg2rad(angle).cos(), torch.deg2rad(angle).sin()
    from_x = (cos, shear_x - sin, shift_x * width + (width - cos * width + sin * height) / 2)
    from_y = (shear_y + sin, cos, shift_y * height + (height - sin * width - cos * height) / 2)
    return images.index_copy(0, some, affine(images[some], from_x, from_y, kind[some], fill))


# What the four nearest of a line contribute to a place between the second and the third, in powers of the
# distance from the second: [kind, neighbor, power]. Pillow's bicubic is Keys' with a = -1.
LINEAR = ((0, 0, 0, 0), (1, -1, 0, 0), (0, 1, 0, 0), (0, 0, 0, 0))
CUBIC = ((0, -1, 2, -1), (1, 0, -2, 1), (0, 1, 1, -1), (0, 0, -1, 1))
CONTRIBUTIONS = (LINEAR, LINEAR, CUBIC)


def affine(
    images: Tensor, from_x: tuple[Tensor, ...], from_y: tuple[Tensor, ...], kind: Tensor, fill: tuple[int, ...]
) -> Tensor:
    """Pillow's `transform` with an affine map of each image's own.

    Args:
        images: uint8 [batch, channels, height, width].
        from_x, from_y: (a, b, c), each [batch]: where the pixel at x, y comes from is a·x + b·y + c.
        kind: NEAREST, BILINEAR or BICUBIC, [batch].
        fill: for pixels that come from outside, for each channel.
    """
    batch, channels, height, width = images.shape
    device = images.device
    x = torch.arange(width, device=device).repeat(height)
    y = torch.arange(height, device=device).repeat_interleave(width)
    a, b, c = (torch.stack(pair, 1) for pair in zip(from_x, from_y, strict=True))
    factors = torch.stack((a, b, c + (a + b) / 2))[..., None]  # from pixels' centers
    sixteen_bits = (factors * 2**16 + 0.5).floor() / 2**16  # Pillow's, where it takes the nearest
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
    found = ((values * across[:, None, None]).sum(3) * down[:, None]).sum(2)
    # Pillow cuts off: what should be whole may be a little less here.
    found = torch.where(inside[:, None], found + 3e-4, constant(tuple(map(float, fill)), device)[:, None])
    return to_levels(found).view(images.shape)


# Color.


def color_jitter(step: transforms.ColorJitter, images: Tensor, draw: Draw) -> Tensor:
    """torchvision's: a factor for each property, in an order of each image's own."""
    limits = {"Brightness": step.brightness, "Contrast": step.contrast, "Color": step.saturation, "Hue": step.hue}
    limits = {name: pair for name, pair in limits.items() if pair}
    uniforms, order = draw(len(limits)), draw(len(limits)).argsort(0)
    factors = torch.stack([uniform_in(pair, uniform) for pair, uniform in zip(limits.values(), uniforms, strict=True)])
    for which in order:
        drawn = {name: which == i for i, name in enumerate(limits)}
        factor = factors.gather(0, which[None])[0]
        images = enhance(images, drawn, factor)
        if "Hue" in drawn and images.shape[1] == 3:
            images = torch.where(per_pixel(drawn["Hue"]), turn_hue(images, factor), images)
    return images


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """torchvision's `adjust_hue`: through Pillow's HSV in whole numbers; `turns` of the color wheel, [batch]."""
    red, green, blue = images.float().unbind(1)
    value, lowest = images.float().amax(1), images.float().amin(1)
    chroma = value - lowest
    span = chroma.clamp(min=1)
    to_red, to_green, to_blue = (value - red) / span, (value - green) / span, (value - blue) / span
    sixth = torch.where(
        red == value, to_blue - to_green, torch.where(green == value, 2 + to_red - to_blue, 4 + to_green - to_red)
    )
    hue = torch.where(chroma > 0, (torch.where(sixth < 0, sixth + 6, sixth) / 6 * 255).floor(), 0.0)
    saturation = (chroma / value.clamp(min=1) * 255).floor() / 255

    hue = (hue + (turns * 255).trunc()[:, None, None]) % 256 * 6 / 255
    part = hue.floor()
    down, up = ((value * (1 - saturation * share) + 0.5).floor() for share in (hue - part, 1 - (hue - part)))
    lowest = (value * (1 - saturation) + 0.5).floor()
    corners = [  # red, green, blue in the six parts of the color wheel
        (value, up, lowest),
        (down, value, lowest),
        (lowest, value, up),
        (lowest, down, value),
        (up, lowest, value),
        (value, lowest, down),
    ]
    turned = torch.stack(corners[0], 1)
    for i, corner in enumerate(corners[1:], start=1):
        turned = torch.where((part % 6 == i)[:, None], torch.stack(corner, 1), turned)
    return to_levels(turned)


STEPS: dict[type, Callable[[Any, Tensor, Draw], Tensor]] = {
    RandomResizedCropAndInterpolation: random_resized_crop,
    transforms.RandomCrop: random_shift,
    transforms.RandomHorizontalFlip: random_hflip,
    transforms.RandomVerticalFlip: random_vflip,
    timm.data.auto_augment.RandAugment: rand_augment,
    transforms.RandAugment: torchvision_rand_augment,
    transforms.ColorJitter: color_jitter,
}
