"""Batches for training and evaluation.

Every image of a batch is a pure function of (seed, epoch, batch, position in the batch). A run is therefore the same
for any number of workers, and for any number of GPUs that share its batches.
"""

import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from config.errors import ConfigError
from config.schema import Config
from data.balance import balanced_order
from data.image_files import DataError, unreadable_error
from data.splits import DataSplits, Split
from pipeline import transforms
from pipeline.gpu_transforms.batch import BatchTransform, exact_division
from pipeline.workers import Workers
from runtime.cores import cores
from runtime.distributed import World
from runtime.rng import preserve_rng_state


@dataclass(frozen=True)
class BatchSpec:
    """The specification of a batch, or of a rank's share of it.

    Attributes:
        indices: Indices of the images in the split, [images].
        positions: Positions of the images in the whole batch, [images].
        seeds: Seeds for the augmentation of each image on the CPU, [images].
        batch_seed: Seed for the augmentation of the whole batch on the device.
        batch_size: Images of the whole batch.
    """

    indices: NDArray[np.int64]
    positions: NDArray[np.int64]
    seeds: NDArray[np.integer]
    batch_seed: int
    batch_size: int


class DistributedBatchSampler:
    """A sampler of an epoch's batches: every image once, shuffled if there is a seed.

    The last batch may be smaller. Each rank gets its share of every batch. Images that mixup or cutmix pairs, the first
    with the last and so on, stay on one rank.

    Args:
        length: Images of the split.
        batch_size: Images of a batch over all ranks.
        seed: Seed of the order; None keeps the order of the split.
        pairs: Drop one image if their number is odd, for mixup and cutmix.
        world: The process's rank among all.
        balanced: Labels of the images, for epochs that have equally many images of each class.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int | None,
        pairs: bool = False,
        world: World | None = None,
        balanced: NDArray[np.int64] | None = None,
    ) -> None:
        self.length = length - length % 2 if pairs else length
        self.drawn_from, self.batch_size, self.seed, self.balanced = length, batch_size, seed, balanced
        self.world = world or World()
        left_over = self.length % batch_size
        if seed is not None and left_over < 2 * self.world.size > 2:
            self.length -= left_over  # Every rank needs a pair to train on.
        self.epoch = 0
        self.start = 0  # completed batches of the epoch

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def size(self, batch: int) -> int:
        """Count the images of a batch over all ranks; batches are numbered from 0."""
        return min(self.batch_size, self.length - batch * self.batch_size)

    def ranks(self, batch: int) -> NDArray[np.int64]:
        """Assign each image of a batch to a rank."""
        positions = np.arange(self.size(batch))
        return np.minimum(positions, positions[::-1]) % self.world.size

    def smallest_share(self, batch: int) -> int:
        """Count the images of the rank that gets the fewest."""
        return int(np.bincount(self.ranks(batch), minlength=self.world.size).min())

    def micro_batches(self, batch: int, most: int) -> int:
        """Return the number of micro-batches: at most `most`, and at most the images of any rank."""
        return min(most, self.smallest_share(batch))

    def indices(self) -> NDArray[np.int64]:
        """List the indices of this rank's images in the order of its batches."""
        return np.concatenate([spec.indices for spec in self])

    def __iter__(self) -> Iterator[BatchSpec]:
        order = np.arange(self.drawn_from)
        if self.seed is not None:
            random = np.random.default_rng([self.seed, self.epoch])
            order = random.permutation(order) if self.balanced is None else balanced_order(self.balanced, random)
        for batch in range(self.start, len(self)):
            size = self.size(batch)
            seeds = np.random.SeedSequence([self.seed or 0, self.epoch, batch]).generate_state(size)
            mine = np.flatnonzero(self.ranks(batch) == self.world.rank)
            if len(mine):
                indices = order[batch * self.batch_size + mine]
                yield BatchSpec(indices, mine, seeds[mine], int(seeds[0]), size)


