"""Split: where they come from, and how they are split.

Small images are decoded once per process and kept as bytes; large ones stay files until a batch needs them.
"""

import os
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torchvision
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import train_test_split
from torchvision.datasets.folder import find_classes, has_file_allowed_extension

from config import schema
from config.errors import ConfigError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
DECODED_LIMIT = 2**30  # bytes of decoded images that are kept in memory
SAMPLE = 500  # images looked at to learn the size, and to measure mean and deviation


class DataError(ConfigError):
    """The data cannot be used as asked; the message names the key, the value and what is wrong."""


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


def load(config: schema.Data, patch_size: int) -> DataSplits:
    """Read, check and split the images.

    Raises:
        DataError: the images are missing, corrupt, or do not fit the config.
    """
    data = read(config.name, config.root, config.image_size)
    height, width = data.image_size
    if height % patch_size or width % patch_size:
        fitting = [p for p in range(1, min(height, width) + 1) if height % p == width % p == 0]
        raise DataError(
            f"model.patch_size={patch_size}: does not divide the {height}x{width} images of "
            f"data={config.name}; expected one of {', '.join(map(str, fitting))}"
        )
    if data.val is None and config.val_fraction:
        rest, held_out = divide(data.train, config.val_fraction, config.split_seed, "data.val_fraction")
        data = replace(data, train=rest, val=held_out)
    if not config.val_fraction:
        data = replace(data, val=None)
    if config.train_fraction < 1:
        _, kept = divide(data.train, config.train_fraction, config.split_seed, "data.train_fraction")
        data = replace(data, train=kept)
    if config.mean is not None and config.std is not None:
        for key, values in (("mean", config.mean), ("std", config.std)):
            if len(values) != data.channels:
                raise DataError(f"data.{key}={values}: expected {data.channels} numbers, one for each channel")
        return replace(data, mean=tuple(config.mean), std=tuple(config.std))
    mean, std = compute_mean_and_std(data.train, data.channels)
    return replace(data, mean=mean, std=std)


def divide(split: Split, fraction: float, seed: int, key: str) -> tuple[Split, Split]:
    """Divide at random, with the same share of every class on both sides; the second has `fraction`."""
    try:
        rest, part = train_test_split(
            np.arange(len(split)), test_size=fraction, stratify=split.labels, random_state=seed
        )
    except ValueError as error:
        raise DataError(f"{key}={fraction}: cannot split {len(split)} images so: {error}") from error
    return split.subset(np.sort(rest)), split.subset(np.sort(part))


