"""Prediction: from image files to a table of classes with probabilities, and a contact sheet."""

import io
import json
import logging
import math
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial
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

from config.commands import Predict
from config.errors import ConfigError
from config.text import csv_text, printable
from data.image_files import DataError, image_files, open_image
from data.splits import DataSplits, Split
from inference.checkpoint import LoadedCheckpoint
from pipeline.batches import spare_cores
from pipeline.transforms import Normalize, Transform, evaluation_transform
from pipeline.workers import Workers
from runtime.files import check_new, check_ours, whole, write_text
from tracking.plots import contact_sheet, for_sheet
from training.evaluation import compute_logits
from training.model import memory_format
from training.summary import check_memory

log = logging.getLogger(__name__)

SHOWN = 20  # most lines on the terminal
SHEET = "ConvMixer, predict.py"  # recorded in the PNG file; a picture without it is never replaced


def predict(checkpoint: LoadedCheckpoint, settings: Predict) -> int:
    """Write the table and the contact sheet.

    Returns:
        The number of images that could not be read and were skipped.

    Raises:
        ConfigError: No image can be read, or the checkpoint's image size or normalization is unknown.
    """
    table, sheet = output_paths(settings)
    data = as_data(find_images(settings.images), checkpoint)
    broken: list[DataError] = []
    rows: list[dict[str, Any]] = []
    config, device, batches = checkpoint.config, checkpoint.device, read_batches(data, settings, broken)
    normalize = Normalize(data, device, memory_format(config))
    for logits, numbers in compute_logits(checkpoint.model, batches, normalize, config.trainer.precision, device):
        top = top_classes(logits, checkpoint.labels, settings.top)
        for number, classes in zip(numbers.tolist(), top, strict=True):
            rows.append({"image": str(data.test.images[number]), "predictions": classes})
    if not rows:
        raise ConfigError(f"images={settings.images}: none of the {len(data.test):,} can be read as an image")
    table.parent.mkdir(parents=True, exist_ok=True)
    as_json = json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    write_text(table, as_json if table.suffix == ".json" else as_csv(rows))
    if settings.sheet:
        shown = rows[: settings.sheet]
        images = [for_sheet(open_image(row["image"], data.test.mode)) for row in shown]
        figure = contact_sheet(images, [class_caption(row["predictions"][0]) for row in shown])
        with whole(sheet) as temporary:
            figure.savefig(temporary, dpi=150, metadata={"Software": SHEET})
    for row in rows[:SHOWN]:
        likely = ", ".join(f"{top['class']} {top['probability']:.1%}" for top in row["predictions"][:3])
        log.info(f"  {printable(row['image'])}: {likely}")
    skipped = f", {len(broken):,} skipped" if broken else ""
    log.info(f"  {len(rows):,} images{skipped} → {table}" + (f" and {sheet}" if settings.sheet else ""))
    return len(broken)


def output_paths(settings: Predict) -> tuple[Path, Path]:
    """Return the paths of the table and the contact sheet.

    Raises:
        ConfigError: `output` is not a table's name, or the file exists.
    """
    table = Path(settings.output or f"outputs/predictions/{datetime.now():%Y-%m-%d_%H-%M-%S}.csv")
    sheet = table.with_suffix(".png")
    if table.suffix not in (".csv", ".json"):
        raise ConfigError(f"output={table}: expected a name that ends in .csv or .json")
    check_new((table, sheet) if settings.sheet else (table,), settings.overwrite)
    if settings.sheet:
        check_ours(sheet, SHEET)
    return table, sheet


# Images.


def find_images(images: Any) -> list[str]:
    """List image files, images in folders, matches of globs and, for "-", the lines of standard input.

    Raises:
        ConfigError: There are no images.
    """
    paths: list[str] = []
    for entry in map(str, images if isinstance(images, list) else [images]):
        if entry == "-":
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(errors="surrogateescape")  # names of files may be other bytes than UTF-8
            paths += [line for line in sys.stdin.read().split("\n") if line]
        elif Path(entry).is_dir():
            paths += image_files(entry)
        elif has_magic(entry) and not Path(entry).exists():
            paths += sorted(glob(entry, recursive=True))  # noqa: PTH207 (Path's takes no absolute pattern)
        else:
            paths.append(entry)
    if not paths:
        expected = "files, folders, globs, or - for a list of them"
        raise ConfigError(f"images={images}: there are no images; expected {expected}")
    return paths


