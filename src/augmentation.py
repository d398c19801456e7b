"""What happens to an image before the model sees it, by timm's transforms."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision import transforms

import config as cfg

if TYPE_CHECKING:
    from data import ImageData

Transform = Callable[[Image.Image], Tensor]


def training_transform(config: cfg.Augmentation, data: "ImageData") -> Transform | None:
    """From an image to a uint8 tensor [channels, height, width]; None: take decoded pixels as they are."""
    if config == cfg.Augmentation() and is_native(data):
        return None
    crop_and_flip, color, to_tensor = create_transform(
        data.image_size,
        is_training=True,
        separate=True,
        normalize=False,
        scale=(config.scale[0], config.scale[1]),
        ratio=(config.ratio[0], config.ratio[1]),
        hflip=config.hflip,
        vflip=config.vflip,
        color_jitter=(config.brightness, config.contrast, config.saturation, config.hue),
        auto_augment=config.auto_augment,
        interpolation=config.interpolation,
        mean=data.mean,
    )
    steps = [crop_and_flip]
    if config.shift:
        padding = [max(1, round(config.shift * side)) for side in reversed(data.image_size)]
        steps.append(transforms.RandomCrop(data.image_size, padding=padding))
    return transforms.Compose([*steps, color, to_tensor])


def evaluation_transform(crop_fraction: float, data: "ImageData") -> Transform | None:
    """The same, without chance: resize, take the middle."""
    if crop_fraction == 1.0 and is_native(data):
        return None
    return create_transform(data.image_size, normalize=False, crop_pct=crop_fraction, interpolation="bicubic")


def is_native(data: "ImageData") -> bool:
    """Whether the images are decoded at the size that the model sees."""
    return data.train.decoded and data.train.pixels.shape[1:3] == data.image_size


class Normalize:
    """From uint8 [batch, channels, height, width] to floats of mean 0 and deviation 1, on their device."""

    def __init__(self, data: "ImageData", device: torch.device) -> None:
        self.mean = 255 * torch.tensor(data.mean, device=device).view(1, -1, 1, 1)
        self.std = 255 * torch.tensor(data.std, device=device).view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std
