"""Photographs as pixels, batches and a data set, for tests of augmentation on the device."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms

from conftest import checked
from data import datasets
from pipeline.gpu_transforms.values import Draw
from pipeline.transforms import training_transform


def photographs_and_noise() -> np.ndarray:
    """Cut parts of scikit-learn's two photographs, and add noise images: uint8 [40, 32, 32, 3]."""
    chance = np.random.default_rng(0)
    parts = [photo[y : y + 32, x : x + 32] for photo in load_sample_images().images for y, x in PLACES]
    return np.stack([*parts, *chance.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)])


PLACES = np.random.default_rng(0).integers(0, 390, (16, 2))
PIXELS = photographs_and_noise()
COUNT = len(PIXELS)
CPU = torch.device("cpu")


def to_batch(pixels: np.ndarray, device: str = "cpu") -> torch.Tensor:
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).contiguous()


def to_pixels(batch: torch.Tensor) -> np.ndarray:
    assert batch.dtype == torch.uint8
    return batch.permute(0, 2, 3, 1).cpu().numpy()


def one_by_one(operation: Callable[[Image.Image], Image.Image], pixels: np.ndarray = PIXELS) -> np.ndarray:
    """Apply Pillow's operation to each image."""
    made = [np.asarray(operation(Image.fromarray(image.squeeze()))) for image in pixels]
    return np.stack(made).reshape(len(pixels), *made[0].shape[:2], -1)


def assert_close(ours: np.ndarray, theirs: np.ndarray, levels: int = 0, share: float = 0.0) -> None:
    """Check that all values are within some grey levels, and all but a share exactly equal."""
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= levels
    assert (difference > 0).mean() <= share


def draws(count: int) -> Draw:
    chance = torch.Generator().manual_seed(0)
    return lambda n: torch.rand(n, count, generator=chance)


def photograph_data(size: tuple[int, int] = (32, 32)) -> datasets.DataSplits:
    images = datasets.Split(PIXELS, np.arange(COUNT) % 10)
    return datasets.DataSplits(images, None, images, [str(i) for i in range(10)], 3, size, (0.5,) * 3, (0.25,) * 3)


def transform_of(*overrides: str) -> transforms.Compose:
    transform = training_transform(checked("data=cifar10", *overrides).augmentation, photograph_data())
    assert isinstance(transform, transforms.Compose)
    return transform
