"""Evaluation of a model on a validation or test set."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from data.batches import Loader
from data.transforms import Normalize
from runtime.device import autocast, prefetch
from runtime.distributed import World
from runtime.signals import SignalHandler
from training.metrics import MetricAccumulator, Metrics, class_averages

# A record of predictions.npy: an image's class, the predicted class, and the probability of the image's class.
PREDICTION = np.dtype([("label", np.uint16), ("prediction", np.uint16), ("probability", np.float32)])


@dataclass(frozen=True)
class Evaluation:
    """Metrics and predictions on a set of images.

    Attributes:
        metrics: loss without label smoothing, and accuracy.
        predictions: PREDICTION [images], in the order of the data set.
    """

    metrics: Metrics
    predictions: NDArray[np.void]

    @property
    def figures(self) -> dict[str, float]:
        """Loss, accuracy, balanced accuracy and macro-F1 by name."""
        averages = class_averages(self.predictions["label"], self.predictions["prediction"])
        return {**self.metrics._asdict(), **averages}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    normalize: Normalize,
    precision: str,
    device: torch.device,
    world: World,
    signals: SignalHandler | None = None,
) -> Evaluation:
    """Evaluate a model; with several ranks, each evaluates a share of the images, and all return the whole result.

    Args:
        loader: batches of this rank's share, uint8 [images, channels, height, width] and labels [images].
        normalize: makes the model's inputs from pixels.
        signals: the signal handler of a run in training; None otherwise.

    Raises:
        Interrupted: a signal ends the run.
    """
    model.eval()
    metrics = MetricAccumulator(device)
    columns = [torch.zeros(3, 0, device=device)]  # label, prediction and probability of each image
    for pixels, labels in prefetch(signals.watch(loader) if signals else loader, device):
        with autocast(device, precision):
            logits = model(normalize(pixels))
            loss = F.cross_entropy(logits, labels)
        metrics.add(loss, logits, labels)
        probability = logits.float().softmax(1).gather(1, labels[:, None])[:, 0]
        columns.append(torch.stack((labels, logits.argmax(1), probability)))
    sampler = loader.sampler
    in_order = torch.zeros(3, sampler.length, device=device)
    in_order[:, sampler.indices()] = torch.cat(columns, 1)
    world.all_reduce_sum(in_order)  # images of other ranks are 0 here
    predictions = np.empty(sampler.length, PREDICTION)
    for field, values in zip(PREDICTION.names or (), in_order.cpu().numpy(), strict=True):
        predictions[field] = values
    return Evaluation(metrics.all_reduced(world).compute(), predictions)
