"""The output of evaluate.py: a folder of figures, tables and pictures.

evaluation.json         accuracy, loss and calibration, with their checkpoint and data
classes.csv             images and accuracy of each class that has images
confusion_matrix.csv    images of each true class (row) and predicted class (column); also as a picture
predictions.npy         label, prediction and the label's probability of each image, in the data set's order
predictions.csv         the same, with paths and names of classes
wrong_images.csv        misclassified images, most clearly wrong first
reliability.png         accuracy over confidence
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from config.commands import Evaluate
from config.text import csv_text
from data.splits import Split
from inference.checkpoint import LoadedCheckpoint
from runtime.files import whole, write_text
from tracking import plots
from tracking.predictions import write_predictions
from training.evaluation import Evaluation
from training.summary import as_lines, summarize

log = logging.getLogger(__name__)

BINS = 15  # equally wide bins of confidence, as in Guo et al., arXiv 1706.04599


def print_summary(checkpoint: LoadedCheckpoint, image_size: tuple[int, int]) -> None:
    architecture = checkpoint.weights.architecture
    parts = summarize(checkpoint.config, architecture.channels, architecture.n_classes, image_size)
    for line in as_lines(parts):
        log.info(f"  {line}")


def write_report(
    result: Evaluation, folder: Path, checkpoint: LoadedCheckpoint, settings: Evaluate, evaluated: Split
) -> None:
    """Write all files of an evaluation, and print its figures."""
    split, data = settings.split, settings.data
    metrics, bins = result.figures, confidence_bins(result)
    ece = calibration_error(bins)
    figures = {
        "checkpoint": str(checkpoint.weights.path),
        "weights": checkpoint.weights.fingerprint(),
        "layout": checkpoint.weights.layout,
        "architecture": {**asdict(checkpoint.weights.architecture), "activation": checkpoint.config.model.activation},
        "data": asdict(data),
        "split": split,
        "images": len(result.predictions),
        **{f"{split}/{name}": value for name, value in metrics.items()},
        f"{split}/top5_accuracy": result.top5,
        f"{split}/ece": ece,
        "bins": bins,
    }
    folder.mkdir(parents=True, exist_ok=True)
    labels, predicted = result.predictions["label"], result.predictions["prediction"]
    present = np.union1d(labels, predicted)  # a data set may have three of a thousand classes
    confusion, names = confusion_matrix(labels, predicted, labels=present), [checkpoint.labels[i] for i in present]
    images = confusion.sum(1)
    classes = pd.DataFrame({"class": names, "images": images, "accuracy": confusion.diagonal() / np.maximum(images, 1)})
    classes = classes[images > 0]
    write_text(folder / "classes.csv", csv_text(classes, index=False))
    matrix = pd.DataFrame(confusion, index=names, columns=names)
    write_text(folder / "confusion_matrix.csv", csv_text(matrix, index_label="class"))
    with whole(folder / "predictions.npy") as temporary:
        np.save(temporary, result.predictions)
    write_predictions(folder, result.predictions, evaluated, data.root, checkpoint.labels)
    plots.save_figure(plots.confusion_matrix(confusion, names), folder / "confusion_matrix")
    plots.save_figure(reliability_diagram(bins, ece), folder / "reliability")
    write_text(folder / "evaluation.json", json.dumps(figures, indent=2) + "\n")

    log.info(
        f"  {data.name}, {split}, {len(result.predictions):,} images: top-1 {metrics['accuracy']:.2%}, "
        + (f"top-5 {result.top5:.2%}, " if len(names) > 5 else "")
        + f"balanced {metrics['balanced_accuracy']:.2%}, macro-F1 {metrics['macro_f1']:.2%}, "
        + f"loss {metrics['loss']:.4f}, calibration error {ece:.2%}"
    )
    hardest = classes.nsmallest(3, "accuracy")
    worst = [f"{name} {accuracy:.1%}" for name, accuracy in zip(hardest["class"], hardest["accuracy"], strict=True)]
    log.info(f"  hardest: {', '.join(worst)} → {folder}")


def confidence_bins(result: Evaluation) -> list[dict[str, float]]:
    """Compute number, mean confidence and accuracy of images in bins of confidence."""
    index = np.minimum((result.confidence * BINS).astype(int), BINS - 1)
    correct = result.predictions["prediction"] == result.predictions["label"]
    return [
        {"images": int(inside.sum()), "confidence": float(result.confidence[inside].mean()),
         "accuracy": float(correct[inside].mean()), "low": i / BINS, "high": (i + 1) / BINS}
        for i in range(BINS) if (inside := index == i).any()
    ]  # fmt: skip


def calibration_error(bins: list[dict[str, float]]) -> float:
    """Average the difference of accuracy and confidence over bins of confidence (expected calibration error)."""
    gaps = [row["images"] * abs(row["accuracy"] - row["confidence"]) for row in bins]
    return sum(gaps) / sum(row["images"] for row in bins)


def reliability_diagram(bins: list[dict[str, float]], ece: float) -> Figure:
    """Draw accuracy over confidence; the bars of a calibrated model end on the diagonal."""
    percent = 100 * pd.DataFrame(bins)
    bar = {"align": "edge", "width": percent["high"] - percent["low"], "edgecolor": "white", "linewidth": 0.5}
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(3.3, 3.9), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        above.bar(percent["low"], percent["accuracy"], color=plots.COLORS[0], **bar)
        above.plot([0, 100], [0, 100], color=plots.GREY, linestyle="--", linewidth=0.8)
        above.plot("confidence", "accuracy", "o", data=percent, color=plots.COLORS[1], ms=3, clip_on=False)
        above.set(ylabel="accuracy, %", ylim=(0, 100), title=f"Expected calibration error {ece:.2%}")
        below.bar(percent["low"], percent["images"] / 100, color=plots.GREY, **bar)
        below.set(xlabel="confidence, % (dots: mean of the bin)", ylabel="images", xlim=(0, 100))
    return figure
