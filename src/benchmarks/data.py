"""Benchmark of data loading: ours compared with timm's loader, with the same files, transforms and workers."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.feature_extraction.image import extract_patches_2d

from benchmarks.setting import make_config
from config.schema import Config
from data import datasets
from pipeline.batches import make_train_loader
from pipeline.transforms import MixAndErase, Normalize
from runtime.console import print_table, say


def run(overrides: list[str]) -> None:
    """Measure augmented, normalized, mixed and erased images per second with the paper's augmentation.

    The images are crops of scikit-learn's two embedded photographs, as JPEG files. For both loaders, PyTorch uses one
    thread: more would take cores from the workers (ratio 1.25 instead of 1.54 at 32×32 on two cores).
    """
    torch.set_num_threads(1)
    rows = []
    for size, count, rounds in ((32, 4000, 5), (224, 400, 3)):
        with tempfile.TemporaryDirectory() as root:
            write_images(Path(root), size, count)
            fixed = ["data=image_folder", f"data.root={root}", "data.val_fraction=0", "data.batch_size=64"]
            config = make_config([*fixed, "augmentation=paper", f"data.num_workers={os.cpu_count()}", *overrides])
            images = datasets.load(config.data, 1)
            workers = make_train_loader(images, config).num_workers
            loaders = {"ours": our_epochs(images, config), "timm": timm_epochs(root, images, config, workers)}
            rates = measure(loaders, rounds)
        ratio = [ours / timms for ours, timms in zip(rates["ours"], rates["timm"], strict=True)]
        rows += [row(size, name, rate, ",.0f") for name, rate in rates.items()]
        rows.append(row(size, "ours / timm", ratio, ".2f"))
    say(f"paper's augmentation, batches of {config.data.batch_size}, {workers} worker(s), torch {torch.__version__}")
    print_table("images per second", ("images", "loader", "median", "range"), rows)


def row(size: int, name: str, values: list[float], form: str) -> tuple[str, ...]:
    return f"{size}×{size}", name, f"{statistics.median(values):{form}}", f"{min(values):{form}}–{max(values):{form}}"


def write_images(root: Path, size: int, count: int) -> None:
    """Write random crops of two photographs, one class each: `count` in train/, ten in test/."""
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        for part, crops, seed in (("train", count // 2, 0), ("test", 5, 1)):
            folder = root / part / name
            folder.mkdir(parents=True)
            patches = extract_patches_2d(photograph, (size, size), max_patches=crops, random_state=seed)
            for i, crop in enumerate(patches):
                Image.fromarray(crop).save(folder / f"{i:05}.jpg", quality=90)


def our_epochs(images: datasets.DataSplits, config: Config) -> Callable[[], int]:
    batches = make_train_loader(images, config)
    normalize = Normalize(images, torch.device("cpu"))
    mix_and_erase = MixAndErase(config.augmentation, len(images.classes), torch.device("cpu"))
    return lambda: sum(len(mix_and_erase(normalize(pixels), labels)[0]) for pixels, labels in batches)


def timm_epochs(root: str, images: datasets.DataSplits, config: Config, workers: int) -> Callable[[], int]:
    augmentation = config.augmentation
    mixup = timm.data.FastCollateMixup(
        augmentation.mixup, augmentation.cutmix, label_smoothing=0.0, num_classes=len(images.classes)
    )
    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=f"{root}/train", is_training=True),
        (3, *images.image_size), config.data.batch_size, is_training=True,
        re_prob=augmentation.random_erasing, re_mode="pixel", hflip=augmentation.hflip, color_jitter=0.0,
        scale=(augmentation.scale[0], augmentation.scale[1]), ratio=(augmentation.ratio[0], augmentation.ratio[1]),
        auto_augment=augmentation.auto_augment, interpolation=augmentation.interpolation,
        mean=images.mean, std=images.std, num_workers=workers, collate_fn=mixup, device=torch.device("cpu"),
        persistent_workers=workers > 0,
    )  # fmt: skip
    return lambda: sum(len(batch) for batch, _ in loader)


def measure(loaders: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Measure images per second of each loader in turns, after a warm-up round."""
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(rounds + 1):
        for name, epoch in loaders.items():
            started = time.perf_counter()
            images = epoch()
            if number:
                rates[name].append(images / (time.perf_counter() - started))
    return rates
