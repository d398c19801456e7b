"""Operations on the grey levels and colors of a batch, without moving pixels."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision import transforms

from pipeline.gpu_transforms.values import Draw, constant, per_pixel, to_levels, uniform_in

# Lookup tables. Each function takes the levels, [256], an image's pixels, [batch, channels, pixels], and the argument,
# [batch, 1, 1]. It returns the new levels, which broadcast to [batch, channels, 256].


def apply_lut(images: Tensor, drawn: dict[str, Tensor], argument: Tensor) -> Tensor:
    """Replace the levels of each image that has drawn one of TABLES."""
    pixels = images.flatten(2)
    levels = torch.arange(256.0, device=images.device)
    table = levels.expand(*images.shape[:2], -1)
    for name, make_table in TABLES.items():
        if name in drawn:
            made = make_table(levels, pixels, argument[:, None, None])
            table = torch.where(drawn[name][:, None, None], made, table)
    return to_levels(table).gather(2, pixels.long()).view(images.shape)


def posterize(levels: Tensor, _: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits of the levels."""
    step = torch.exp2(8 - bits.clamp(max=8)).round()
    return (levels / step).floor() * step


def auto_contrast(levels: Tensor, pixels: Tensor, _: Tensor) -> Tensor:
    """Stretch the levels of each channel to 0 … 255."""
    darkest, brightest = pixels.float().aminmax(dim=2, keepdim=True)  # amin of bytes is wrong where compiled (2.14)
    stretched = (255 * (levels - darkest) / (brightest - darkest)).floor()
    return torch.where(brightest > darkest, stretched, levels)


def equalize(levels: Tensor, pixels: Tensor, _: Tensor) -> Tensor:
    """Equalize the histogram of each channel."""
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int64, device=pixels.device)
    counts.scatter_add_(2, pixels.long(), torch.ones_like(counts[..., :1]).expand(pixels.shape))
    brightest = pixels.float().amax(2, keepdim=True).long()
    step = (pixels.shape[2] - counts.gather(2, brightest)) // 255  # 0 if there are too few pixels to spread
    below = counts.cumsum(2) - counts
    spread = (below + step // 2) // step.clamp(min=1)
    return torch.where(step > 0, spread.float(), levels)


TABLES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "Invert": lambda levels, *_: 255 - levels,
    "Posterize": posterize,
    "Solarize": lambda levels, _, threshold: torch.where(levels < threshold, levels, 255 - levels),
    "SolarizeAdd": lambda levels, _, added: torch.where(levels < 128, levels + added, levels).clamp(max=255),
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
}

# Blends of an image with a degenerate one: factor 0 is the degenerate image, 1 the original.


def blend(images: Tensor, drawn: dict[str, Tensor], factor: Tensor) -> Tensor:
    """Blend each image that has drawn one of DEGENERATES; `factor` is [batch]."""
    levels = images.float()
    luma = grey(levels)
    degenerate = levels
    for name, degenerated in DEGENERATES.items():
        if name in drawn:
            degenerate = torch.where(per_pixel(drawn[name]), degenerated(levels, luma), degenerate)
    return to_levels(degenerate + per_pixel(factor) * (levels - degenerate))


def grey(images: Tensor) -> Tensor:
    """Compute ITU-R 601-2 luma, [batch, 1, height, width], in Pillow's 16 bits, which floats hold exactly."""
    if images.shape[1] == 1:
        return images
    red_green_blue = constant((19595, 38470, 7471), images.device)[:, None, None]
    return (((images * red_green_blue).sum(1, keepdim=True) + 2**15) / 2**16).floor()


def mean_grey(_: Tensor, luma: Tensor) -> Tensor:
    """Compute each image's mean luma, rounded half up."""
    pixels = luma.shape[2] * luma.shape[3]
    total = luma.sum((1, 2, 3), keepdim=True, dtype=torch.int64)
    return ((2 * total + pixels) // (2 * pixels)).float()


def smooth(images: Tensor, _: Tensor) -> Tensor:
    """Average each pixel, except those on the edge, over its 3 x 3 neighborhood, in which it counts five times."""
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    inner = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * images[:, :, 1:-1, 1:-1]
    smoothed = images.clone()
    smoothed[:, :, 1:-1, 1:-1] = (inner / 13 + 0.5).floor()
    return smoothed


DEGENERATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": lambda _, luma: torch.zeros_like(luma),
    "Color": lambda _, luma: luma,
    "Contrast": mean_grey,
    "Sharpness": smooth,
}


# Color jitter.


def color_jitter(step: transforms.ColorJitter, images: Tensor, draw: Draw) -> Tensor:
    """Apply torchvision's color jitter: a factor for each property, in a random order for each image."""
    limits = {"Brightness": step.brightness, "Contrast": step.contrast, "Color": step.saturation, "Hue": step.hue}
    limits = {name: pair for name, pair in limits.items() if pair}
    uniforms, order = draw(len(limits)), draw(len(limits)).argsort(0)
    factors = torch.stack([uniform_in(pair, uniform) for pair, uniform in zip(limits.values(), uniforms, strict=True)])
    for which in order:
        drawn = {name: which == i for i, name in enumerate(limits)}
        factor = factors.gather(0, which[None])[0]
        images = blend(images, drawn, factor)
        if "Hue" in drawn and images.shape[1] == 3:
            images = torch.where(per_pixel(drawn["Hue"]), adjust_hue(images, factor), images)
    return images


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue as torchvision does, through Pillow's HSV in whole numbers; `turns` of the color wheel, [batch]."""
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
