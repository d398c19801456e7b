"""Metrics: loss and accuracy on the device, averages over classes, early stopping."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score, recall_score
from torch import Tensor

from config import schema
from runtime.distributed import World


class NotFinite(RuntimeError):
    """The error of a loss that became NaN or infinite."""

    def __init__(self, loss: str, step: int, lr: float) -> None:
        super().__init__(
            f"the {loss} loss became NaN or infinite at step {step}, learning rate {lr:.3g}; "
            "a lower optimizer.lr or trainer.clip_grad_norm=1.0 may help"
        )


class Metrics(NamedTuple):
    """Means over images."""

    loss: float
    accuracy: float


class MetricAccumulator:
    """Sums of loss and correct predictions, kept on the device. Reading them synchronizes it."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.correct = torch.zeros((), device=device)
        self.first_non_finite = torch.zeros((), device=device, dtype=torch.int64)
        self.images = 0

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor, step: int = 0) -> None:
        """Add a batch.

        Args:
            loss: Mean over the images.
            logits: [images, classes].
            targets: Class numbers [images], or probabilities [images, classes].
            step: Number of the step in the run, from 1.
        """
        self.loss += loss * len(targets)
        self.correct += soft_accuracy(logits, targets)
        self.first_non_finite += (~loss.isfinite() & (self.first_non_finite == 0)) * step
        self.images += len(targets)

    def all_reduced(self, world: World) -> "MetricAccumulator":
        """Return the sums over all ranks, and leave this rank's sums unchanged."""
        total = copy.deepcopy(self)
        images = torch.tensor(self.images, device=self.loss.device)
        world.all_reduce_sum(total.loss, total.correct, images)
        total.images = int(images)
        total.first_non_finite.fill_(*world.all_reduce_max(self.first_non_finite_step()))
        return total

    def first_non_finite_step(self) -> int:
        """Return the first step whose loss was NaN or infinite, or 0."""
        return int(self.first_non_finite)

    def compute(self) -> Metrics:
        return Metrics(float(self.loss) / self.images, float(self.correct) / self.images)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.loss.device
        vars(self).update({name: value if name == "images" else value.to(device) for name, value in state.items()})


def bad_epochs(rows: Sequence[Mapping[str, Any]], config: schema.EarlyStopping) -> int:
    """Count the epochs, rows of metrics.csv, since val/loss last fell by `min_delta`."""
    lowest, bad = math.inf, 0
    for row in rows[max(0, config.start_epoch - 1) :]:
        if row["val/loss"] < lowest - config.min_delta:
            lowest, bad = row["val/loss"], 0
        else:
            bad += 1
    return bad


def class_averages(labels: NDArray[np.integer], predictions: NDArray[np.integer]) -> dict[str, float]:
    """Average recall and F1 over the classes that have images, with equal weight."""
    options: Any = {"average": "macro", "labels": np.unique(labels), "zero_division": 0}
    return {
        "balanced_accuracy": float(recall_score(labels, predictions, **options)),
        "macro_f1": float(f1_score(labels, predictions, **options)),
    }


def soft_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum the probabilities that the targets give to the predicted classes.

    A prediction counts 1 or 0 on a plain image. On an image mixed 7 to 3 by mixup or CutMix, it counts 0.7 or 0.3.
    """
    predicted = logits.argmax(1)
    if targets.ndim == 1:
        return (predicted == targets).sum()
    return targets.gather(1, predicted[:, None]).sum()
