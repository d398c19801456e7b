"""Evaluation of a model on a set of images: a run's validation and test, and evaluate.py."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.batches import Loader
from pipeline.transforms import Normalize
from runtime.device import autocast, prefetch
from runtime.distributed import World
from training.metrics import MetricAccumulator, Metrics, class_averages

# A record of predictions.npy: an image's class, the predicted class, and the probability of the image's class.
PREDICTION = np.dtype([("label", np.uint16), ("prediction", np.uint16), ("probability", np.float32)])


@dataclass(frozen=True)
class Evaluation:
    """Metrics and predictions on a set of images.

    Attributes:
        metrics: Loss without label smoothing, and accuracy.
        top5: Share of the images whose class is among the five most likely.
        predictions: PREDICTION [images], in the order of the data set.
        confidence: Probability of the predicted class, [images].
    """

    metrics: Metrics
    top5: float
    predictions: NDArray[np.void]
    confidence: NDArray[np.float32]

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
    watch: Callable[[Loader], Iterable[Any]] = iter,
) -> Evaluation:
    """Evaluate a model; with several ranks, each evaluates a share of the images, and all return the whole result.

    Args:
        loader: Batches of this rank's share, uint8 [images, channels, height, width] and labels [images].
        normalize: Makes the model's inputs from pixels.
        watch: Passes the batches on, and may show progress or raise Interrupted in between.
    """
    model.eval()
    metrics = MetricAccumulator(device)
    columns = [torch.zeros(5, 0, device=device)]  # of each image, as unpacked below
    for logits, labels in compute_logits(model, watch(loader), normalize, precision, device):
        metrics.add(F.cross_entropy(logits, labels), logits, labels)
        probabilities = logits.softmax(1)
        in_top5 = (logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).any(1)
        probability = probabilities.gather(1, labels[:, None])[:, 0]
        columns.append(torch.stack((labels, logits.argmax(1), probability, probabilities.amax(1), in_top5)))
    sampler = loader.sampler
    in_order = torch.zeros(5, sampler.length, device=device)
    in_order[:, sampler.indices()] = torch.cat(columns, 1)
    world.all_reduce_sum(in_order)  # images of other ranks are 0 here
    *records, confidence, in_top5 = in_order.cpu().numpy()
    predictions = np.empty(sampler.length, PREDICTION)
    for field, values in zip(PREDICTION.names or (), records, strict=True):
        predictions[field] = values
    return Evaluation(
        metrics.all_reduced(world).compute(), float(in_top5.mean(dtype=np.float64)), predictions, confidence
    )


@torch.no_grad()
def compute_logits(
    model: nn.Module, batches: Iterable[Any], normalize: Normalize, precision: str, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits in fp32 and labels for batches of uint8 images and labels, on the device."""
    for pixels, labels in prefetch(batches, device):
        with autocast(device, precision):
            logits = model(normalize(pixels))
        yield logits.float(), labels
