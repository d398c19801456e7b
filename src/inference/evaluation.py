"""Evaluation of a checkpoint on a split of a data set."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import get_console
from rich.progress import track

from config.errors import ConfigError
from data import datasets
from data.image_files import class_folders, is_divided, split_folders
from data.image_folder import read_one_split
from data.splits import DataSplits, Split
from inference.checkpoint import LoadedCheckpoint
from pipeline.batches import make_eval_loader
from pipeline.transforms import Normalize
from runtime.distributed import World
from tracking.identity import override_values
from training.evaluation import Evaluation, evaluate
from training.model import memory_format
from training.summary import check_memory


def evaluate_split(checkpoint: LoadedCheckpoint, data: DataSplits, split: Split) -> Evaluation:
    """Evaluate a checkpoint on one split of a data set.

    Raises:
        ConfigError: The model does not know one of its classes.
    """
    labels = class_numbers(data.classes, checkpoint)[split.labels]
    loader = make_eval_loader(replace(split, labels=labels), data, checkpoint.config)
    progress = partial(track, description="  evaluating", transient=True, disable=not get_console().is_terminal)
    config, device = checkpoint.config, checkpoint.device
    normalize = Normalize(data, device, memory_format(config))
    return evaluate(checkpoint.model, loader, normalize, config.trainer.precision, device, World(), progress)


def load_data(checkpoint: LoadedCheckpoint, name: str, overrides: Sequence[str]) -> tuple[DataSplits, Split]:
    """Load the data set with the checkpoint's image size and normalization, and one of its splits.

    If the data set is a folder of images, the other splits may be missing, unless the split is a part of the training
    images. The data set is downloaded only if the overrides name it.

    Raises:
        ConfigError: There is no such split, or the checkpoint cannot be evaluated on it.
    """
    config, channels = checkpoint.config.data, checkpoint.weights.architecture.channels
    if folder := folder_of(checkpoint, name):
        data = read_one_split(folder, "L" if channels == 1 else "RGB", config.skip_unreadable)
    else:
        is_named = override_values(overrides).keys() & {"data", "data.name", "data.root"}
        data = datasets.read_configured(config, download=bool(is_named))
    if data.channels != channels:
        raise ConfigError(f"data.name={config.name}: {data.channels} channels, but the model takes {channels}")
    if name == "test" or folder:
        config = replace(config, val_fraction=0.0, train_fraction=1.0)  # these keys divide only training images
    data = datasets.prepare(data, config, checkpoint.config.model.patch_size, checkpoint.image_size)
    check_memory(checkpoint.config, channels, data.image_size, min(config.batch_size, len(data.test)))
    split: Split | None = data.test if folder else getattr(data, name)
    if split is None:
        raise ConfigError(f"split={name}: there is none with data.val_fraction={config.val_fraction:g}")
    return data, split


def folder_of(checkpoint: LoadedCheckpoint, name: str) -> Path | None:
    """Find the folder of a split; None if the split is a part of the training images.

    Without folders of splits all images are evaluated, unless the model may have been trained on a part of them.

    Raises:
        ConfigError: There is no such folder.
    """
    config, description = checkpoint.config.data, checkpoint.weights.description
    if config.name != "image_folder":
        return None
    root = Path(config.root)
    folders = split_folders(root)
    if description and description.config["data"].get("name") == "image_folder" and is_divided(root):
        return None
    if "train" in folders:
        validates = config.val_fraction and not {"val", "test"} <= folders.keys()  # on a part of the training images
        divided = {"train": validates or config.train_fraction < 1, "val": validates, "test": False}[name]
        if divided or config.mean is None:
            return None
    elif config.mean is None:
        raise ConfigError(
            f"data.mean, data.std: the checkpoint does not say, and {root} has no train folder to measure them; "
            "expected a number for each channel, of 0 … 1"
        )
    used = folders.get(name) or (name == "test" and folders.get("val")) or (not folders and class_folders(root) and ".")
    if not used:
        names = ", ".join(class_folders(root)[:5]) or "no folders"
        raise ConfigError(f"split={name}: data.root={root} has no such folder with CLASS/*; it has {names}")
    return root / used


def class_numbers(names: list[str], checkpoint: LoadedCheckpoint) -> NDArray[np.int64]:
    """Map the data set's classes to the model's by name, or by position if names are unknown.

    Raises:
        ConfigError: The model does not know a class.
    """
    data, n_classes = f"data.name={checkpoint.config.data.name}", checkpoint.weights.architecture.n_classes
    if checkpoint.classes is None:
        if len(names) == n_classes:
            return np.arange(n_classes)
        raise ConfigError(
            f"{data}: its {len(names)} classes cannot be the checkpoint's {n_classes}, whose names are not known"
        )
    number_of = {name: number for number, name in enumerate(checkpoint.classes)}
    if unknown := [name for name in names if name not in number_of]:
        raise ConfigError(
            f"{data}: its class {unknown[0]} is none of the checkpoint's {n_classes}, "
            f"{', '.join(checkpoint.classes[:3])}, …"
        )
    return np.array([number_of[name] for name in names], dtype=np.int64)
