"""Tests of recipes: transforms and targets are those of the sources, and a switch changes its part only."""

import random
from typing import Any

import numpy as np
import pytest
import timm.data.auto_augment
import torch
import torchvision
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation

from config import schema
from config.errors import ConfigError
from config.schema import keys_of
from conftest import checked
from data import datasets
from fake_gpu import count_steps
from pipeline import transforms
from pipeline.batches import make_train_loader
from processes import shipped
from training.metrics import soft_accuracy

VARIANTS = sorted(path.stem for path in shipped("variant/*.yaml"))
PAPER = "experiment=paper_cifar10"


def photographs(size: int = 32, count: int = 64) -> datasets.DataSplits:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    images = datasets.Split(pixels, np.arange(count) % 10)
    return datasets.DataSplits(
        images, None, images, [str(i) for i in range(10)], 3, (size, size), (0.5,) * 3, (0.25,) * 3
    )


def steps(*overrides: str) -> dict[str, Any]:
    """Return the steps of the training transform by their class."""
    transform = transforms.training_transform(checked(*overrides).augmentation, photographs())
    return {type(step).__name__: step for step in transform.transforms} if transform else {}  # type: ignore[attr-defined]


def test_the_papers_transforms() -> None:
    by_class = steps(PAPER)
    assert list(by_class) == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment"]
    crop = by_class["RandomResizedCropAndInterpolation"]
    assert (crop.scale, crop.ratio, crop.size) == ((0.75, 1.0), (0.75, 1.3333), (32, 32))
    assert len(crop.interpolation) == 2  # bilinear or bicubic, at random
    assert by_class["RandomHorizontalFlip"].p == 0.5
    expected = timm.data.auto_augment.rand_augment_transform(
        "rand-m9-mstd0.5-inc1", {"translate_const": 14, "img_mean": (128, 128, 128)}
    )
    assert by_class["RandAugment"].num_layers == expected.num_layers == 2
    for ours, theirs in zip(by_class["RandAugment"].ops, expected.ops, strict=True):
        assert vars(ours) == vars(theirs)


def test_the_rest_of_the_papers_recipe() -> None:
    config = checked(PAPER)
    assert (config.model.d_model, config.model.depth) == (256, 8)
    assert (config.model.kernel_size, config.model.patch_size) == (9, 1)
    assert (config.augmentation.random_erasing, config.augmentation.mixup, config.augmentation.cutmix) == (
        0.25,
        0.5,
        0.5,
    )
    assert isinstance(config.optimizer, schema.Adam)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.eps) == ("adamw", 0.01, 1e-3)
    assert config.optimizer.weight_decay == 0.01
    assert (config.scheduler.name, config.trainer.epochs, config.data.batch_size) == ("one_cycle", 200, 64)
    assert (config.trainer.clip_grad_norm, config.trainer.label_smoothing) == (1.0, 0.1)
    assert config.data.mean == [0.4914, 0.4822, 0.4465]
    assert config.data.std == [0.2471, 0.2435, 0.2616]


def test_the_short_recipes_transforms() -> None:
    by_class = steps("experiment=short_cifar10")
    assert list(by_class) == ["RandomHorizontalFlip", "RandAugment"]
    assert isinstance(by_class["RandAugment"], torchvision.transforms.RandAugment)
    assert (by_class["RandAugment"].num_ops, by_class["RandAugment"].magnitude) == (2, 12)
    jittered = steps("experiment=short_cifar10", "augmentation.brightness=0.2")
    assert list(jittered) == ["RandomHorizontalFlip", "RandAugment", "ColorJitter"]


def test_convmixerlibs_weak_augmentation() -> None:
    by_class = steps("augmentation=simple")
    jitter = by_class["ColorJitter"]
    assert (jitter.hue, jitter.saturation) == ((-0.05, 0.05), (0.95, 1.05))
    assert (jitter.contrast, jitter.brightness) == ((0.9, 1.1), (0.9, 1.1))
    assert by_class["RandomVerticalFlip"].p == 0.5


