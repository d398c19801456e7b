"""Augmentation on the device: each operation beside Pillow's, chance beside timm's, and runs that use it."""

import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data.auto_augment
import torch
import torch._inductor.config
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_images
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch._inductor.codegen.triton import TritonOverrides
from torchvision import transforms
from torchvision.transforms.functional import adjust_hue

from config.errors import ConfigError
from conftest import TINY, Finished, checked
from data import datasets
from data.batches import BatchSpec, DeviceBatches, make_train_loader
from data.gpu_transforms import color, geometry, rand_augment
from data.gpu_transforms.batch import BatchTransform, exact_division
from data.gpu_transforms.geometry import BICUBIC, BILINEAR, MOVES, NEAREST
from data.gpu_transforms.values import Draw
from data.transforms import training_transform
from runtime.distributed import World
from training import run

INCREASING = timm.data.auto_augment._RAND_INCREASING_TRANSFORMS
EVERY_OPERATION = sorted({*INCREASING, *timm.data.auto_augment._RAND_TRANSFORMS})
LARGEST = {name: rand_augment.TIMM_LEVELS[name][1] for name in MOVES}
RESAMPLING = {NEAREST: Image.NEAREST, BILINEAR: Image.BILINEAR, BICUBIC: Image.BICUBIC}


def photographs_and_noise() -> np.ndarray:
    """uint8 [40, 32, 32, 3]: parts of scikit-learn's two photographs, and noise."""
    chance = np.random.default_rng(0)
    parts = [photo[y : y + 32, x : x + 32] for photo in load_sample_images().images for y, x in PLACES]
    return np.stack([*parts, *chance.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)])


PLACES = np.random.default_rng(0).integers(0, 390, (16, 2))
PIXELS = photographs_and_noise()
COUNT = len(PIXELS)
CPU = torch.device("cpu")
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def to_batch(pixels: np.ndarray, device: str = "cpu") -> torch.Tensor:
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).contiguous()


def to_pixels(batch: torch.Tensor) -> np.ndarray:
    assert batch.dtype == torch.uint8
    return batch.permute(0, 2, 3, 1).cpu().numpy()


def one_by_one(operation: Callable[[Image.Image], Image.Image], pixels: np.ndarray = PIXELS) -> np.ndarray:
    """What Pillow makes of each image."""
    made = [np.asarray(operation(Image.fromarray(image.squeeze()))) for image in pixels]
    return np.stack(made).reshape(len(pixels), *made[0].shape[:2], -1)


def assert_close(ours: np.ndarray, theirs: np.ndarray, levels: int = 0, share: float = 0.0) -> None:
    """All values within some grey levels, all but a share exact."""
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= levels
    assert (difference > 0).mean() <= share


def operate(
    name: str, argument: float, kind: int = BICUBIC, pixels: np.ndarray = PIXELS, device: str = "cpu"
) -> np.ndarray:
    which = torch.zeros(len(pixels), dtype=torch.int64, device=device)
    fill = (124, 116, 104)[: pixels.shape[-1]]
    arguments, kinds = torch.full_like(which, argument, dtype=torch.float32), torch.full_like(which, kind)
    return to_pixels(rand_augment.operate(to_batch(pixels, device), [name], which, arguments, kinds, fill, prob=1))


# Operations, each beside timm's.


def timm_arguments(name: str, magnitude: float, sign: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float, ...]:
    monkeypatch.setattr(timm.data.auto_augment, "_randomly_negate", lambda level: sign * level)
    of_level = timm.data.auto_augment.LEVEL_TO_ARG[name]
    return of_level(magnitude, {}) if of_level else ()