def as_data(paths: list[str], checkpoint: LoadedCheckpoint) -> DataSplits:
    """Make a data set of files, with the channels, size and normalization that the checkpoint expects.

    Raises:
        ConfigError: Neither the checkpoint nor the command describes the images.
    """
    config, architecture = checkpoint.config.data, checkpoint.weights.architecture
    if architecture.channels not in (1, 3):
        raise ConfigError(
            f"checkpoint={checkpoint.weights.path}: its model takes {architecture.channels} channels; "
            "expected 1 (grey) or 3 (RGB), as image files have"
        )
    if checkpoint.image_size is None:
        raise ConfigError("data.image_size: the checkpoint does not say what it was trained on; expected pixels")
    if config.mean is None or config.std is None:
        raise ConfigError(
            "data.mean, data.std: the checkpoint does not say; expected a number for each channel, of 0 … 1"
        )
    check_memory(checkpoint.config, architecture.channels, checkpoint.image_size, min(config.batch_size, len(paths)))
    split = Split(np.array(paths), np.zeros(len(paths), np.int64), "L" if architecture.channels == 1 else "RGB")
    return DataSplits(
        split, None, split, checkpoint.labels, architecture.channels, checkpoint.image_size,
        tuple(config.mean), tuple(config.std),
    )  # fmt: skip


def read_batches(data: DataSplits, settings: Predict, broken: list[DataError]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images, uint8 [batch, channels, height, width], and their numbers.

    The errors of unreadable images are logged, and added to `broken`.
    """
    batch_size, workers = settings.data.batch_size, settings.data.num_workers
    if workers is None:
        workers = spare_cores() if len(data.test) > batch_size else 0
    transform = evaluation_transform(settings.data.crop_fraction, data)
    assert transform  # image files always need a transform
    parts = [range(len(data.test))[i : i + batch_size] for i in range(0, len(data.test), batch_size)]
    max_bytes = batch_size * data.channels * math.prod(data.image_size)
    batches = Workers(partial(read_images, data.test, transform), workers, max_bytes).map(parts)
    bar = track(batches, "  predicting", len(parts), transient=True, disable=not get_console().is_terminal)
    for pixels, (numbers, errors) in bar:
        for error in errors:
            log.warning(f"  skipped: {str(error).removeprefix('data.root: ')}")
        broken += errors
        if numbers:
            yield torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(numbers)


def read_images(
    split: Split, transform: Transform, numbers: Iterable[int]
) -> tuple[NDArray[np.uint8], tuple[list[int], list[DataError]]]:
    """Read images, uint8 [images, height, width, channels]; return their numbers, and the errors of unreadable ones."""
    pixels, readable, errors = [], [], []
    for number in numbers:
        try:
            pixels.append(np.atleast_3d(np.asarray(transform(split[number]))))
            readable.append(number)
        except DataError as error:
            errors.append(error)
    return np.stack(pixels) if pixels else np.empty(0, np.uint8), (readable, errors)


# Predictions.


def top_classes(logits: Tensor, labels: list[str], top: int) -> list[list[dict[str, Any]]]:
    """Select the `top` classes of each image with their probabilities, the most likely first."""
    probabilities, classes = logits.double().softmax(1).topk(min(top, len(labels)))
    return [
        [{"class": labels[c], "probability": p} for c, p in zip(cs, ps, strict=True)]
        for cs, ps in zip(classes.tolist(), probabilities.tolist(), strict=True)
    ]


def as_csv(rows: Iterable[dict[str, Any]]) -> str:
    """Format a row for each image, with columns image, class1, probability1, class2 and so on."""
    table = []
    for row in rows:
        cells = {"image": row["image"]}
        for n, top in enumerate(row["predictions"], start=1):
            cells |= {f"class{n}": top["class"], f"probability{n}": top["probability"]}
        table.append(cells)
    return csv_text(pd.DataFrame(table), index=False)


def class_caption(prediction: dict[str, Any]) -> str:
    name = prediction["class"].partition(",")[0]
    return f"{name if len(name) <= 18 else name[:17] + '…'}\n{prediction['probability']:.0%}"
