"""The batches that training and evaluation see.

Every image of a batch is a pure function of (seed, epoch, batch, place in the batch), so that a run is the same
for any number of workers, and for any number of GPUs that share its batches.
"""

import ctypes
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from config.errors import ConfigError
from config.schema import Config
from data import transforms
from data.datasets import ImageData, Images
from data.gpu_transforms import BatchTransform
from runtime.distributed import World
from runtime.rng import preserve_rng_state
from runtime.signals import SIGNALS

PR_SET_PDEATHSIG = 1  # of Linux' <sys/prctl.h>


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
    Of every batch each rank gets its share, in such a way that images which mixup or cutmix pairs
    (the first with the last, and so on) stay together.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int | None, pairs: bool = False, world: World | None = None
    ) -> None:
        self.length = length - length % 2 if pairs else length
        self.drawn_from, self.batch_size, self.seed = length, batch_size, seed
        self.world = world or World()
        left_over = self.length % batch_size
        if seed is not None and left_over < 2 * self.world.size > 2:
            self.length -= left_over  # every process needs a pair to train on
        self.epoch = 0
        self.start = 0  # batches of the epoch that are done

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def size(self, batch: int) -> int:
        """Images of a batch, counted from 0, over all ranks."""
        return min(self.batch_size, self.length - batch * self.batch_size)

    def owners(self, images: int) -> NDArray[np.int64]:
        """Which process has each place of a batch of so many images."""
        places = np.arange(images)
        return np.minimum(places, places[::-1]) % self.world.size

    def parts(self, batch: int, asked: int) -> int:
        """Into how many parts, at most as many as asked for, every process can divide its share of a batch."""
        shares = np.bincount(self.owners(self.size(batch)), minlength=self.world.size)
        return min(asked, int(shares.min()))

    def __iter__(self) -> Iterator[BatchKey]:
        order = np.arange(self.drawn_from)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        for batch in range(self.start, len(self)):
            places = np.arange(self.size(batch))
            seeds = np.random.SeedSequence([self.seed or 0, self.epoch, batch]).generate_state(len(places))
            mine = self.owners(len(places)) == self.world.rank
            if mine.any():
                indices = order[batch * self.batch_size + places]
                yield BatchKey(indices[mine], places[mine], seeds[mine], int(seeds[0]), len(places))


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches: uint8 [batch, channels, height, width] and labels [batch]."""

    def __init__(self, images: Images, transform: transforms.Transform | None) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        if self.transform is None:
            pixels = self.images.pixels[key.indices]
        else:
            with preserve_rng_state():
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
        self, images: Images, transform: transforms.Transform | None, device: torch.device, compiled_size: int = 0
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


def training_batches(
    data: ImageData, config: Config, world: World | None = None, device: torch.device | str = "cpu"
) -> DataLoader[Any]:
    """
    Raises:
        ConfigError: data.pipeline=device cannot do it, or there is not enough to train on for every process.
    """
    transform = transforms.training_transform(config.augmentation, data)
    pairs = transforms.mixes(config.augmentation)
    order = BatchOrder(len(data.train), config.data.batch_size, config.seed, pairs, world)
    size = order.world.size
    if config.data.batch_size < 2 * size > 2:
        raise ConfigError(
            f"data.batch_size={config.data.batch_size}: each of the {size} processes needs two images of every batch; "
            f"expected at least {2 * size}"
        )
    if not len(order):
        raise ConfigError(
            f"data.train_fraction={config.data.train_fraction}: leaves {len(data.train)} images to train on; "
            f"expected at least {2 * size}"
        )
    if config.data.pipeline == "device":
        if not data.train.decoded:
            raise ConfigError(
                "data.pipeline=device: keeps decoded images of one size, at most 1 GiB of them, without "
                "data.image_size; these stay files; expected data.pipeline=cpu"
            )
        compiled_size = config.data.batch_size if config.trainer.compile else 0
        kept = DeviceBatches(data.train, transform, torch.device(device), compiled_size)
        return DataLoader(kept, batch_size=None, sampler=order, generator=torch.Generator())
    return loader(data.train, transform, order, config.data.num_workers)


def evaluation_batches(images: Images, data: ImageData, config: Config, world: World | None = None) -> DataLoader[Any]:
    transform = transforms.evaluation_transform(config.data.crop_fraction, data)
    order = BatchOrder(len(images), config.data.batch_size, seed=None, world=world)
    return loader(images, transform, order, config.data.num_workers)


def loader(
    images: Images, transform: transforms.Transform | None, order: BatchOrder, workers: int | None
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
        worker_init_fn=serve_the_run,
        # A process of joblib's starts others in a way that PyTorch's cannot be started in.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        generator=torch.Generator(),  # or it would draw from the one that dropout uses
        pin_memory=torch.cuda.is_available(),
    )


def serve_the_run(worker: int) -> None:
    """A terminal and Slurm tell all of a run's processes to stop; this one stops when the run has no more need of it.

    And at once with a run that is killed: it would keep the run locked.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