@on_each_device
@pytest.mark.parametrize("name", EVERY_OPERATION)
def test_an_operation_is_timms(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and blends are exact, but for AutoContrast's where Pillow's 85 is 84.99999.

    Moved pixels are within one grey level, and exact but for those where Pillow's sum is a whole number or a hair
    less, which it cuts off.
    """
    levels, share = {"AutoContrast": (1, 0.002)}.get(name, (1, 0.05) if name in MOVES else (0, 0.0))
    for magnitude in (0, 0.5, 2.3, 4, 5, 7.71, 9, 9.6, 10):
        for sign in (1, -1):
            arguments = timm_arguments(name, magnitude, sign, monkeypatch)
            for kind in (BILINEAR, BICUBIC) if name in MOVES else (BICUBIC,):
                theirs = one_by_one(
                    lambda image, arguments=arguments, kind=kind: timm.data.auto_augment.NAME_TO_OP[name](
                        image, *arguments, resample=RESAMPLING[kind], fillcolor=(124, 116, 104)
                    )
                )
                assert_close(operate(name, *arguments or (0,), kind=kind, device=device), theirs, levels, share)


@pytest.mark.parametrize("name", INCREASING)
@pytest.mark.parametrize("size", [8, 21])
def test_an_operation_on_grey_images_of_other_sizes(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(1).integers(30, 200, (6, size, size + 2, 1), dtype=np.uint8)
    (argument,) = timm_arguments(name, 7.3, 1, monkeypatch) or (0,)
    arguments = (argument,) if timm.data.auto_augment.LEVEL_TO_ARG[name] else ()
    theirs = one_by_one(
        lambda image: timm.data.auto_augment.NAME_TO_OP[name](
            image, *arguments, resample=Image.BICUBIC, fillcolor=(124,)
        ),
        pixels,
    )
    assert_close(operate(name, argument, pixels=pixels), theirs, levels=1, share=0.02)


def test_an_operations_argument_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in (INCREASING, timm.data.auto_augment._RAND_TRANSFORMS):
        which = torch.arange(len(names))
        for magnitude in [*range(11), 3.7, 9.31, 14.0]:  # above 10: with mmax
            for sign in (1, -1):
                theirs = [(*timm_arguments(name, magnitude, sign, monkeypatch), 0)[0] for name in names]
                level, signs = torch.full((len(names),), magnitude / 10), torch.full((len(names),), 0.5 - sign / 4)
                ours = rand_augment.timm_argument(names, which, level, signs)
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=f"{magnitude} {sign}")


def test_images_of_a_batch_have_their_own_operations() -> None:
    """As many different ones as there are images; none reaches a neighbor, and -1 changes nothing."""
    names = list(INCREASING)
    which = torch.arange(COUNT) % (len(names) + 1) - 1
    argument = torch.tensor([{"P": 3.0, "S": 100.0, "R": 20.0, "T": 0.2}.get(name[0], 0.3) for name in names])[which]
    kinds = torch.arange(COUNT) % 2 + 1
    fill = (124, 116, 104)
    together = rand_augment.operate(to_batch(PIXELS), names, which, argument, kinds, fill, prob=1)
    for i in range(COUNT):
        expected = PIXELS[i : i + 1]
        if which[i] >= 0:
            expected = operate(names[which[i]], float(argument[i]), int(kinds[i]), expected)
        np.testing.assert_array_equal(to_pixels(together)[i : i + 1], expected)


@pytest.mark.parametrize("magnitude", [0, 5, 12, 30])
def test_torchvisions_operations(magnitude: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact, but AutoContrast as above and pixels of rotated images that come from where two meet."""
    step = transforms.RandAugment(1, magnitude)
    space = step._augmentation_space(step.num_magnitude_bins, (32, 32))
    for i, (name, (_, signed)) in enumerate(space.items()):
        for negative in (0, 1) if signed else (0,):
            answers = iter([*[i, negative][: 1 + signed]] * COUNT)
            with monkeypatch.context() as context:
                context.setattr(torch, "randint", lambda *_, answers=answers: torch.tensor(next(answers)))
                theirs = one_by_one(step)

            def draw(n: int, i: int = i, negative: int = negative) -> torch.Tensor:
                return torch.tensor([(i + 0.5) / len(space), 0.25 if negative else 0.75])[:n, None].expand(n, COUNT)

            ours = to_pixels(rand_augment.torchvision_rand_augment(step, to_batch(PIXELS), draw))
            assert_close(ours, theirs, levels={"AutoContrast": 1, "Rotate": 255}.get(name, 0), share=0.002)


# Crops, flips, color.


@pytest.mark.parametrize("size", [(32, 32), (20, 24), (48, 40)])
@pytest.mark.parametrize("kind", [BILINEAR, BICUBIC])
@on_each_device
def test_a_resized_crop_is_pillows(size: tuple[int, int], kind: int, device: str) -> None:
    """Exact but where a pass of Pillow's is halfway between two grey levels: in 2 % of the pixels, one off each."""
    chance = np.random.default_rng(2)
    boxes = []
    for height, width in chance.integers(8, 33, (COUNT, 2)).tolist():
        boxes.append((chance.integers(0, 33 - height), chance.integers(0, 33 - width), height, width))
    boxes[0] = (0, 0, 32, 32)
    ours = geometry.resized_crop(
        to_batch(PIXELS, device),
        *torch.tensor(np.array(boxes), dtype=torch.float32, device=device).T,
        size,
        torch.full((COUNT,), kind, device=device),
    )
    remaining = iter(boxes)

    def crop(image: Image.Image) -> Image.Image:
        top, left, height, width = next(remaining)
        box = (left, top, left + width, top + height)
        return image.crop(box).resize(size[::-1], RESAMPLING[kind])

    assert_close(to_pixels(ours), one_by_one(crop), levels=2, share=0.02)


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


@pytest.mark.parametrize("turn", [-0.5, -0.05, 0.0, 0.03, 0.2])
@on_each_device
def test_hue_is_torchvisions(turn: float, device: str) -> None:
    """Exact but for one step of hue, six grey levels at most, in half a percent of the pixels."""
    pixels = np.concatenate([PIXELS, PIXELS // 64, PIXELS[..., :1].repeat(3, -1), PIXELS | 252])
    ours = color.adjust_hue(to_batch(pixels, device), torch.full((len(pixels),), turn, device=device))
    assert_close(to_pixels(ours), one_by_one(lambda image: adjust_hue(image, turn), pixels), levels=6, share=0.005)


def test_color_jitter_is_torchvisions_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    step = transforms.ColorJitter(0.4, 0.3, 0.5, 0.1)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        uniforms = torch.rand(4, generator=torch.Generator().manual_seed(order[0]))
        limits = (step.brightness, step.contrast, step.saturation, step.hue)
        factors = [low + (high - low) * float(u) for (low, high), u in zip(limits, uniforms, strict=True)]
        places = torch.tensor(order).argsort() / 4
        answers = iter([uniforms, places])
        ours = color.color_jitter(
            step, to_batch(PIXELS), lambda _, answers=answers: next(answers)[:, None].expand(-1, COUNT)
        )
        drawn = (torch.tensor(order), *factors)
        monkeypatch.setattr(transforms.ColorJitter, "get_params", lambda *_, drawn=drawn: drawn)
        assert_close(to_pixels(ours), one_by_one(step), levels=9, share=0.01)


# Chance, beside that of the CPU path.


def draws(count: int) -> Draw:
    chance = torch.Generator().manual_seed(0)
    return lambda n: torch.rand(n, count, generator=chance)


def augmented(transform: transforms.Compose, pixels: np.ndarray) -> np.ndarray:
    on_batches = BatchTransform(transform, (3, 32, 32), CPU)
    return to_pixels(on_batches(to_batch(pixels), draws(len(pixels))(on_batches.numbers)))


def assert_same_frequencies(*counts: Counter) -> None:
    """The chi-square test of homogeneity; values that are rare are counted together."""
    values = [value for value in set().union(*counts) if sum(count[value] for count in counts) >= 20]
    table = np.array([[*(count[value] for value in values), 0] for count in counts])
    table[:, -1] = [count.total() for count in counts] - table.sum(1)
    table = table[:, table.sum(0) > 0]
    if table.shape[1] > 1:
        assert stats.chi2_contingency(table).pvalue > 1e-4


def photograph_data(size: tuple[int, int] = (32, 32)) -> datasets.DataSplits:
    images = datasets.Split(PIXELS, np.arange(COUNT) % 10)
    return datasets.DataSplits(images, None, images, [str(i) for i in range(10)], 3, size, (0.5,) * 3, (0.25,) * 3)


def transform_of(*overrides: str) -> transforms.Compose:
    transform = training_transform(checked("data=cifar10", *overrides).augmentation, photograph_data())
    assert isinstance(transform, transforms.Compose)
    return transform


@pytest.mark.parametrize("name", ["rand-m9-mstd0.5-inc1", "rand-m6-n3-p0.8-mstd101-mmax12"])
def test_operations_magnitudes_and_interpolations_are_drawn_as_timms(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    """One photograph many times: for every pixel the mean of its value and of its square, in standard errors."""
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


# Without waiting, and without what cannot be.


@pytest.mark.parametrize("name", ["paper", "short", "simple", "light", "randaugment"])
def test_nothing_waits_for_the_device(name: str) -> None:
    """On tensors that have no values, whoever looks at one fails."""
    steps, nowhere = transform_of(f"augmentation={name}", "augmentation.vflip=0.5"), torch.device("meta")
    transform = BatchTransform(steps, (3, 32, 32), nowhere)
    images = torch.empty(64, 3, 32, 32, dtype=torch.uint8, device=nowhere)
    made = transform(images, torch.empty(transform.numbers, 64, device=nowhere))
    assert (made.shape, made.dtype) == (images.shape, torch.uint8)


def test_it_can_be_compiled_as_one_graph() -> None:
    transform = BatchTransform(transform_of("augmentation=paper"), (3, 32, 32), CPU)
    compiled = torch.compile(transform, fullgraph=True, backend="eager")
    uniforms = draws(COUNT)(transform.numbers)
    assert torch.equal(compiled(to_batch(PIXELS), uniforms), transform(to_batch(PIXELS), uniforms))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "short", "simple", "light"])
def test_compiled_on_a_gpu_it_is_what_it_is_on_the_cpu(name: str) -> None:
    """Compiled, but for one grey level where a product is fused with a sum; beside the CPU, but for a few pixels."""
    steps, gpu = transform_of(f"augmentation={name}"), torch.device("cuda")
    transform = BatchTransform(steps, (3, 32, 32), gpu)
    uniforms = draws(COUNT)(transform.numbers)
    eager = to_pixels(transform(to_batch(PIXELS, "cuda"), uniforms.cuda()))
    compiled = torch.compile(transform, fullgraph=True, dynamic=False, options=exact_division())
    assert_close(to_pixels(compiled(to_batch(PIXELS, "cuda"), uniforms.cuda())), eager, levels=1, share=1e-4)
    on_the_cpu = to_pixels(BatchTransform(steps, (3, 32, 32), CPU)(to_batch(PIXELS), uniforms))
    assert (eager != on_the_cpu).mean() < 0.005


def test_compiled_it_divides_as_eager_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own division is approximate, so that grey levels would differ by one."""
    compiled: list[dict[str, Any]] = []

    def compile_as_asked(transform: Any, **options: Any) -> Any:
        compiled.append(options)
        return transform

    monkeypatch.setattr(torch, "compile", compile_as_asked)
    batches("augmentation=paper", "trainer.compile=true")
    (asked,) = compiled
    with torch._inductor.config.patch(asked["options"]):
        assert "div_rn" in TritonOverrides.truediv(*(FloatVariable(name) for name in "xy"))


class FloatVariable(str):
    """As Inductor names a value in the code that it generates."""

    dtype = torch.float32


def batches(*overrides: str, images: datasets.DataSplits | None = None, world: World | None = None) -> Any:
    config = checked("data=cifar10", "data.batch_size=16", "data.pipeline=device", *overrides)
    return make_train_loader(images or photograph_data(), config, world)


@pytest.mark.parametrize("name", ["rand-m9-t3a", "rand-m9-inc1-tweights"])
def test_an_operation_that_is_missing_is_a_clear_error(name: str) -> None:
    with pytest.raises(ConfigError, match=r"data.pipeline=device: .*; expected .*data.pipeline=cpu"):
        batches("augmentation=paper", f"augmentation.auto_augment={name}")


def test_images_that_stay_files_are_a_clear_error() -> None:
    files = datasets.Split(np.array(["a.png", "b.png"]), np.arange(2))
    images = datasets.DataSplits(files, None, files, ["a", "b"], 3, (224, 224), (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ConfigError, match=r"data.pipeline=device: .*these stay files; expected data.pipeline=cpu"):
        batches("augmentation=none", images=images)


# Batches and runs.


def test_switched_off_it_is_the_cpus_batches() -> None:
    for device, cpu in zip(
        batches("augmentation=none"), batches("augmentation=none", "data.pipeline=cpu"), strict=True
    ):
        assert torch.equal(device[0], cpu[0])
        assert torch.equal(device[1], cpu[1])
    randomly_nothing = ("augmentation=paper", "augmentation.scale=[1.0,1.0]", "augmentation.ratio=[1.0,1.0]",
                        "augmentation.hflip=0", "augmentation.auto_augment=rand-m9-p0")  # fmt: skip
    for device, cpu in zip(batches(*randomly_nothing), batches("augmentation=none"), strict=True):
        assert torch.equal(device[0], cpu[0])


@pytest.mark.parametrize("size", [(20, 20), (40, 60)])
def test_without_a_random_crop_images_are_resized_as_on_the_cpu(size: tuple[int, int]) -> None:
    images = photograph_data(size)
    pairs = zip(
        batches("augmentation=none", images=images),
        batches("augmentation=none", "data.pipeline=cpu", "data.num_workers=0", images=images),
        strict=True,
    )
    for device, cpu in pairs:
        assert_close(to_pixels(device[0]), to_pixels(cpu[0]), levels=2, share=0.02)


def test_a_batch_depends_on_the_seed_the_epoch_and_its_number_alone() -> None:
    def epoch(number: int, start: int = 0, seed: int = 0) -> list[torch.Tensor]:
        loader = batches("augmentation=paper", f"seed={seed}")
        loader.sampler.epoch, loader.sampler.start = number, start
        torch.manual_seed(number + start)  # without effect
        return [pixels for pixels, _ in loader]

    whole = epoch(2)
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], epoch(2, start=1), strict=True))
    assert not torch.equal(whole[0], epoch(1)[0])
    assert not torch.equal(whole[0], epoch(2, seed=1)[0])


def test_a_teams_shares_are_the_batch() -> None:
    shares = [batches("augmentation=paper", world=World(rank, 2)) for rank in range(2)]
    for alone, *parts in zip(batches("augmentation=paper"), *shares, strict=True):
        together = {image.numpy().tobytes() for pixels, _ in parts for image in pixels}
        assert together == {image.numpy().tobytes() for image in alone[0]}


@pytest.mark.slow
def test_a_run_learns(train: Callable[..., Finished]) -> None:
    done = train(
        "data.pipeline=device", "augmentation=randaugment", "model.d_model=32", "model.depth=4",
        "model.kernel_size=3", "data.train_fraction=1", "trainer.epochs=8",
    )  # fmt: skip
    assert done.summary["status"] == "completed"
    assert done.summary["test/accuracy"] >= 0.93


@pytest.mark.slow
def test_an_interrupted_run_ends_as_if_it_had_never_stopped(
    train: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["data.pipeline=device", "augmentation=paper", "model.kernel_size=3", "data.train_fraction=0.4"]
    uninterrupted = train(*overrides).metrics
    config = checked(*TINY, *overrides, f"output_dir={tmp_path}", "sweep=stopped")
    make, made = DeviceBatches.__getitem__, []

    def make_and_stop(self: DeviceBatches, key: BatchSpec) -> Any:
        made.append(key)
        if len(made) == 20:  # of 34 in two epochs
            os.kill(os.getpid(), signal.SIGTERM)
        return make(self, key)

    with monkeypatch.context() as context:
        context.setattr(DeviceBatches, "__getitem__", make_and_stop)
        with pytest.raises(SystemExit):
            run.run(config, overrides)
    run.run(config, overrides)
    (folder,) = [path.parent for path in (tmp_path / "stopped").glob("*/config.yaml")]
    columns = ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]
    assert Finished(folder, None).metrics[columns].equals(uninterrupted[columns])
