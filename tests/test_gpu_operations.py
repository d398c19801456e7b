"""Tests of augmentation on the device: each operation compared with Pillow, timm and torchvision."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm.data.auto_augment
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms.functional import adjust_hue

from photographs import COUNT, PIXELS, assert_close, one_by_one, to_batch, to_pixels
from pipeline.gpu_transforms import color, geometry, rand_augment
from pipeline.gpu_transforms.geometry import BICUBIC, BILINEAR, MOVES, NEAREST

INCREASING = timm.data.auto_augment._RAND_INCREASING_TRANSFORMS
EVERY_OPERATION = sorted({*INCREASING, *timm.data.auto_augment._RAND_TRANSFORMS})
RESAMPLING = {
    NEAREST: Image.Resampling.NEAREST, BILINEAR: Image.Resampling.BILINEAR, BICUBIC: Image.Resampling.BICUBIC
}  # fmt: skip
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def operate(
    name: str, argument: float, kind: int = BICUBIC, pixels: np.ndarray = PIXELS, device: str = "cpu"
) -> np.ndarray:
    which = torch.zeros(len(pixels), dtype=torch.int64, device=device)
    fill = (124, 116, 104)[: pixels.shape[-1]]
    arguments, kinds = torch.full_like(which, argument, dtype=torch.float32), torch.full_like(which, kind)
    return to_pixels(rand_augment.operate(to_batch(pixels, device), [name], which, arguments, kinds, fill, prob=1))


# Operations, each beside timm's.


def timms(name: str, arguments: tuple[float, ...], options: dict[str, Any], image: Image.Image) -> Image.Image:
    operations: dict[str, Any] = timm.data.auto_augment.NAME_TO_OP
    return operations[name](image, *arguments, **options)


def timm_arguments(name: str, magnitude: float, sign: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float, ...]:
    monkeypatch.setattr(timm.data.auto_augment, "_randomly_negate", lambda level: sign * level)
    of_level = timm.data.auto_augment.LEVEL_TO_ARG[name]
    return of_level(magnitude, {}) if of_level else ()


@on_each_device
@pytest.mark.parametrize("name", EVERY_OPERATION)
def test_an_operation_is_timms(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and blends are exact, except AutoContrast where Pillow's 85 is 84.99999.

    Moved pixels are within one grey level. They are exact unless Pillow's sum is a whole number or slightly less, which
    it cuts off.
    """
    levels, share = {"AutoContrast": (1, 0.002)}.get(name, (1, 0.05) if name in MOVES else (0, 0.0))
    for magnitude in (0, 0.5, 2.3, 4, 5, 7.71, 9, 9.6, 10):
        for sign in (1, -1):
            arguments = timm_arguments(name, magnitude, sign, monkeypatch)
            (argument,) = arguments or (0,)
            for kind in (BILINEAR, BICUBIC) if name in MOVES else (BICUBIC,):
                fixed = {"resample": RESAMPLING[kind], "fillcolor": (124, 116, 104)}
                theirs = one_by_one(partial(timms, name, arguments, fixed))
                assert_close(operate(name, argument, kind, device=device), theirs, levels, share)


@pytest.mark.parametrize("name", INCREASING)
@pytest.mark.parametrize("size", [8, 21])
def test_an_operation_on_grey_images_of_other_sizes(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(1).integers(30, 200, (6, size, size + 2, 1), dtype=np.uint8)
    (argument,) = timm_arguments(name, 7.3, 1, monkeypatch) or (0,)
    arguments = (argument,) if timm.data.auto_augment.LEVEL_TO_ARG[name] else ()
    fixed = {"resample": Image.Resampling.BICUBIC, "fillcolor": (124,)}
    theirs = one_by_one(
        partial(timms, name, arguments, fixed),
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
    """Each image gets a different operation, which changes no other image; -1 changes nothing."""
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
    """They are exact, except AutoContrast as above and pixels of rotated images that lie between two others."""
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
    """It is exact but for 2 % of the pixels, where a pass of Pillow's is halfway between two grey levels."""
    chance = np.random.default_rng(2)
    boxes = []
    for height, width in chance.integers(8, 33, (COUNT, 2)).tolist():
        boxes.append((chance.integers(0, 33 - height), chance.integers(0, 33 - width), height, width))
    boxes[0] = (0, 0, 32, 32)
    ours = geometry.resized_crop(  # type: ignore[call-arg]
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


@pytest.mark.parametrize("turn", [-0.5, -0.05, 0.0, 0.03, 0.2])
@on_each_device
def test_hue_is_torchvisions(turn: float, device: str) -> None:
    """It is exact, except half a percent of the pixels, which differ by one step of hue, at most six grey levels."""
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

        def draw(n: int, answers: Iterator[torch.Tensor] = answers) -> torch.Tensor:
            return next(answers)[:, None].expand(-1, COUNT)

        ours = color.color_jitter(step, to_batch(PIXELS), draw)
        drawn = (torch.tensor(order), *factors)
        monkeypatch.setattr(transforms.ColorJitter, "get_params", lambda *_, drawn=drawn: drawn)
        assert_close(to_pixels(ours), one_by_one(step), levels=9, share=0.01)
