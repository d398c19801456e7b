"""Image files to a table of classes with probabilities, and a contact sheet."""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich import get_console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from config.commands import Predict
from config.errors import ConfigError
from data.batches import init_worker, spare_cores
from data.datasets import DataSplits, Split
from data.image_files import SUFFIXES, DataError
from data.transforms import evaluation_transform
from inference.checkpoint import Checkpoint
from inference.evaluation import compute_logits
from inference.figures import contact_sheet
from runtime.files import write_text

log = logging.getLogger(__name__)

SHOWN = 20  # lines on the terminal


def predict(checkpoint: Checkpoint, settings: Predict) -> int:
    """Write the table and the contact sheet.

    Returns:
        how many images were skipped because they could not be read.

    Raises:
        ConfigError: there are no images, or what they should look like is not known.
    """
    table, sheet = output_paths(settings)
    data = as_data(find_images(settings.images), checkpoint)
    reader = ImageFiles(data, settings.data.crop_fraction)
    loader = DataLoader(
        reader,
        batch_size=settings.data.batch_size,
        num_workers=workers(settings, len(reader)),
        collate_fn=collate,
        worker_init_fn=init_worker,
    )
    batches = track(loader, "  predicting", transient=True, disable=not get_console().is_terminal)
    broken: list[str] = []
    logits = list(compute_logits(checkpoint, readable(batches, broken), data))
    if not logits:
        raise ConfigError(f"images={settings.images}: none of the {len(reader):,} can be read as an image")
    indices = torch.cat([batch for _, batch in logits]).tolist()
    top = top_classes(torch.cat([batch for batch, _ in logits]), checkpoint.labels, settings.top)
    rows = [{"image": str(data.test.images[i]), "predictions": found} for i, found in zip(indices, top, strict=True)]
    table.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        table, json.dumps(rows, indent=2, ensure_ascii=False) + "\n" if table.suffix == ".json" else as_csv(rows)
    )
    if settings.sheet:
        images = [data.test[i] for i in indices[: settings.sheet]]
        contact_sheet(images, [caption(found[0]) for found in top[: settings.sheet]]).savefig(sheet, dpi=150)
    for i, found in zip(indices[:SHOWN], top, strict=False):
        likely = ", ".join(f"{one['class']} {one['probability']:.1%}" for one in found[:3])
        log.info(f"  {data.test.images[i]}: {likely}")
    skipped = f", {len(broken):,} skipped" if broken else ""
    log.info(f"  {len(rows):,} images{skipped} → {table}" + (f" and {sheet}" if settings.sheet else ""))
    return len(broken)


def top_classes(logits: Tensor, labels: list[str], top: int) -> list[list[dict[str, Any]]]:
    """For each image its `top` classes with their probabilities, the likeliest first."""
    probabilities, classes = logits.double().softmax(1).topk(min(top, len(labels)))
    return [
        [{"class": labels[c], "probability": p} for c, p in zip(cs, ps, strict=True)]
        for cs, ps in zip(classes.tolist(), probabilities.tolist(), strict=True)
    ]


def output_paths(settings: Predict) -> tuple[Path, Path]:
    """Of the table and the contact sheet.

    Raises:
        ConfigError: no table, or there already.
    """
    table = Path(settings.output or "predictions.csv")
    sheet = table.with_suffix(".png")
    if table.suffix not in (".csv", ".json"):
        raise ConfigError(f"output={table}: expected a name that ends in .csv or .json")
    for path in (table, sheet) if settings.sheet else (table,):
        if path.exists() and not settings.overwrite:
            raise ConfigError(f"output={path}: is there already; expected another name, or overwrite=true")
    return table, sheet


