"""Data sets: their sources, and the splits that a run uses.

Images of one size, at most 1 GiB of them, are decoded once per process and kept in memory. Others are decoded when a
batch needs them. The transforms (pipeline/transforms.py) get the same images in both cases.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torchvision
from filelock import FileLock

from config import schema
from data.image_files import DataError, check_patch_size, unreadable_error
from data.image_folder import SAMPLE_SIZE, read_image_folder
from data.splits import DataSplits, Split, divide


def load(config: schema.Data, patch_size: int) -> DataSplits:
    """Load the images for training, validation and test.

    Raises:
        DataError: The images are missing, corrupt, or do not fit the config.
    """
    return prepare(read_configured(config), config, patch_size)


def read_configured(config: schema.Data, download: bool = True) -> DataSplits:
    """Read the data set of a config, not yet divided or normalized."""
    return read(config.name, config.root, download, config.skip_unreadable, config.test_fraction, config.split_seed)


def prepare(
    data: DataSplits, config: schema.Data, patch_size: int, image_size: tuple[int, int] | None = None
) -> DataSplits:
    """Set the image size and normalization, and split off validation images.

    Args:
        data: The data set as read from its source.
        patch_size: The model's patch size in pixels.
        image_size: Height and width if data.image_size=null; None keeps the size of the images.

    Raises:
        DataError: The images do not fit the config.
    """
    if config.image_size is not None:
        image_size = (config.image_size, config.image_size)
    data = replace(data, image_size=image_size or data.image_size)
    check_patch_size(patch_size, data.image_size, config.name)
    if not config.val_fraction:
        if data.val:
            data = replace(data, remarks=(*data.remarks, "data.val_fraction=0: the validation folder is not used"))
        data = replace(data, val=None)
    elif data.val is None:
        train, val = divide(data.train, config.val_fraction, config.split_seed, "data.val_fraction", data.classes)
        data = replace(data, train=train, val=val)
    if config.train_fraction < 1:
        _, train = divide(data.train, config.train_fraction, config.split_seed, "data.train_fraction", data.classes)
        data = replace(data, train=train)
    if config.mean is not None and config.std is not None:
        for key, values in (("mean", config.mean), ("std", config.std)):
            if len(values) != data.channels:
                raise DataError(f"data.{key}={values}: expected {data.channels} numbers, one for each channel")
        return replace(data, mean=tuple(config.mean), std=tuple(config.std))
    try:
        mean, std = compute_mean_and_std(data.train, data.channels)
    except DataError as error:
        raise unreadable_error(data.train.images.tolist(), error) from error
    return replace(data, mean=mean, std=std)


def compute_mean_and_std(split: Split, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation of every channel over evenly spaced images; pixels are 0 … 1.

    500 images are enough, or 5,000 of at most 64 × 64 pixels.
    """
    small = split[0].width * split[0].height <= 64 * 64
    chosen = np.linspace(0, len(split) - 1, min(len(split), 10 * SAMPLE_SIZE if small else SAMPLE_SIZE))
    counts = np.zeros((channels, 256))
    for i in chosen.astype(int):
        pixels = np.asarray(split[i]).reshape(-1, channels)
        counts += [np.bincount(channel, minlength=256) for channel in pixels.T]
    shares, levels = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = shares @ levels
    std = np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(1))
    # Normalizing a constant channel would otherwise divide by zero.
    return tuple(mean.tolist()), tuple(np.maximum(std, 1e-3).tolist())


# The sources return training and test images, before validation images are split off.


@lru_cache(maxsize=1)
def read(
    name: str,
    root: str,
    download: bool = True,
    skip_unreadable: bool = False,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> DataSplits:
    """Read a data set, once per process.

    Raises:
        DataError: The images are missing or corrupt.
    """
    if name == "digits":
        return read_digits()
    if name == "image_folder":
        return read_image_folder(Path(root), skip_unreadable, test_fraction, split_seed)
    return read_cifar(name, Path(root), download)


def read_digits() -> DataSplits:
    """Read scikit-learn's digits, with levels 0 … 16 scaled to 0 … 255; a fixed fifth of them is the test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    split = Split(pixels, digits.target.astype(np.int64))
    classes = [str(digit) for digit in range(10)]
    train, test = divide(split, 0.2, 0, "digits", classes)
    return DataSplits(train, None, test, classes, channels=1, image_size=(8, 8))


def read_cifar(name: str, root: Path, download: bool) -> DataSplits:
    """Read CIFAR-10 or CIFAR-100; download them if they are missing or damaged.

    Raises:
        DataError: The files are missing or damaged, and cannot be downloaded.
    """
    source = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    try:
        try:
            parts = [source(str(root), train=train) for train in (True, False)]
        except RuntimeError:  # missing or damaged
            if not download:
                raise
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{name}.lock"):  # Parallel runs download once.
                parts = [source(str(root), train=train, download=True) for train in (True, False)]
    except Exception as error:  # urllib, tarfile and pickle raise errors of many types.
        raise DataError(
            f"data.root={root}: {name} is missing or damaged{' and cannot be downloaded' * download} ({error}). "
            f"Fix: put {source.filename} there, or "
            + ("delete damaged files and try again" if download else f"set data={name}, which downloads it")
        ) from error
    train, test = (Split(part.data, np.asarray(part.targets, dtype=np.int64)) for part in parts)
    return DataSplits(train, None, test, list(parts[0].classes), channels=3, image_size=(32, 32))
