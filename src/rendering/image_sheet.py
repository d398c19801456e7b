"""Pictures of the test images that are won and lost most clearly: a sheet, and thumbnails for the page."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from comparison.image_differences import ImageDifference, Predictions
from comparison.runs import Run
from data import datasets
from data.image_files import DataError
from data.splits import Split
from rendering.formatting import shorten
from runtime.console import count
from tracking.plots import GREY, PAGE, STYLE, for_sheet, show_images

COLUMNS = 6
THUMBNAILS, SIDE = 12, 96  # most thumbnails in a row of the page; their larger side in pixels
CLASS = 10  # most characters of each class name in "second → first"
LEGEND = "Below an image: its class; what most runs predict, with the second → with the first; how many runs are right"


def read_test_images(run: Run, labels: NDArray[np.uint16]) -> tuple[Split, list[str]]:
    """Read the test images of a run, and the names of their classes.

    Raises:
        DataError: The images are no longer at the run's data.root, or have changed.
    """
    name, root = run.config["data.name"], run.config["data.root"]
    options = [run.config[f"data.{key}"] for key in ("skip_unreadable", "test_fraction", "split_seed")]
    data = datasets.read(name, root, False, *options)
    if not np.array_equal(data.test.labels, labels):
        raise DataError(f"data.root={root}: the test images are no longer those of the runs")
    return data.test, data.classes


def image_sheet(
    named: Sequence[tuple[str, ImageDifference]], predictions: Predictions, images: Split, classes: Sequence[str]
) -> Figure:
    """Draw the rows of pictures, and below each picture its caption."""
    rows = picture_rows(named, COLUMNS)
    side = PAGE / COLUMNS
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 0.3 + len(rows) * (side + 0.65)), layout="constrained")
        figure.suptitle(LEGEND, fontsize=7, color=GREY, x=0.01, ha="left")
        areas = figure.subfigures(max(1, len(rows)), 1, squeeze=False)[:, 0]
        for area, (title, difference, shown) in zip(areas, rows, strict=False):
            area.suptitle(title, fontsize=8, x=0.01, ha="left")
            captions = ["\n".join(image_caption(i, difference, predictions, classes)) for i in shown]
            show_images(area.subplots(1, COLUMNS), [for_sheet(images[i]) for i in shown], captions)
    return figure


def thumbnails(
    named: Sequence[tuple[str, ImageDifference]], predictions: Predictions, images: Split, classes: Sequence[str]
) -> dict[str, Any]:
    """Return the rows of pictures for a page, at most about 10 kB each."""
    rows = [
        {
            "title": title,
            "images": [
                {"src": data_uri(images[i]), "caption": image_caption(i, difference, predictions, classes)}
                for i in shown.tolist()
            ],
        }
        for title, difference, shown in picture_rows(named, THUMBNAILS)
    ]
    return {"legend": LEGEND, "rows": rows}


def picture_rows(
    named: Sequence[tuple[str, ImageDifference]], most: int
) -> list[tuple[str, ImageDifference, NDArray[np.int64]]]:
    """List for each difference a title and the images won, the clearest first, and then those lost."""
    return [
        (f"{name}: {word} on {count(len(changed), 'image')}", difference, changed[:most])
        for name, difference in named
        for word, changed in (("more often right", difference.won), ("less often right", difference.lost))
        if len(changed)
    ]


def data_uri(image: Image.Image) -> str:
    """Encode a small copy of an image as a URI that holds it; tiny ones without loss."""
    image = image.convert("RGB")
    form = "PNG" if max(image.size) <= 32 else "JPEG"
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, form, quality=80)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_caption(
    image: int, difference: ImageDifference, predictions: Predictions, classes: Sequence[str]
) -> list[str]:
    """Describe an image in three lines; see LEGEND."""
    label, predicted, right = predictions.labels[image], [], []
    for settings in zip(*difference.pairs, strict=True):
        votes = np.concatenate([predictions.predicted(setting)[:, image] for setting in settings])
        ((voted, _),) = Counter(votes.tolist()).most_common(1)
        predicted.append(shorten(classes[voted] if voted < len(classes) else str(voted), CLASS))
        shares = [np.mean(predictions.predicted(setting)[:, image] == label) for setting in settings]
        right.append(f"{100 * np.mean(shares):.0f}")
    name = shorten(classes[label], 2 * CLASS)
    return [name, f"{predicted[1]} → {predicted[0]}", f"{right[1]} → {right[0]} %"]
