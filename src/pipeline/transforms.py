"""Transforms of images before the model, built from timm's.

Worker processes transform one image at a time on the CPU: crop, flip, RandAugment, color. The device transforms whole
batches: normalize, mixup or cutmix, erase, in the order of timm's training script.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import transforms_imagenet_eval, transforms_imagenet_train
from torch import Tensor
from torchvision import transforms

from config import schema
from data.splits import DataSplits

Transform = Callable[[Image.Image], Image.Image]


def training_transform(config: schema.Augmentation, data: DataSplits) -> Transform | None:
    """Make the transform from an image to the augmented image at the model's size; None if nothing changes."""
    jitter = (config.brightness, config.contrast, config.saturation, config.hue)
    auto_augment = config.auto_augment or ""
    whole = config.scale == config.ratio == [1.0, 1.0]  # a centre crop, as in evaluation
    shape = data.image_size[1] / data.image_size[0]
    crop_and_flip, color, _ = transforms_imagenet_train(
        data.image_size,
        scale=(config.scale[0], config.scale[1]),
        ratio=(shape, shape) if whole else (config.ratio[0], config.ratio[1]),
        hflip=config.hflip,
        vflip=config.vflip,
        color_jitter=jitter if any(jitter) else None,  # type: ignore[arg-type]
        force_color_jitter=True,  # By default timm drops it if there is RandAugment.
        auto_augment=config.auto_augment if auto_augment.startswith("rand") else None,
        interpolation=config.interpolation,
        mean=data.mean,
        normalize=False,
        separate=True,
    )
    first, second = crop_and_flip.transforms, color.transforms
    if whole and is_native(data):
        first = first[1:]  # Here the crop is the whole image.
    if config.shift:
        padding = [max(1, round(config.shift * side)) for side in reversed(data.image_size)]
        first = [*first, transforms.RandomCrop(data.image_size, padding=padding)]
    if torchvisions := re.fullmatch(r"torchvision-n(\d+)-m(\d+)", auto_augment):
        second = [transforms.RandAugment(int(torchvisions[1]), int(torchvisions[2])), *second]
    return transforms.Compose([*first, *second]) if first or second else None


def evaluation_transform(crop_fraction: float, data: DataSplits) -> Transform | None:
    """Make the transform for evaluation: resize and centre-crop; None if nothing changes."""
    if crop_fraction == 1.0 and is_native(data):
        return None
    steps = transforms_imagenet_eval(
        data.image_size, crop_pct=crop_fraction, interpolation="bicubic", normalize=False
    ).transforms
    return transforms.Compose(steps[:-1])  # The last step converts to a tensor.


def is_native(data: DataSplits) -> bool:
    """Return True if the images are decoded at the model's size."""
    return data.train.decoded and data.train.images.shape[1:3] == data.image_size


class Normalize:
    """Normalization of batches, uint8 [batch, channels, height, width], to floats of mean 0 and deviation 1.

    Args:
        data: The data set, for its mean and standard deviation.
        device: The device of the batches, which are channels last in memory.
        memory_format: The memory format of the result.
    """

    def __init__(
        self, data: DataSplits, device: torch.device, memory_format: torch.memory_format = torch.channels_last
    ) -> None:
        # Repeated for every pixel of a row: broadcasting long rows is fast, broadcasting three channels is slow.
        width = data.image_size[1]
        self.mean = 255 * torch.tensor(data.mean, device=device).repeat(width)
        self.std = 255 * torch.tensor(data.std, device=device).repeat(width)
        self.memory_format = memory_format

    def __call__(self, images: Tensor) -> Tensor:
        channels_last = images.permute(0, 2, 3, 1)
        rows = channels_last.flatten(2).float().sub_(self.mean).div_(self.std)
        # .contiguous() would not change the strides of a single channel, which layers interpret as channels last.
        return rows.view(channels_last.shape).permute(0, 3, 1, 2).to(memory_format=self.memory_format)


def mixes(config: schema.Augmentation) -> bool:
    """Return True if batches are mixed by mixup or cutmix."""
    return bool(config.mixup or config.cutmix)


class MixAndErase:
    """Mixup or cutmix, then random erasing, of a normalized batch on its device.

    A call returns the images and their targets: the labels [batch], or after mixing the shares of the classes
    [batch, classes].
    """

    def __init__(self, config: schema.Augmentation, n_classes: int, device: torch.device) -> None:
        self.mix: Callable[[Tensor, Tensor], Any] | None = None
        self.erase: Callable[[Tensor], Tensor] | None = None
        if mixes(config):
            # The loss smooths the labels, not timm's mixup; train/accuracy needs the shares themselves.
            self.mix = Mixup(config.mixup, config.cutmix, label_smoothing=0.0, num_classes=n_classes)
        if config.random_erasing:
            # On the CPU erasing one image after the other is cheap, as no kernels are launched.
            erasing = RandomErasing if device.type == "cpu" else BatchErasing
            self.erase = erasing(config.random_erasing, mode="pixel", device=str(device))

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.mix:
            images, labels = self.mix(images, labels)
        if self.erase:
            images = self.erase(images)
        return images, labels


class BatchErasing(RandomErasing):
    """Random erasing of a batch in a dozen operations; timm's needs two for each erased image.

    The rectangles are drawn as timm draws them, the first of ten that fits. The noise is drawn on the device.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Erase rectangles of images, [batch, channels, height, width]."""
        batch, _, height, width = images.shape
        edges = torch.from_numpy(self.rectangles(batch, height, width)).to(images.device, non_blocking=True)
        top, bottom, left, right = edges[..., None]
        row, column = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        noise = torch.randn_like(images)
        return torch.where(inside, noise, images, out=noise)  # The noise has the strides of the images.

    def rectangles(self, batch: int, height: int, width: int) -> NDArray[np.int64]:
        """Draw [top, bottom, left, right; batch] with NumPy's generator; empty for an image that is not erased."""
        attempts = (10, batch)
        area = np.random.uniform(self.min_area, self.max_area, attempts) * height * width
        aspect = np.exp(np.random.uniform(*self.log_aspect_ratio, attempts))
        tall, wide = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (tall < height) & (wide < width)
        first = fits.argmax(0), np.arange(batch)
        erased = fits.any(0) & (np.random.random(batch) <= self.probability)
        tall, wide = np.where(erased, tall[first], 0), np.where(erased, wide[first], 0)
        top = np.floor(np.random.random(batch) * (height - tall + 1))
        left = np.floor(np.random.random(batch) * (width - wide + 1))
        return np.stack((top, top + tall, left, left + wide)).astype(np.int64)
