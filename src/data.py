"""Images: where they come from, how they are split, and the batches that training sees.

Small images are decoded once per process and kept as bytes; large ones stay files until a batch
needs them. Every image of a batch is a pure function of (seed, epoch, batch, place in the batch), so
that a run is the same for any number of workers, and for any number of GPUs that share its batches.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.datasets.folder import find_classes, has_file_allowed_extension

import augmentation
import config as cfg
from device_augmentation import BatchTransform
from distributed import Team

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
DECODED_LIMIT = 2**30  # bytes of decoded images that are kept in memory
SAMPLE = 500  # images looked at to learn the size, and to measure mean and deviation


class DataError(ValueError):
    """The data cannot be used as asked; the message names the key, the value and what is wrong."""


@dataclass(frozen=True)
class Images:
    """Some images and their classes.

    Attributes:
        pixels: uint8 [images, height, width, channels], or the paths of the files.
        labels: int64 [images].
        mode: PIL's name of what files are read as, "RGB" or "L" (grey).
    """

    pixels: NDArray[np.uint8] | NDArray[np.str_]
    labels: NDArray[np.int64]
    mode: str = "RGB"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        if not self.decoded:
            return open_image(self.pixels[index], self.mode)
        pixels = self.pixels[index]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    @property
    def decoded(self) -> bool:
        return self.pixels.dtype == np.uint8

    def subset(self, indices: NDArray[np.int64]) -> "Images":
        return replace(self, pixels=self.pixels[indices], labels=self.labels[indices])


@dataclass(frozen=True)
class ImageData:
    """A data set as a run uses it. `val` is None where nothing is split off for validation."""

    train: Images
    val: Images | None
    test: Images
    classes: list[str]
    channels: int
    image_size: tuple[int, int]  # height, width
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def load(config: cfg.Data, patch_size: int) -> ImageData:
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
        rest, held_out = split(data.train, config.val_fraction, config.split_seed, "data.val_fraction")
        data = replace(data, train=rest, val=held_out)
    if not config.val_fraction:
        data = replace(data, val=None)
    if config.train_fraction < 1:
        _, kept = split(data.train, config.train_fraction, config.split_seed, "data.train_fraction")
        data = replace(data, train=kept)
    if config.mean is not None and config.std is not None:
        for key, values in (("mean", config.mean), ("std", config.std)):
            if len(values) != data.channels:
                raise DataError(f"data.{key}={values}: expected {data.channels} numbers, one for each channel")
        return replace(data, mean=tuple(config.mean), std=tuple(config.std))
    mean, std = measure(data.train, data.channels)
    return replace(data, mean=mean, std=std)


def split(images: Images, fraction: float, seed: int, key: str) -> tuple[Images, Images]:
    """Divide at random, with the same share of every class on both sides; the second has `fraction`."""
    try:
        rest, part = train_test_split(
            np.arange(len(images)), test_size=fraction, stratify=images.labels, random_state=seed
        )
    except ValueError as error:
        raise DataError(f"{key}={fraction}: cannot split {len(images)} images so: {error}") from error
    return images.subset(np.sort(rest)), images.subset(np.sort(part))


def measure(images: Images, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, over evenly spaced images; pixels in 0 … 1."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), 10 * SAMPLE if images.decoded else SAMPLE))
    pixels = [np.asarray(images[int(i)]).reshape(-1, channels) for i in chosen]
    sample = np.concatenate(pixels).astype(np.float64) / 255
    # A channel without any variation would otherwise divide by zero.
    return tuple(sample.mean(0).tolist()), tuple(np.maximum(sample.std(0), 1e-3).tolist())


# Sources. Each gives training and test images, undivided, once per process.


@lru_cache(maxsize=1)
def read(name: str, root: str, image_size: int | None) -> ImageData:
    if name == "digits":
        data = read_digits()
    elif name == "image_folder":
        data = read_image_folder(Path(root), image_size)
    else:
        data = read_cifar(name, Path(root))
    if image_size is not None:
        data = replace(data, image_size=(image_size, image_size))
    return data


def read_digits() -> ImageData:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    images = Images(pixels, digits.target.astype(np.int64))
    train, test = split(images, 0.2, seed=0, key="digits")
    return ImageData(train, None, test, [str(i) for i in range(10)], channels=1, image_size=(8, 8))


def read_cifar(name: str, root: Path) -> ImageData:
    source = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):  # runs side by side download once
            parts = [source(str(root), train=train, download=True) for train in (True, False)]
    except Exception as error:  # torchvision raises whatever urllib, tarfile and pickle raise
        raise DataError(
            f"data.root={root}: {name} is not there intact and could not be downloaded ({error}); "
            f"put {source.filename} there, or delete what is broken and try again"
        ) from error
    train, test = (Images(part.data, np.asarray(part.targets, dtype=np.int64)) for part in parts)
    return ImageData(train, None, test, list(parts[0].classes), channels=3, image_size=(32, 32))


def read_image_folder(root: Path, image_size: int | None) -> ImageData:
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
    for path in train.pixels[np.linspace(0, len(train) - 1, min(len(train), SAMPLE)).astype(int)]:
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
    return ImageData(train, val, test, classes, channels, size)


def folder_classes(folder: Path) -> list[str]:
    try:
        return find_classes(str(folder))[0]
    except FileNotFoundError as error:
        raise DataError(f"data.root={folder.parent}: {folder.name} has no folder for any class") from error


def list_images(folder: Path, classes: list[str]) -> Images:
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
    return Images(np.array(paths), np.array(labels, dtype=np.int64))


def decode(images: Images, size: tuple[int, int], channels: int) -> Images:
    pixels = np.empty((len(images), *size, channels), dtype=np.uint8)
    for i, path in enumerate(images.pixels):
        image = open_image(path, images.mode)
        if (image.height, image.width) != size:
            image = image.resize(size[::-1], Image.Resampling.BICUBIC)
        pixels[i] = np.asarray(image).reshape(*size, channels)
    return Images(pixels, images.labels)


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


# Batches.


@dataclass(frozen=True)
class BatchKey:
    """All that a batch, or a process's share of it, depends on.

    Attributes:
        indices: which images.
        places: where in the batch they are.
        seeds: for the augmentation of each one on the CPU.
        batch_seed, batch_size: of the whole batch, for its augmentation on the device.
    """

    indices: NDArray[np.int64]
    places: NDArray[np.int64]
    seeds: NDArray[np.uint32]
    batch_seed: int
    batch_size: int


class BatchOrder(Sampler[BatchKey]):
    """Which images make up the batches of an epoch: all of them once, in random order for training.

    The last batch is smaller where they do not divide evenly; with `pairs` an odd one leaves one image out.
    Of every batch a process of a team gets its share, in such a way that images which mixup or cutmix pairs
    (the first with the last, and so on) stay together.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int | None, pairs: bool = False, team: Team | None = None
    ) -> None:
        self.length = length - length % 2 if pairs else length
        self.drawn_from, self.batch_size, self.seed = length, batch_size, seed
        self.team = team or Team()
        left_over = self.length % batch_size
        if seed is not None and left_over < 2 * self.team.size > 2:
            self.length -= left_over  # every process needs a pair to train on
        self.epoch = 0
        self.start = 0  # batches of the epoch that are done

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def size(self, batch: int) -> int:
        """Images of a batch, counted from 0, over the whole team."""
        return min(self.batch_size, self.length - batch * self.batch_size)

    def __iter__(self) -> Iterator[BatchKey]:
        order = np.arange(self.drawn_from)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        for batch in range(self.start, len(self)):
            places = np.arange(self.size(batch))
            seeds = np.random.SeedSequence([self.seed or 0, self.epoch, batch]).generate_state(len(places))
            mirrored = np.minimum(places, places[::-1])
            mine = mirrored % self.team.size == self.team.rank
            if mine.any():
                indices = order[batch * self.batch_size + places]
                yield BatchKey(indices[mine], places[mine], seeds[mine], int(seeds[0]), len(places))


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches: uint8 [batch, channels, height, width] and labels [batch]."""

    def __init__(self, images: Images, transform: augmentation.Transform | None) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        if self.transform is None:
            pixels = self.images.pixels[key.indices]
        else:
            with own_chance():
                places = zip(key.indices.tolist(), key.seeds.tolist(), strict=True)
                pixels = np.stack([self.augmented(index, seed) for index, seed in places])
        channels_last = torch.from_numpy(pixels.reshape(*pixels.shape[:3], -1))
        return channels_last.permute(0, 3, 1, 2), torch.from_numpy(self.images.labels[key.indices])

    def augmented(self, index: int, seed: int) -> NDArray[np.uint8]:
        assert self.transform is not None
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)
        return np.asarray(self.transform(self.images[index]))


class DeviceBatches(Dataset[tuple[Tensor, Tensor]]):
    """The same from images that are kept on the device, augmented there.

    Batches of `compiled_size`, if that is given, in a few kernels instead of hundreds.
    """

    def __init__(
        self, images: Images, transform: augmentation.Transform | None, device: torch.device, compiled_size: int = 0
    ) -> None:
        self.device, self.compiled_size = device, compiled_size
        self.pixels = torch.from_numpy(images.pixels).to(device).permute(0, 3, 1, 2).contiguous()
        self.labels = torch.from_numpy(images.labels).to(device)
        self.generator = torch.Generator(device)
        self.transform = BatchTransform(transform, self.pixels.shape[1:], device) if transform else None
        self.compiled: Any = torch.compile(self.transform, dynamic=False) if self.transform else None

    def __getitem__(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        indices, places = (
            torch.from_numpy(part).to(self.device, non_blocking=True) for part in (key.indices, key.places)
        )
        pixels = self.pixels.index_select(0, indices)
        if self.transform:
            # Drawn for the whole batch: then it is the same for any number of GPUs that share it.
            self.generator.manual_seed(key.batch_seed)
            shape = (key.batch_size, self.transform.numbers)
            uniforms = torch.rand(shape, generator=self.generator, device=self.device)[places].T
            transform = self.compiled if key.batch_size == self.compiled_size else self.transform
            pixels = transform(pixels, uniforms)
        return pixels, self.labels.index_select(0, indices)


@contextmanager
def own_chance() -> Iterator[None]:
    """Whatever is drawn in here leaves the generators as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def training_batches(
    data: ImageData, config: cfg.Config, team: Team | None = None, device: torch.device | str = "cpu"
) -> DataLoader[Any]:
    """
    Raises:
        ConfigError: data.pipeline=device cannot do it.
    """
    transform = augmentation.training_transform(config.augmentation, data)
    pairs = augmentation.mixes(config.augmentation)
    order = BatchOrder(len(data.train), config.data.batch_size, config.seed, pairs, team)
    if config.data.pipeline == "device":
        if not data.train.decoded:
            raise cfg.ConfigError(
                "data.pipeline=device: keeps decoded images of one size, at most 1 GiB of them, without "
                "data.image_size; these stay files; expected data.pipeline=cpu"
            )
        compiled_size = config.data.batch_size if config.trainer.compile else 0
        kept = DeviceBatches(data.train, transform, torch.device(device), compiled_size)
        return DataLoader(kept, batch_size=None, sampler=order, generator=torch.Generator())
    return batches(data.train, transform, order, config.data.num_workers)


def evaluation_batches(
    images: Images, data: ImageData, config: cfg.Config, team: Team | None = None
) -> DataLoader[Any]:
    transform = augmentation.evaluation_transform(config.data.crop_fraction, data)
    order = BatchOrder(len(images), config.data.batch_size, seed=None, team=team)
    return batches(images, transform, order, config.data.num_workers)


def batches(
    images: Images, transform: augmentation.Transform | None, order: BatchOrder, workers: int | None
) -> DataLoader[Any]:
    if transform is None:
        workers = 0  # a batch is one slice of an array
    elif workers is None:
        workers = min(16, max(1, torch.get_num_threads() - 1))  # of this process's share of the cores
    return DataLoader(
        Batches(images, transform),
        batch_size=None,
        sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # or it would draw from the one that dropout uses
        pin_memory=torch.cuda.is_available(),
    )
