"""The test images that are won and lost most clearly, as a sheet of pictures."""

from collections import Counter
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from comparison.formatting import count, shorten
from comparison.image_differences import ImageDifference, Predictions
from comparison.runs import Run
from data import datasets
from data.image_files import DataError
from data.splits import Split
from tracking.plots import GREY, PAGE, STYLE, show_images

COLUMNS = 6
CLASS = 10  # characters of a class's name beside another
LEGEND = "Below each image: its class; what most runs predict, with the second → with the first; how many are right"


def read_images(run: Run, labels: NDArray[np.uint16]) -> tuple[Split, list[str]]:
    """The test images that a run was evaluated on, and the names of their classes.

    Raises:
        DataError: they are not where the run found them, or they are others now.
    """
    name, root = run.config["data.name"], run.config["data.root"]
    options = [run.config[f"data.{key}"] for key in ("skip_unreadable", "test_fraction", "split_seed")]
    data = datasets.read(name, root, False, *options)
    if not np.array_equal(data.test.labels, labels):
        raise DataError(f"data.root={root}: the test images are no longer those of the runs")
    return data.test, data.classes


def image_sheet(
    differences: Sequence[ImageDifference], predictions: Predictions, images: Split, classes: Sequence[str]
) -> Figure:
    """For each difference the images that are won, the clearest first, and below them those that are lost."""
    rows = [
        (f"{one.name}: {word} on {count(len(found), 'image')}", one, found[:COLUMNS])
        for one in differences
        for word, found in (("more often right", one.won), ("less often right", one.lost))
        if len(found)
    ]
    side = PAGE / COLUMNS
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 0.3 + len(rows) * (side + 0.65)), layout="constrained")
        figure.suptitle(LEGEND, fontsize=7, color=GREY, x=0.01, ha="left")
        areas = figure.subfigures(max(1, len(rows)), 1, squeeze=False)[:, 0]
        for area, (title, one, found) in zip(areas, rows, strict=False):
            area.suptitle(title, fontsize=8, x=0.01, ha="left")
            captions = [caption(i, one, predictions, classes) for i in found]
            show_images(area.subplots(1, COLUMNS), [images[i] for i in found], captions)
    return figure


def caption(image: int, one: ImageDifference, predictions: Predictions, classes: Sequence[str]) -> str:
    predicted, right = [], []
    for settings in zip(*one.pairs, strict=True):
        votes = np.concatenate([predictions.predicted(setting)[:, image] for setting in settings])
        ((voted, _),) = Counter(votes.tolist()).most_common(1)
        predicted.append(shorten(classes[voted] if voted < len(classes) else str(voted), CLASS))
        shares = [
            np.mean(predictions.predicted(setting)[:, image] == predictions.labels[image]) for setting in settings
        ]
        right.append(f"{100 * np.mean(shares):.0f}")
    name = shorten(classes[predictions.labels[image]], 2 * CLASS)
    return f"{name}\n{predicted[1]} → {predicted[0]}\n{right[1]} → {right[0]} % right"