class Batches:
    """Batches augmented on the CPU: uint8 [batch, height, width, channels] and labels [batch]."""

    def __init__(self, split: Split, transform: transforms.Transform | None) -> None:
        self.split, self.transform = split, transform

    def __getitem__(self, spec: BatchSpec) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Load and augment the images of a batch.

        Raises:
            DataError: An image cannot be read.
        """
        if self.transform is None:
            pixels = self.split.images[spec.indices]
        else:
            seeded = zip(spec.indices.tolist(), spec.seeds.tolist(), strict=True)
            try:
                with preserve_rng_state():
                    pixels = np.stack([self.augment(index, seed) for index, seed in seeded])
            except DataError as error:
                raise unreadable_error(self.split.images.tolist(), error) from error
        return pixels.reshape(*pixels.shape[:3], -1), self.split.labels[spec.indices]

    def augment(self, index: int, seed: int) -> NDArray[np.uint8]:
        """Augment one image of the split with its own seed for Python's, NumPy's and PyTorch's generators."""
        assert self.transform is not None
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)
        return np.asarray(self.transform(self.split[index]))


class DeviceBatches:
    """Batches of images kept and augmented on the device: uint8 [batch, channels, height, width] and labels [batch].

    Args:
        split: Decoded images with their labels.
        transform: The CPU's transform of one image, applied to whole batches; None for evaluation.
        compiled_size: Images of the batches whose augmentation is compiled, to a few kernels instead of hundreds.
    """

    def __init__(
        self, split: Split, transform: transforms.Transform | None, device: torch.device, compiled_size: int = 0
    ) -> None:
        self.device, self.compiled_size = device, compiled_size
        self.pixels = torch.from_numpy(split.images).to(device).permute(0, 3, 1, 2).contiguous()
        self.labels = torch.from_numpy(split.labels).to(device)
        self.generator = torch.Generator(device)
        self.transform = BatchTransform(transform, self.pixels.shape[1:], device) if transform else None
        self.compiled: Any = None
        if self.transform and compiled_size:
            self.compiled = torch.compile(self.transform, dynamic=False, options=exact_division())

    def __getitem__(self, spec: BatchSpec) -> tuple[Tensor, Tensor]:
        indices, positions = (
            torch.from_numpy(part).to(self.device, non_blocking=True) for part in (spec.indices, spec.positions)
        )
        pixels = self.pixels.index_select(0, indices)
        if self.transform:
            # The numbers are drawn for the whole batch, which makes it the same for any number of GPUs.
            self.generator.manual_seed(spec.batch_seed)
            shape = (spec.batch_size, self.transform.numbers)
            uniforms = torch.rand(shape, generator=self.generator, device=self.device)[positions].T
            transform = self.compiled if spec.batch_size == self.compiled_size else self.transform
            pixels = transform(pixels, uniforms)
        return pixels, self.labels.index_select(0, indices)


class Loader:
    """A split's batches in the sampler's order: uint8 [batch, channels, height, width] and labels [batch].

    Args:
        num_workers: Processes that make batches; 0 makes them in this process.
        pin_memory: Return tensors in pinned memory, for copies to a GPU.
        max_bytes: Bytes of a batch's pixels at most.
    """

    def __init__(
        self,
        batches: Batches | DeviceBatches,
        sampler: DistributedBatchSampler,
        num_workers: int = 0,
        pin_memory: bool = False,
        max_bytes: int = 0,
    ) -> None:
        self.batches, self.sampler, self.num_workers, self.pin_memory = batches, sampler, num_workers, pin_memory
        self.max_bytes = max_bytes
        self.workers: Workers | None = None
        if sampler.world.size > 1:
            self.workers = self.start_workers()  # Processes must not be forked after NCCL has started.

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches, on the device if their images are kept there.

        Raises:
            DataError: An image cannot be read.
            RuntimeError: A worker was killed.
        """
        workers = self.workers or self.start_workers()
        self.workers = None  # If the epoch ends early, its workers end, too.
        for batch in workers.map(self.sampler):
            yield self.tensors(batch)
        self.workers = workers

    def start_workers(self) -> Workers:
        """Start the worker processes, or none if num_workers=0."""
        return Workers(self.batches.__getitem__, self.num_workers, self.max_bytes)

    def tensors(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Convert a batch's arrays to tensors, with the channels first; a batch on the device is left as it is."""
        pixels, labels = batch
        if isinstance(pixels, Tensor):
            return pixels, labels
        tensors = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels)
        return (tensors[0].pin_memory(), tensors[1].pin_memory()) if self.pin_memory else tensors


