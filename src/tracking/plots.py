"""Figures of a run: its curves, and the filters, kernels and confusion matrix of the trained model.

The figure of a comparison is in rendering/figure.py.

Sizes are inches on paper: a column is about 3.3 wide, a page 7. Fonts have at least 7 points. The colors are Okabe and
Ito's, which color-blind readers can distinguish.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from runtime.files import whole

if TYPE_CHECKING:  # torch takes seconds and 450 MB, which a comparison's figure does not need
    from torch import Tensor

PAGE = 7.0  # inches
SHEET_SIDE = 400  # pixels of an image on a sheet, twice as many as are drawn
SHEET_COLUMNS = 6  # of a contact sheet
MOST_KERNELS = 64  # channels drawn of each layer, evenly spaced
COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000")
GREY = "#8C8C8C"
STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7.5, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.7, "xtick.major.width": 0.7, "ytick.major.width": 0.7, "lines.linewidth": 1.3,
    "lines.markersize": 4.5, "axes.titlelocation": "left", "grid.alpha": 0.25, "grid.linewidth": 0.5,
    "text.parse_math": False,  # $ in names does not start a formula
}  # fmt: skip
styled = matplotlib.rc_context(STYLE)


@styled
def save_figure(figure: Figure, path: Path) -> None:
    """Write PATH.png and PATH.svg."""
    with whole(path.with_suffix(".png")) as png, whole(path.with_suffix(".svg")) as svg:
        figure.savefig(png, dpi=220)
        figure.set_layout_engine(None)  # keep the layout, which takes long, for the second file
        figure.savefig(svg)


@styled
def history(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw loss and accuracy by epoch, in training and validation, from the rows of metrics.csv."""
    epochs = [row["epoch"] for row in rows]
    few = len(rows) < 3
    figure = Figure(figsize=(PAGE, 2.8))
    figure.suptitle(title, fontsize=8, x=0.01, ha="left")
    grid = figure.subplots(1, 2, gridspec_kw={"left": 0.07, "right": 0.99, "bottom": 0.15, "top": 0.88, "wspace": 0.18})
    for axes, metric in zip(grid, ("loss", "accuracy"), strict=True):
        for part, color in zip(("train", "val"), COLORS, strict=False):
            values = [row[f"{part}/{metric}"] for row in rows]
            if None not in values:
                percent = [100 * value for value in values] if metric == "accuracy" else values
                axes.plot(epochs, percent, color=color, marker="o" if few else None, label=part)
        axes.set(xlabel="epoch", ylabel="accuracy, %" if metric == "accuracy" else "loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if few:
            axes.set_xticks(epochs)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def model_figures(weights: "Mapping[str, Tensor]", confusion: ArrayLike, classes: Sequence[str]) -> dict[str, Figure]:
    """Draw filters, kernels and the confusion matrix of a trained model; return figures by file name."""
    depthwise = [weight.cpu() for name, weight in weights.items() if name.endswith("depth_wise_conv.weight")]
    return {
        "patch_embedding_filters": patch_embedding_filters(weights["patch_emb.conv.weight"].cpu()),
        "depthwise_kernels": depthwise_kernels(depthwise),
        "confusion_matrix": confusion_matrix(confusion, classes),
    }


@styled
def patch_embedding_filters(weight: ArrayLike) -> Figure:
    """Draw the filters of the patch embedding.

    Args:
        weight: The weights [d_model, in_channels, patch_size, patch_size] on the CPU. Three channels are drawn as
            colors, scaled to the range of each filter; otherwise their mean is drawn.
    """
    filters = np.asarray(weight, dtype=float)
    if filters.shape[1] == 3:
        low, high = filters.min((1, 2, 3), keepdims=True), filters.max((1, 2, 3), keepdims=True)
        tiles = ((filters - low) / np.maximum(high - low, 1e-12)).transpose(0, 2, 3, 1)
    else:
        tiles = filters.mean(1)
    figure = Figure(figsize=(3.3, 3.6))
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.9))
    show_tiles(axes, tiles)
    size = f"{filters.shape[2]}×{filters.shape[3]}"
    axes.set_title(f"Patch embedding: {len(filters)} filters, {size}")
    return figure


