"""Figures of a model's predictions; those of its training are in tracking/plots.py."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from tracking.plots import COLORS, GREY, PAGE, STYLE, show_images


def reliability_diagram(bins: Sequence[Mapping[str, float]], ece: float) -> Figure:
    """Accuracy over confidence; a calibrated model's bars end on the diagonal.

    Args:
        bins: low, high, images, confidence, accuracy of each.
        ece: the expected calibration error, a fraction.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.3, 3.9), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        places = [100 * row["low"] for row in bins]
        widths = [100 * (row["high"] - row["low"]) for row in bins]
        bar = {"align": "edge", "width": widths, "edgecolor": "white", "linewidth": 0.5}
        above.bar(places, [100 * row["accuracy"] for row in bins], color=COLORS[0], **bar)
        above.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=0.8)
        above.plot(
            [100 * row["confidence"] for row in bins], [100 * row["accuracy"] for row in bins],
            color=COLORS[1], marker="o", linestyle="none", markersize=3, label="mean of the bin",
        )  # fmt: skip
        above.set(ylabel="accuracy, %", ylim=(0, 100), title=f"Expected calibration error {ece:.2%}")
        above.legend(loc="upper left")
        below.bar(places, [row["images"] for row in bins], color=GREY, **bar)
        below.set(xlabel="confidence, %", ylabel="images", xlim=(0, 100))
    return figure


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str], columns: int = 6) -> Figure:
    """Images side by side, each with its caption below."""
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    with matplotlib.rc_context(STYLE):
        side = PAGE / 6
        figure = Figure(figsize=(columns * side, rows * (side + 0.35)), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        show_images(grid.flat, images, captions)
    return figure