def find_images(given: Any) -> list[str]:
    """Files as they are; of folders, all image files below; of globs, what fits; of "-", the lines of standard input.

    Raises:
        ConfigError: there is nothing.
    """
    entries = [str(entry) for entry in given] if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    found: list[str] = []
    for entry in map(str, entries):
        if entry == "-":
            found += [line for line in sys.stdin.read().splitlines() if line]
        elif Path(entry).is_dir():
            below = sorted(Path(entry).rglob("*"))
            found += [str(path) for path in below if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
        elif has_magic(entry) and not Path(entry).exists():
            found += sorted(glob(entry, recursive=True))  # noqa: PTH207 (Path's takes no absolute pattern)
        else:
            found.append(entry)
    if not found:
        raise ConfigError(
            f"images={given}: there are no images; expected files, folders, globs, or - for a list of them"
        )
    return found


def as_data(paths: list[str], checkpoint: Checkpoint) -> DataSplits:
    """Files as a data set such as the checkpoint was trained on.

    Raises:
        ConfigError: neither the checkpoint nor the command says what its images look like.
    """
    config, architecture = checkpoint.config.data, checkpoint.weights.architecture
    if checkpoint.image_size is None:
        raise ConfigError("data.image_size: the checkpoint does not say what it was trained on; expected pixels")
    if config.mean is None or config.std is None:
        raise ConfigError(
            "data.mean, data.std: the checkpoint does not say; expected a number for each channel, of 0 … 1"
        )
    if any(side % architecture.patch_size for side in checkpoint.image_size):
        raise ConfigError(
            f"data.image_size={config.image_size}: expected a multiple of {architecture.patch_size}, the patch"
        )
    split = Split(np.array(paths), np.zeros(len(paths), np.int64), "L" if architecture.channels == 1 else "RGB")
    return DataSplits(
        split, None, split, checkpoint.classes, architecture.channels, checkpoint.image_size,
        tuple(config.mean), tuple(config.std),
    )  # fmt: skip


def workers(settings: Predict, images: int) -> int:
    """Processes that read images: those that were asked for, else one for every spare core, and none for one batch."""
    if settings.data.num_workers is not None:
        return settings.data.num_workers
    return spare_cores() if images > settings.data.batch_size else 0


class ImageFiles(Dataset[tuple[int, "NDArray[np.uint8] | str"]]):
    """Of each file its number and its pixels [height, width, channels], or what is wrong with it."""

    def __init__(self, data: DataSplits, crop_fraction: float) -> None:
        self.split, self.transform = data.test, evaluation_transform(crop_fraction, data)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> "tuple[int, NDArray[np.uint8] | str]":
        try:
            image = self.split[index]
        except DataError as error:
            return index, str(error)
        assert self.transform is not None  # files are never as the model sees them
        return index, np.atleast_3d(np.asarray(self.transform(image)))


def collate(images: "list[tuple[int, NDArray[np.uint8] | str]]") -> tuple[Tensor, Tensor, list[str]]:
    """uint8 [batch, channels, height, width] and numbers of those that can be read, and what is wrong with the rest."""
    read = [(index, pixels) for index, pixels in images if not isinstance(pixels, str)]
    errors = [error for _, error in images if isinstance(error, str)]
    pixels = torch.from_numpy(np.stack([p for _, p in read])).permute(0, 3, 1, 2) if read else torch.empty(0)
    return pixels, torch.tensor([index for index, _ in read]), errors


def readable(batches: Any, broken: list[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images that can be read; of the others, say and keep what is wrong."""
    for pixels, indices, errors in batches:
        for error in errors:
            log.warning(f"  skipped: {error.removeprefix('data.root: ')}")
        broken += errors
        if len(pixels):
            yield pixels, indices


def as_csv(rows: list[dict[str, Any]]) -> str:
    """A row for each image: image, class1, probability1, class2, …"""
    flat = [
        {"image": row["image"]} | {f"{key}{n}": value for n, found in enumerate(row["predictions"], 1)
                                   for key, value in found.items()}
        for row in rows
    ]  # fmt: skip
    return pd.DataFrame(flat).to_csv(index=False)


def caption(prediction: dict[str, Any]) -> str:
    name = prediction["class"].partition(",")[0]
    return f"{name if len(name) <= 18 else name[:17] + '…'}\n{prediction['probability']:.0%}"