@styled
def depthwise_kernels(weights: Sequence[ArrayLike]) -> Figure:
    """Draw the depthwise kernels of every layer, the first at the top left; blue is negative, red positive.

    Args:
        weights: The weights of each layer, [d_model, 1, kernel_size, kernel_size], on the CPU.
    """
    columns = min(4, len(weights))
    rows = math.ceil(len(weights) / columns)
    height = rows * 1.95 + 0.3
    figure = Figure(figsize=(PAGE * columns / 4, height))
    margins = {"left": 0.02, "right": 0.98, "bottom": 0.02, "top": 1 - 0.42 / height, "wspace": 0.08, "hspace": 0.12}
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw=margins).flat
    for axes in grid:
        axes.set_axis_off()
    for i, (axes, weight) in enumerate(zip(figure.axes, weights, strict=False), start=1):
        kernels = np.asarray(weight, dtype=float)[:, 0]
        shown = kernels[np.linspace(0, len(kernels) - 1, min(MOST_KERNELS, len(kernels))).round().astype(int)]
        show_tiles(axes, shown)
        axes.set_title(f"layer {i}", pad=3)
    size, channels = np.shape(weights[0])[2], len(np.asarray(weights[0]))
    shown_of = f"{MOST_KERNELS} of {channels}" if channels > MOST_KERNELS else str(channels)
    figure.suptitle(f"Depthwise kernels, {size}×{size}, {shown_of} channels", fontsize=8, x=0.01, ha="left")
    return figure


def show_tiles(axes: Axes, tiles: NDArray[np.float64]) -> None:
    """Draw tiles [n, height, width(, 3)] as a near-square mosaic; grey values on a scale symmetric about zero."""
    fine = math.ceil(8 / tiles.shape[1])  # Pixels of small tiles are repeated, which makes the gaps narrower.
    tiles = tiles.repeat(fine, axis=1).repeat(fine, axis=2)
    n, height, width, *color = tiles.shape
    columns = math.ceil(math.sqrt(n))
    gap = round(height / 8)
    mosaic = np.full((math.ceil(n / columns) * (height + gap) - gap, columns * (width + gap) - gap, *color), np.nan)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        mosaic[top : top + height, left : left + width] = tile
    limit = float(np.abs(tiles).max()) or 1.0
    if color:
        mosaic = np.nan_to_num(mosaic, nan=1.0)
    axes.imshow(mosaic, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_axis_off()


def for_sheet(image: Image.Image) -> Image.Image:
    """Shrink an image to what a sheet shows; photographs would take a hundred times the memory."""
    image.thumbnail((SHEET_SIDE, SHEET_SIDE))
    return image


def show_images(grid: Iterable[Axes], images: Sequence[Image.Image], captions: Sequence[str]) -> None:
    """Draw each image with its caption below; spare axes stay empty."""
    for axes, image, caption in zip_longest(grid, images, captions):
        axes.set_axis_off()
        axes.set_anchor("S")  # The layout puts the caption below.
        if image is not None:
            axes.imshow(image, cmap="gray" if image.mode == "L" else None, vmin=0, vmax=255)
            axes.set_title(caption, y=0, va="top", loc="center", fontsize=7, pad=-3)


@styled
def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str]) -> Figure:
    """Draw images side by side, each with its caption below."""
    columns = min(SHEET_COLUMNS, len(images))
    rows, side = math.ceil(len(images) / columns), PAGE / SHEET_COLUMNS
    figure = Figure(figsize=(columns * side, rows * (side + 0.35)), layout="constrained")
    show_images(figure.subplots(rows, columns, squeeze=False).flat, images, captions)
    return figure


@styled
def confusion_matrix(counts: ArrayLike, classes: Sequence[str]) -> Figure:
    """Draw numbers of images, [true class, predicted class]; colors are shares of the true class."""
    images = np.asarray(counts)
    shares = 100 * images / np.maximum(images.sum(1, keepdims=True), 1)
    n = len(images)
    named = range(0, n, math.ceil(n / 25))
    names = [name if len(name := str(classes[i])) <= 20 else f"{name[:19]}…" for i in named]
    longest = max(map(len, names))
    label = 0.45 + 0.065 * longest  # inches for the names to the left of the matrix
    below = label if longest > 2 else 0.5
    side = min(PAGE - label - 0.85, max(2.5, 0.32 * n))
    width, height = label + side + 0.85, below + side + 0.3
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((label / width, below / height, side / width, side / height))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    if n <= 20:
        for i, j in np.ndindex(images.shape):
            if images[i, j]:
                axes.text(j, i, f"{images[i, j]}", ha="center", va="center", fontsize=7,
                          color="white" if shares[i, j] > 50 else "black")  # fmt: skip
    axes.set_xticks(named, names, rotation=90 if longest > 2 else 0)
    axes.set_yticks(named, names)
    accuracy = np.trace(images) / max(images.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{accuracy:.2%} of {images.sum():,} images right")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    beside = figure.add_axes(((label + side + 0.1) / width, below / height, 0.12 / width, side / height))
    bar = figure.colorbar(image, cax=beside, label="share of the true class, %")
    bar.outline.set_visible(False)
    return figure