@pytest.mark.parametrize(
    ("override", "step"),
    [
        ("augmentation.scale=[1.0,1.0]", None),
        ("augmentation.hflip=0", "RandomHorizontalFlip"),
        ("augmentation.auto_augment=null", "RandAugment"),
        ("augmentation.mixup=0", None),
        ("augmentation.random_erasing=0", None),
    ],
)
def test_a_switch_changes_its_part_alone(override: str, step: str | None) -> None:
    before, after = checked(PAPER), checked(PAPER, override)
    changed = [path for (path, a, _), (_, b, _) in zip(keys_of(before), keys_of(after), strict=True) if a != b]
    assert changed == [override.partition("=")[0]]
    assert set(steps(PAPER)) - set(steps(PAPER, override)) == ({step} if step else set())
    crops = steps(PAPER, override)["RandomResizedCropAndInterpolation"].scale
    assert crops == ((1.0, 1.0) if "scale" in override else (0.75, 1.0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_changes_what_its_name_says(variant: str) -> None:
    changed = {
        path
        for (path, a, _), (_, b, _) in zip(
            keys_of(checked(PAPER)), keys_of(checked(PAPER, f"variant={variant}")), strict=True
        )
        if a != b
    }
    assert changed <= {
        "baseline": set(),
        "layer_norm": {"model.norm"},
        "residual_pointwise": {"model.residual_pointwise"},
        "no_residual": {"model.residual_depthwise"},
        "no_randaugment": {"augmentation.auto_augment"},
        "no_random_scaling": {"augmentation.scale"},
        "no_mixing": {"augmentation.mixup", "augmentation.cutmix"},
        "no_erasing": {"augmentation.random_erasing"},
        "no_flip": {"augmentation.hflip"},
        "no_smoothing": {"trainer.label_smoothing"},
        "no_clipping": {"trainer.clip_grad_norm"},
    }.get(variant, {"model.d_model", "model.depth"})
    assert changed or variant in ("baseline", "width_256_depth_8")


def test_no_random_scaling_keeps_the_whole_image() -> None:
    crop = steps(PAPER, "variant=no_random_scaling")["RandomResizedCropAndInterpolation"]
    image = Image.fromarray(photographs().train.images[0])
    boxes = {RandomResizedCropAndInterpolation.get_params(image, crop.scale, crop.ratio) for _ in range(50)}
    assert boxes == {(0, 0, 32, 32)}


def test_widths_and_depths_have_one_budget() -> None:
    def macs(variant: str) -> int:
        model = checked("experiment=depth_width", f"variant={variant}").model
        return model.depth * (model.d_model**2 + model.kernel_size**2 * model.d_model)

    widths = [variant for variant in VARIANTS if variant.startswith("width")]
    assert len(widths) == 5
    for variant in widths:
        assert macs(variant) == pytest.approx(macs("width_256_depth_8"), rel=0.01)


# Mixing and erasing, on whole batches.


def mixed(*overrides: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    config = checked("augmentation=none", *overrides).augmentation
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    seen, targets = transforms.MixAndErase(config, 10, torch.device("cpu"))(images.clone(), labels)
    return images, labels, seen, targets


def test_mixups_targets_are_the_shares_of_the_images() -> None:
    for _ in range(5):
        images, labels, seen, targets = mixed("augmentation.mixup=0.5")
        share = targets[0, labels[0]]
        torch.testing.assert_close(seen, share * images + (1 - share) * images.flip(0), atol=1e-5, rtol=1e-5)
        one_hot = torch.nn.functional.one_hot(labels, 10)
        torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.flip(0), atol=1e-6, rtol=0)


def test_cutmixs_targets_are_the_shares_of_the_area() -> None:
    for _ in range(5):
        images, labels, seen, targets = mixed("augmentation.cutmix=0.5")
        unchanged = (seen == images).all(1)
        assert (unchanged | (seen == images.flip(0)).all(1)).all()
        torch.testing.assert_close(targets[torch.arange(8), labels], unchanged.float().mean((1, 2)))


def test_erasing_puts_noise_into_a_rectangle_of_some_images() -> None:
    config = checked("augmentation=none", "augmentation.random_erasing=0.25").augmentation
    erase = transforms.MixAndErase(config, 10, torch.device("cpu"))
    images, labels = torch.zeros(2000, 1, 16, 16), torch.zeros(2000, dtype=torch.int64)
    seen, targets = erase(images.clone(), labels)
    erased = (seen != 0).flatten(1).any(1)
    assert 0.2 < erased.float().mean() < 0.3
    assert seen[erased].std() > 0.1
    assert targets is labels


def test_erasing_a_whole_batch_is_timms_erasing() -> None:
    def shares(erase: RandomErasing) -> tuple[torch.Tensor, ...]:
        """Measure the erased share of each image, and the sides of the rectangle."""
        seen = erase(torch.zeros(6000, 2, 16, 12)) != 0
        assert torch.equal(seen[:, 0], seen[:, 1])
        rows, columns = seen[:, 0].any(2).sum(1), seen[:, 0].any(1).sum(1)
        area = seen[:, 0].sum((1, 2))
        assert torch.equal(area, rows * columns)  # a rectangle
        return area.float(), rows.float(), columns.float()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    ours = shares(transforms.BatchErasing(0.25, mode="pixel", device="cpu"))
    timms = shares(RandomErasing(0.25, mode="pixel", device="cpu"))
    for our_image, timms_image in zip(ours, timms, strict=True):
        assert (our_image > 0).float().mean() == pytest.approx(0.25, abs=0.02)
        assert our_image[our_image > 0].mean() == pytest.approx(float(timms_image[timms_image > 0].mean()), rel=0.05)
        assert our_image[our_image > 0].std() == pytest.approx(float(timms_image[timms_image > 0].std()), rel=0.1)


def test_erasing_takes_the_same_few_operations_for_any_batch() -> None:
    def operations(batch_size: int, probability: float) -> int:
        small = (
            "data=digits",
            "model.d_model=8",
            "model.depth=1",
            "augmentation=none",
            f"data.batch_size={batch_size}",
        )
        config = checked(*small, f"augmentation.random_erasing={probability}")
        (counter,) = count_steps(config, steps=1)
        assert counter.synchronizations == []
        return counter.operations

    erasing = operations(64, 0.5) - operations(64, 0)
    assert 0 < erasing < 20
    assert operations(256, 0.5) - operations(256, 0) == erasing


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("erasing", [RandomErasing, transforms.BatchErasing])
def test_layers_see_the_memory_format_asked_for(
    channels: int, memory_format: Any, erasing: type[RandomErasing]
) -> None:
    """With one channel both formats are contiguous, so that the strides decide which one a convolution uses."""
    split = datasets.Split(np.zeros((1, 8, 8, channels), np.uint8), np.zeros(1, np.int64))
    shape = (channels, (8, 8), (0.5,) * channels, (0.5,) * channels)
    images = datasets.DataSplits(split, None, split, ["0", "1"], *shape)
    pixels = torch.zeros(4, 8, 8, channels, dtype=torch.uint8).permute(0, 3, 1, 2)  # as loaders make them
    mixed = checked("data.batch_size=4", "augmentation.mixup=0.5").augmentation
    augment = transforms.MixAndErase(mixed, 2, torch.device("cpu"))
    augment.erase = erasing(0.5, mode="pixel", device="cpu")
    inputs, _ = augment(transforms.Normalize(images, torch.device("cpu"), memory_format)(pixels), torch.arange(4) % 2)
    assert torch.nn.Conv2d(channels, 16, 2, 2)(inputs).is_contiguous(memory_format=memory_format)


def test_a_prediction_counts_as_its_share() -> None:
    logits = torch.eye(3)[[0, 1, 2]]
    assert soft_accuracy(logits, torch.tensor([0, 1, 1])) == 2
    shares = torch.tensor([[0.7, 0.3, 0.0], [1.0, 0.0, 0.0], [0.0, 0.4, 0.6]])
    torch.testing.assert_close(soft_accuracy(logits, shares), torch.tensor(0.7 + 0.0 + 0.6))


def test_mixing_needs_pairs() -> None:
    with pytest.raises(ConfigError, match=r"data.batch_size=63: mixup and cutmix pair images"):
        checked(PAPER, "data.batch_size=63")
    config = checked(
        PAPER, "hardware=any", "data=digits", "data.val_fraction=0.1", "data.batch_size=32", "data.num_workers=0"
    )
    sizes = [len(labels) for _, labels in make_train_loader(datasets.load(config.data, 1), config)]
    assert sum(sizes) == 1292  # of 1,293
    assert all(size % 2 == 0 for size in sizes)
