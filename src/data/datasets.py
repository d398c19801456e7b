"""Data sets: where images come from, and how they are split.

Images of one size, at most 1 GiB of them, are decoded once per process and kept in memory; all others stay files
until a batch needs them. Either way the transforms (data/transforms.py) see the same images.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torchvision
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import train_test_split

from config import schema
from data.image_files import DataError, class_folders, image_files, open_image

DECODED_LIMIT = 2**30  # bytes of decoded images that are kept in memory
SAMPLE_SIZE = 500  # images that are looked at for what they have in common


@dataclass(frozen=True)
class Split:
    """Some images and their classes.

    Attributes:
        images: uint8 [images, height, width, channels], or the paths of the files.
        labels: int64 [images].
        mode: PIL's name of what files are read as, "RGB" or "L" (grey).
    """

    images: NDArray[np.uint8] | NDArray[np.str_]
    labels: NDArray[np.int64]
    mode: str = "RGB"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        if not self.decoded:
            return open_image(self.images[index], self.mode)
        pixels = self.images[index]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    @property
    def decoded(self) -> bool:
        return self.images.dtype == np.uint8

    def subset(self, indices: NDArray[np.int64]) -> "Split":
        return replace(self, images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True)
class DataSplits:
    """A data set as a run uses it. `val` is None where nothing is split off for validation."""

    train: Split
    val: Split | None
    test: Split
    classes: list[str]
    channels: int
    image_size: tuple[int, int]  # height, width
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def load(config: schema.Data, patch_size: int, image_size: tuple[int, int] | None = None) -> DataSplits:
    """Read, check and split the images.

    Args:
        image_size: height and width where `data.image_size` leaves them open; None: the images' own.

    Raises:
        DataError: the images are missing, corrupt, or do not fit the config.
    """
    data = read(config.name, config.root)
    if config.image_size is not None:
        image_size = (config.image_size, config.image_size)
    data = replace(data, image_size=image_size or data.image_size)
    height, width = data.image_size
    if height % patch_size or width % patch_size:
        fitting = [p for p in range(1, min(height, width) + 1) if height % p == width % p == 0]
        raise DataError(
            f"model.patch_size={patch_size}: does not divide the {height}x{width} images of "
            f"data={config.name}; expected one of {', '.join(map(str, fitting))}"
        )
    if not config.val_fraction:
        data = replace(data, val=None)
    elif data.val is None:
        rest, held_out = divide(data.train, config.val_fraction, config.split_seed, "data.val_fraction", data.classes)
        data = replace(data, train=rest, val=held_out)
    if config.train_fraction < 1:
        _, kept = divide(data.train, config.train_fraction, config.split_seed, "data.train_fraction", data.classes)
        data = replace(data, train=kept)
    if config.mean is not None and config.std is not None:
        for key, values in (("mean", config.mean), ("std", config.std)):
            if len(values) != data.channels:
                raise DataError(f"data.{key}={values}: expected {data.channels} numbers, one for each channel")
        return replace(data, mean=tuple(config.mean), std=tuple(config.std))
    mean, std = compute_mean_and_std(data.train, data.channels)
    return replace(data, mean=mean, std=std)


def divide(split: Split, fraction: float, seed: int, key: str, classes: list[str]) -> tuple[Split, Split]:
    """Divide at random, with the same share of every class on both sides; the second has `fraction`.

    Raises:
        DataError: a side would have fewer images than there are classes, or a class has a single image.
    """
    try:
        rest, part = train_test_split(
            np.arange(len(split)), test_size=fraction, stratify=split.labels, random_state=seed
        )
    except ValueError as error:
        counts = np.bincount(split.labels, minlength=len(classes))
        single = [name for name, count in zip(classes, counts, strict=True) if count == 1]
        lowest, highest = math.ceil(1e4 * len(classes) / len(split)), math.floor(1e4 - 1e4 * len(classes) / len(split))
        expected = f"two images of {', '.join(single)}" if single else f"{lowest / 1e4} to {highest / 1e4}"
        raise DataError(
            f"{key}={fraction}: of {len(split)} images in {len(classes)} classes, each side needs one of every class; "
            f"expected {expected}"
        ) from error
    return split.subset(np.sort(rest)), split.subset(np.sort(part))


def compute_mean_and_std(split: Split, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, over evenly spaced images; pixels in 0 … 1.

    Over ten times as many images where they are small.
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
    # A channel without any variation would otherwise divide by zero.
    return tuple(mean.tolist()), tuple(np.maximum(std, 1e-3).tolist())


# Sources. Each gives training and test images, undivided, once per process.


@lru_cache(maxsize=1)
def read(name: str, root: str, download: bool = True) -> DataSplits:
    if name == "digits":
        return read_digits()
    if name == "image_folder":
        return read_image_folder(Path(root))
    return read_cifar(name, Path(root), download)


def read_digits() -> DataSplits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    split = Split(pixels, digits.target.astype(np.int64))
    classes = [str(digit) for digit in range(10)]
    train, test = divide(split, 0.2, 0, "digits", classes)
    return DataSplits(train, None, test, classes, channels=1, image_size=(8, 8))


def read_cifar(name: str, root: Path, download: bool) -> DataSplits:
    source = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    try:
        try:
            parts = [source(str(root), train=train) for train in (True, False)]
        except RuntimeError:  # missing or not intact
            if not download:
                raise
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{name}.lock"):  # runs side by side download once
                parts = [source(str(root), train=train, download=True) for train in (True, False)]
    except Exception as error:  # torchvision raises whatever urllib, tarfile and pickle raise
        raise DataError(
            f"data.root={root}: {name} is not there intact{' and could not be downloaded' * download} ({error}); "
            f"put {source.filename} there, or delete what is broken and try again"
        ) from error
    train, test = (Split(part.data, np.asarray(part.targets, dtype=np.int64)) for part in parts)
    return DataSplits(train, None, test, list(parts[0].classes), channels=3, image_size=(32, 32))


def read_image_folder(root: Path) -> DataSplits:
    if not (root / "train").is_dir():
        raise DataError(f"data.root={root}: expected a folder with train/CLASS/* and test/CLASS/* or val/CLASS/*")
    held_out = [part for part in ("test", "val") if (root / part).is_dir()]
    if not held_out:
        raise DataError(f"data.root={root}: there is a train folder but neither test nor val")
    classes = class_folders(root / "train")
    if len(classes) < 2:
        raise DataError(f"data.root={root}: expected two or more classes in train/CLASS/*; found {classes}")
    splits = [list_images(root / part, classes) for part in ("train", *held_out)]

    sizes, modes = set(), set()
    paths = splits[0].images
    for path in paths[np.linspace(0, len(paths) - 1, min(len(paths), SAMPLE_SIZE)).astype(int)]:
        image = open_image(path)
        sizes.add((image.height, image.width))
        modes.add(image.mode)
    channels, mode = (1, "L") if modes == {"L"} else (3, "RGB")
    splits = [replace(split, mode=mode) for split in splits]
    size = sizes.pop() if len(sizes) == 1 else None
    if size and sum(map(len, splits)) * size[0] * size[1] * channels <= DECODED_LIMIT:
        splits = decode(splits, size, channels) or splits
    train, test, *val = splits
    return DataSplits(train, val[0] if val else None, test, classes, channels, size or (224, 224))


def list_images(folder: Path, classes: list[str]) -> Split:
    here = set(class_folders(folder))
    for name, only in (("train", set(classes) - here), (folder.name, here - set(classes))):
        if only:
            raise DataError(
                f"data.root={folder.parent}: train and {folder.name} differ in their classes: "
                f"only {name} has {', '.join(sorted(only))}"
            )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = image_files(folder / name)
        if not found:
            raise DataError(f"data.root={folder.parent}: class {folder.name}/{name} has no images")
        paths += found
        labels += [label] * len(found)
    return Split(np.array(paths), np.array(labels, dtype=np.int64))


def decode(splits: list[Split], size: tuple[int, int], channels: int) -> list[Split] | None:
    """The splits with their images in memory; None if one of them is of another size: then all stay files."""
    decoded = []
    for split in splits:
        pixels = np.empty((len(split), *size, channels), dtype=np.uint8)
        for i in range(len(split)):
            image = split[i]
            if (image.height, image.width) != size:
                return None
            pixels[i] = np.asarray(image).reshape(*size, channels)
        decoded.append(Split(pixels, split.labels))
    return decoded