def make_train_loader(
    data: DataSplits, config: Config, world: World | None = None, device: torch.device | str = "cpu"
) -> Loader:
    """Make the loader of training batches.

    Raises:
        ConfigError: The images or the augmentation do not suit data.pipeline=device, or a rank would have no images.
    """
    transform = transforms.training_transform(config.augmentation, data)
    pairs = transforms.mixes(config.augmentation)
    balanced = data.train.labels if config.data.sampler == "balanced" else None
    sampler = DistributedBatchSampler(len(data.train), config.data.batch_size, config.seed, pairs, world, balanced)
    size = sampler.world.size
    if config.data.batch_size < 2 * size > 2:
        raise ConfigError(
            f"data.batch_size={config.data.batch_size}: each of the {size} ranks needs two images of every batch; "
            f"expected at least {2 * size}"
        )
    if not len(sampler):
        raise ConfigError(
            f"data.train_fraction={config.data.train_fraction}: only {len(data.train)} training images remain; "
            f"expected at least {2 * size}"
        )
    if config.data.pipeline == "device":
        if not data.train.decoded:
            raise ConfigError(
                "data.pipeline=device: needs images of one size, at most 1 GiB of them decoded. Fix: data.pipeline=cpu"
            )
        compiled_size = config.data.batch_size if config.trainer.compile else 0
        batches = DeviceBatches(data.train, transform, torch.device(device), compiled_size)
        return Loader(batches, sampler)
    return make_loader(data, data.train, transform, sampler, config)


def make_eval_loader(split: Split, data: DataSplits, config: Config, world: World | None = None) -> Loader:
    """Make the loader of a split for evaluation, in the order of its images."""
    transform = transforms.evaluation_transform(config.data.crop_fraction, data)
    sampler = DistributedBatchSampler(len(split), config.data.batch_size, seed=None, world=world)
    return make_loader(data, split, transform, sampler, config)


class Loaders(NamedTuple):
    """The loaders of a run; `val` is None without validation."""

    train: Loader
    val: Loader | None
    test: Loader


def make_loaders(data: DataSplits, config: Config, world: World, device: torch.device) -> Loaders:
    """Make the loaders of training, validation and test batches.

    Raises:
        ConfigError: See make_train_loader().
    """
    train = make_train_loader(data, config, world, device)
    val = make_eval_loader(data.val, data, config, world) if data.val else None
    return Loaders(train, val, make_eval_loader(data.test, data, config, world))


def make_loader(
    data: DataSplits,
    split: Split,
    transform: transforms.Transform | None,
    sampler: DistributedBatchSampler,
    config: Config,
) -> Loader:
    """Make a loader of batches that are augmented on the CPU."""
    workers = config.data.num_workers
    if transform is None:
        workers = 0  # A batch is one slice of an array.
    elif workers is None:
        workers = spare_cores()
    pin_memory = config.trainer.device in ("auto", "cuda") and torch.cuda.is_available()
    max_bytes = sampler.size(0) * data.channels * math.prod(data.image_size)
    return Loader(Batches(split, transform), sampler, workers, pin_memory, max_bytes)


def spare_cores() -> int:
    """Count the cores for loading images: all but one of this process's share, at least 1 and at most 16."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun sets OMP_NUM_THREADS=1 on any machine
        share = cores() // int(os.environ["LOCAL_WORLD_SIZE"])
    else:
        share = min(cores(), torch.get_num_threads())
    return min(16, max(1, share - 1))
