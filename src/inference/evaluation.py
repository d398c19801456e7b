"""Evaluation of a model: accuracy, loss, accuracy of each class, calibration."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import get_console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from config.errors import ConfigError
from data import datasets
from data.batches import make_eval_loader
from data.image_files import class_folders, is_divided, split_folders
from data.image_folder import read_one_split
from data.splits import DataSplits, Split
from data.transforms import Normalize
from inference.checkpoint import Checkpoint
from runtime.device import autocast, prefetch
from training.evaluation import PREDICTION
from training.model import memory_format
from training.summary import check_memory

BINS = 15  # of confidence, equally wide, as in Guo et al., arXiv 1706.04599


@dataclass(frozen=True)
class Evaluation:
    """The results of a model on a data set.

    Attributes:
        loss: mean cross-entropy.
        top1, top5: fractions; top5 of fewer than six classes is 1.
        predictions: PREDICTION [images], in the order of the data set.
        confidence: probability of the predicted class, [images].
    """

    loss: float
    top1: float
    top5: float
    predictions: NDArray[np.void]
    confidence: NDArray[np.float32]

    def bins(self) -> list[dict[str, float]]:
        """Bin images by confidence: their number, mean confidence and accuracy."""
        index = np.minimum((self.confidence * BINS).astype(int), BINS - 1)
        correct = self.predictions["prediction"] == self.predictions["label"]
        return [
            {"images": int(inside.sum()), "confidence": float(self.confidence[inside].mean()),
             "accuracy": float(correct[inside].mean()), "low": i / BINS, "high": (i + 1) / BINS}
            for i in range(BINS) if (inside := index == i).any()
        ]  # fmt: skip

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean difference of accuracy and confidence over bins of confidence."""
        gaps = [row["images"] * abs(row["accuracy"] - row["confidence"]) for row in self.bins()]
        return sum(gaps) / len(self.predictions)


def evaluate(checkpoint: Checkpoint, data: DataSplits, split: Split) -> Evaluation:
    """Evaluate a checkpoint on one split of a data set.

    Args:
        split: of the data, the one to evaluate on.

    Raises:
        ConfigError: the model does not know one of its classes.
    """
    labels = class_numbers(data.classes, checkpoint)[split.labels]
    loader = make_eval_loader(replace(split, labels=labels), data, checkpoint.config)
    batches = track(loader, "  evaluating", transient=True, disable=not get_console().is_terminal)
    parts = list(compute_logits(checkpoint, batches, data))
    return evaluate_logits(torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts]))


def evaluate_logits(logits: Tensor, labels: Tensor) -> Evaluation:
    """Evaluate logits [images, classes] against labels [images]."""
    predicted = logits.argmax(1)
    top5 = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    probabilities = logits.double().softmax(1)
    predictions = np.empty(len(labels), PREDICTION)
    predictions["label"], predictions["prediction"] = labels, predicted
    predictions["probability"] = probabilities.gather(1, labels[:, None])[:, 0]
    return Evaluation(
        loss=float(F.cross_entropy(logits.double(), labels)),
        top1=int((predicted == labels).sum()) / len(labels),
        top5=int(top5.sum()) / len(labels),
        predictions=predictions,
        confidence=probabilities.max(1).values.float().numpy(),
    )


def load_data(checkpoint: Checkpoint, name: str, download: bool) -> tuple[DataSplits, Split]:
    """Load the data set with the checkpoint's image size and normalization, and one of its splits.

    Of a folder of images the other splits need not be there, except where the split is a part of the training images.

    Args:
        name: of the split, "train", "val" or "test".
        download: the data set if it is missing; not where the checkpoint alone names it.

    Raises:
        ConfigError: there is no such split, or the checkpoint cannot be evaluated on it.
    """
    config, channels = checkpoint.config.data, checkpoint.weights.architecture.channels
    if folder := folder_of(checkpoint, name):
        data = read_one_split(folder, "L" if channels == 1 else "RGB", config.skip_unreadable)
    else:
        data = datasets.read_configured(config, download)
    if data.channels != channels:
        raise ConfigError(f"data.name={config.name}: {data.channels} channels, but the model takes {channels}")
    if name == "test" or folder:
        config = replace(config, val_fraction=0.0, train_fraction=1.0)  # which divide only what was trained on
    data = datasets.prepare(data, config, checkpoint.config.model.patch_size, checkpoint.image_size)
    check_memory(checkpoint.config, channels, data.image_size, min(config.batch_size, len(data.test)))
    split: Split | None = data.test if folder else getattr(data, name)
    if split is None:
        raise ConfigError(f"split={name}: there is none with data.val_fraction={config.val_fraction:g}")
    return data, split


def folder_of(checkpoint: Checkpoint, name: str) -> Path | None:
    """Find the folder of a split; None if the split is a part of the training images.

    Classes without folders of splits are all evaluated, except by a model that may have trained on a part of them.

    Raises:
        ConfigError: there is no such folder.
    """
    config, description = checkpoint.config.data, checkpoint.weights.description
    if config.name != "image_folder":
        return None
    root = Path(config.root)
    folders = split_folders(root)
    if description and description.config["data"].get("name") == "image_folder" and is_divided(root):
        return None
    if "train" in folders:
        validates = config.val_fraction and not {"val", "test"} <= folders.keys()  # with a part of the training images
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


def class_numbers(names: list[str], checkpoint: Checkpoint) -> NDArray[np.int64]:
    """Map the data set's classes to the model's, by name, or by position if names are not known.

    Raises:
        ConfigError: the model does not know a class.
    """
    data, n_classes = f"data.name={checkpoint.config.data.name}", checkpoint.weights.architecture.n_classes
    if checkpoint.classes is None:
        if len(names) == n_classes:
            return np.arange(n_classes)
        raise ConfigError(
            f"{data}: its {len(names)} classes cannot be the checkpoint's {n_classes}, whose names are not known"
        )
    known = {name: number for number, name in enumerate(checkpoint.classes)}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f"{data}: its class {unknown[0]} is none of the checkpoint's {n_classes}, "
            f"{', '.join(checkpoint.classes[:3])}, …"
        )
    return np.array([known[name] for name in names], dtype=np.int64)


def compute_logits(checkpoint: Checkpoint, batches: Iterable[Any], data: DataSplits) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits in fp32 and the labels for batches of uint8 images and labels, on the CPU."""
    config, device = checkpoint.config, checkpoint.device
    normalize = Normalize(data, device, memory_format(config))
    for pixels, rest in prefetch(batches, device):
        with torch.inference_mode(), autocast(device, config.trainer.precision):
            logits = checkpoint.model(normalize(pixels))
        yield logits.float().cpu(), rest.cpu()
