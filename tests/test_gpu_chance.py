"""Tests of random augmentation on the device: its distribution is that of timm and torchvision on the CPU."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm.data.auto_augment
import torch
from PIL import Image
from scipy import stats
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from photographs import CPU, PIXELS, draws, one_by_one, to_batch, to_pixels, transform_of
from pipeline.gpu_transforms import geometry, rand_augment
from pipeline.gpu_transforms.batch import BatchTransform
from pipeline.gpu_transforms.geometry import BICUBIC, BILINEAR, MOVES, NEAREST

LARGEST = {name: rand_augment.TIMM_LEVELS[name][1] for name in MOVES}
RESAMPLING = {
    NEAREST: Image.Resampling.NEAREST, BILINEAR: Image.Resampling.BILINEAR, BICUBIC: Image.Resampling.BICUBIC
}  # fmt: skip


def augmented(transform: transforms.Compose, pixels: np.ndarray) -> np.ndarray:
    on_batches = BatchTransform(transform, (3, 32, 32), CPU)
    return to_pixels(on_batches(to_batch(pixels), draws(len(pixels))(on_batches.numbers)))


def assert_same_frequencies(*counts: Counter[Any]) -> None:
    """Test two counts for equal frequencies (chi-square); rare values are counted together."""
    values = [value for value in set().union(*counts) if sum(count[value] for count in counts) >= 20]
    table = np.array([[*(count[value] for value in values), 0] for count in counts])
    table[:, -1] = [count.total() for count in counts] - table.sum(1)
    table = table[:, table.sum(0) > 0]
    if table.shape[1] > 1:
        assert stats.chi2_contingency(table).pvalue > 1e-4


@pytest.mark.parametrize("name", ["rand-m9-mstd0.5-inc1", "rand-m6-n3-p0.8-mstd101-mmax12"])
def test_operations_and_magnitudes_are_drawn_as_by_timm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (step,) = (
        step
        for step in transform_of("augmentation=paper", f"augmentation.auto_augment={name}").transforms
        if isinstance(step, timm.data.auto_augment.RandAugment)
    )
    count = 20_000
    ours, theirs = defaultdict(list), defaultdict(list)

    def record_batch(images: Any, names: Any, which: Any, argument: Any, kind: Any, fill: Any, prob: Any) -> Any:
        assert tuple(fill) == tuple(step.ops[0].kwargs["fillcolor"])
        for i, value, code in zip(which.tolist(), argument.tolist(), kind.tolist(), strict=True):
            ours[names[i] if i >= 0 else "none"].append((value, RESAMPLING[code]))
        return images

    def record(name: str) -> Callable[..., Image.Image]:
        def operation(image: Image.Image, *arguments: float, resample: Any, **_: Any) -> Image.Image:
            theirs[name].append(((*arguments, 0)[0], random.choice(resample)))
            return image

        return operation

    with monkeypatch.context() as context:
        context.setattr(rand_augment, "operate", record_batch)
        rand_augment.rand_augment(step, torch.zeros(count, 3, 1, 1), draws(count))
        random.seed(0)
        np.random.seed(0)
        for op in step.ops:
            context.setattr(op, "aug_fn", record(op.name))
        for _ in range(count):
            step(Image.new("L", (1, 1)))
    theirs["none"] = [(0, None)] * (count * step.num_layers - sum(map(len, theirs.values())))
    assert_same_frequencies(*(Counter({name: len(made[name]) for name in made}) for made in (ours, theirs)))
    for op in step.ops:
        arguments = [[argument for argument, _ in made[op.name]] for made in (ours, theirs)]
        assert stats.ks_2samp(*arguments).pvalue > 1e-4
        assert_same_frequencies(*(Counter(int(kind) for _, kind in made[op.name]) for made in (ours, theirs)))
    levels = [
        [abs(argument) for name in MOVES for argument in np.divide([a for a, _ in made[name]], LARGEST[name])]
        for made in (ours, theirs)
    ]
    assert stats.ks_2samp(*levels).pvalue > 1e-4  # of all together, which tells more


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["augmentation=paper"], 4000),
        (["augmentation=short"], 2000),
        (["augmentation=simple"], 1500),
        (["augmentation=light", "data.hflip=0.2"], 2000),
    ],
)
def test_augmented_images_are_distributed_as_those_of_the_cpu(overrides: list[str], count: int) -> None:
    """One photograph is augmented many times; mean and mean square of each pixel agree within their standard errors."""
    transform = transform_of(*overrides)
    pixels = np.repeat(PIXELS[3:4], count, 0)
    ours = augmented(transform, pixels)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    theirs = one_by_one(transform, pixels)
    for power in (1, 2):
        a, b = (images.astype(np.float64) ** power for images in (ours, theirs))
        errors = np.sqrt((a.var(0) + b.var(0)) / count)
        assert np.abs((a.mean(0) - b.mean(0)) / errors).max() < 5.5


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [((32, 32), (0.75, 1.0), (0.75, 1.3333)), ((24, 36), (0.08, 1.0), (0.75, 1.3333)), ((12, 40), (0.9, 1.0), (1, 2))],
)
def test_crop_boxes_are_distributed_as_timms(size: tuple[int, int], scale: Any, ratio: Any) -> None:
    count = 5000
    random.seed(0)
    image = Image.new("L", size[::-1])
    theirs = [RandomResizedCropAndInterpolation.get_params(image, scale, ratio) for _ in range(count)]
    ours = geometry.crop_boxes(size, scale, ratio, draws(count))
    for column, values in zip(np.array(theirs).T, ours, strict=True):
        assert_same_frequencies(Counter(column.tolist()), Counter(values.int().tolist()))


def test_shifts_are_torchvisions() -> None:
    step = transforms.RandomCrop((32, 32), padding=[4, 3])
    pixels = np.repeat(PIXELS[:1], 4000, 0)
    ours = to_pixels(geometry.random_shift(step, to_batch(pixels), draws(len(pixels))))
    torch.manual_seed(0)
    theirs = one_by_one(step, pixels[:1000])
    counts = [Counter(image.tobytes() for image in images) for images in (ours, theirs)]
    assert set(counts[0]) == set(counts[1])  # all 9 · 7 shifts and no others
    assert_same_frequencies(*counts)


@pytest.mark.parametrize("axis", [1, 2])
def test_flips(axis: int) -> None:
    step, ours = (
        (transforms.RandomVerticalFlip(0.3), geometry.random_vflip),
        (transforms.RandomHorizontalFlip(0.3), geometry.random_hflip),
    )[axis - 1]
    pixels = np.repeat(PIXELS[:1], 2000, 0)
    images = to_pixels(ours(step, to_batch(pixels), draws(len(pixels))))
    flipped = (images == np.flip(pixels, axis)).all((1, 2, 3))
    assert (flipped | (images == pixels).all((1, 2, 3))).all()
    assert stats.binomtest(int(flipped.sum()), len(pixels), 0.3).pvalue > 1e-3