def compute_mean_and_std(split: Split, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, over evenly spaced images; pixels in 0 … 1."""
    chosen = np.linspace(0, len(split) - 1, min(len(split), 10 * SAMPLE if split.decoded else SAMPLE))
    pixels = [np.asarray(split[int(i)]).reshape(-1, channels) for i in chosen]
    sample = np.concatenate(pixels).astype(np.float64) / 255
    # A channel without any variation would otherwise divide by zero.
    return tuple(sample.mean(0).tolist()), tuple(np.maximum(sample.std(0), 1e-3).tolist())


# Sources. Each gives training and test images, undivided, once per process.


@lru_cache(maxsize=1)
def read(name: str, root: str, image_size: int | None) -> DataSplits:
    if name == "digits":
        data = read_digits()
    elif name == "image_folder":
        data = read_image_folder(Path(root), image_size)
    else:
        data = read_cifar(name, Path(root))
    if image_size is not None:
        data = replace(data, image_size=(image_size, image_size))
    return data


def read_digits() -> DataSplits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    split = Split(pixels, digits.target.astype(np.int64))
    train, test = divide(split, 0.2, seed=0, key="digits")
    return DataSplits(train, None, test, [str(i) for i in range(10)], channels=1, image_size=(8, 8))


def read_cifar(name: str, root: Path) -> DataSplits:
    source = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    try:
        try:
            parts = [source(str(root), train=train) for train in (True, False)]
        except RuntimeError:  # missing or not intact
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{name}.lock"):  # runs side by side download once
                parts = [source(str(root), train=train, download=True) for train in (True, False)]
    except Exception as error:  # torchvision raises whatever urllib, tarfile and pickle raise
        raise DataError(
            f"data.root={root}: {name} is not there intact and could not be downloaded ({error}); "
            f"put {source.filename} there, or delete what is broken and try again"
        ) from error
    train, test = (Split(part.data, np.asarray(part.targets, dtype=np.int64)) for part in parts)
    return DataSplits(train, None, test, list(parts[0].classes), channels=3, image_size=(32, 32))


def read_image_folder(root: Path, image_size: int | None) -> DataSplits:
    if not (root / "train").is_dir():
        raise DataError(f"data.root={root}: expected a folder with train/CLASS/* and test/CLASS/* or val/CLASS/*")
    held_out = [part for part in ("test", "val") if (root / part).is_dir()]
    if not held_out:
        raise DataError(f"data.root={root}: there is a train folder but neither test nor val")
    classes = folder_classes(root / "train")
    train = list_images(root / "train", classes)
    test = list_images(root / held_out[0], classes)
    val = list_images(root / "val", classes) if len(held_out) == 2 else None

    sizes, modes = set(), set()
    for path in train.images[np.linspace(0, len(train) - 1, min(len(train), SAMPLE)).astype(int)]:
        image = open_image(path)
        sizes.add((image.height, image.width))
        modes.add(image.mode)
    size = sizes.pop() if len(sizes) == 1 else (224, 224)
    channels = 1 if modes == {"L"} else 3
    mode = "L" if channels == 1 else "RGB"
    train, test = replace(train, mode=mode), replace(test, mode=mode)
    val = replace(val, mode=mode) if val else None
    total = len(train) + len(test) + (len(val) if val else 0)
    if image_size is None and total * size[0] * size[1] * channels <= DECODED_LIMIT:
        train, test = decode(train, size, channels), decode(test, size, channels)
        val = decode(val, size, channels) if val else None
    return DataSplits(train, val, test, classes, channels, size)


@cache
def inventory(root: Path) -> list[tuple[str, int, int]]:
    """Of every class the folder, the number of files and the size of the first: the same wherever the images are."""
    found = []
    for folder in sorted(folder for part in ("train", "val", "test") for folder in (root / part).glob("*/")):
        files = sorted(folder.iterdir())
        found.append((str(folder.relative_to(root)), len(files), files[0].stat().st_size if files else 0))
    return found


def folder_classes(folder: Path) -> list[str]:
    try:
        return find_classes(str(folder))[0]
    except FileNotFoundError as error:
        raise DataError(f"data.root={folder.parent}: {folder.name} has no folder for any class") from error


def list_images(folder: Path, classes: list[str]) -> Split:
    if folder_classes(folder) != classes:
        differing = sorted(set(folder_classes(folder)) ^ set(classes))
        raise DataError(
            f"data.root={folder.parent}: train and {folder.name} differ in their classes: {', '.join(differing)}"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            entry.path for entry in os.scandir(folder / name) if has_file_allowed_extension(entry.name, IMAGE_SUFFIXES)
        )
        if not found:
            raise DataError(f"data.root={folder.parent}: class {folder.name}/{name} has no images")
        paths += found
        labels += [label] * len(found)
    return Split(np.array(paths), np.array(labels, dtype=np.int64))


def decode(split: Split, size: tuple[int, int], channels: int) -> Split:
    pixels = np.empty((len(split), *size, channels), dtype=np.uint8)
    for i, path in enumerate(split.images):
        image = open_image(path, split.mode)
        if (image.height, image.width) != size:
            image = image.resize(size[::-1], Image.Resampling.BICUBIC)
        pixels[i] = np.asarray(image).reshape(*size, channels)
    return Split(pixels, split.labels)


def open_image(path: str, mode: str | None = None) -> Image.Image:
    """A file as an image in the mode asked for, else in grey or RGB, whichever it is nearer to.

    Raises:
        DataError: it is not an image, or only a part of one.
    """
    try:
        with Image.open(path) as image:
            return image.convert(mode or ("L" if image.mode in ("L", "1") else "RGB"))
    except OSError as error:
        raise DataError(f"data.root: {path} cannot be read as an image ({error})") from error
