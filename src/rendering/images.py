"""The test images that the best setting and each factor win and lose: a table, images.csv and images.png."""

import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from comparison.image_differences import ImageDifference, Predictions, image_differences, read_predictions
from comparison.results import Comparison, compared_runs
from comparison.runs import Run
from config.errors import ConfigError, first_line
from config.text import csv_text
from rendering.findings import effect_name
from rendering.formatting import change_text, label, p_text
from runtime.console import print_table, say
from runtime.files import read_text, whole, write_text
from stats.images import Sampled

HEADER = (
    "", "won", "lost", "by seeds\nalone", "clear", "points", "these models,\nother images",
    "new training runs,\nthese images", "both", "settings\ndisagree", "seeds\ndisagree",
)  # fmt: skip
NOTES = (
    "Won, lost: images that more, or fewer, of the runs classify correctly. By seeds alone: so many would be won or "
    "lost if the settings were the same. Clear: in a list of which at most 10 % are won or lost by chance.",
    "±: 95 % intervals of the points, for these trained models on other images, for new training runs on these images, "
    "and for both. p, corrected for the comparisons made: how likely such points are if the settings are the same.",
    "Disagree: images that two runs classify differently, of the two settings, or of one setting with two seeds.",
)
ROWS = 20
PICTURED = 4  # differences in images.png


def compare_images(comparison: Comparison, folder: Path) -> None:
    """Print how many images the best setting and every factor win and lose.

    Write all of them to images.csv in the folder. If the data set is available, write the clearest to images.png and
    images.json, which the page shows.

    Raises:
        ConfigError: Fewer than two settings have a result, their predictions are missing or of different images, or the
            folder cannot be written to.
    """
    predictions = read_predictions(comparison)
    differences = image_differences(comparison, predictions)
    named = [(difference_name(difference, comparison), difference) for difference in differences]
    title = f"{comparison.title}: {len(predictions.labels):,} test images"
    print_table(title, HEADER, [difference_row(name, difference, predictions) for name, difference in named[:ROWS]])
    if len(named) > ROWS:
        say(f"… and {len(named) - ROWS} more in images.csv")
    for line in NOTES:
        say(line)

    from data.image_files import DataError
    from rendering.image_sheet import image_sheet, read_test_images, thumbnails  # takes seconds

    try:
        rows = with_names(images_table(named, predictions), comparison.valued[0].completed[0])
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "images.csv", csv_text(rows, index=False))
        try:
            images, classes = read_test_images(comparison.valued[0].completed[0], predictions.labels)
        except DataError as error:
            say(f"→ {folder}/images.csv; no images.png: {error}")
            return
        largest = sorted(named[1:], key=lambda item: -abs(item[1].gains.both.value))
        pictured = [named[0], *largest[: PICTURED - 1]]
        with whole(folder / "images.png") as temporary:
            image_sheet(pictured, predictions, images, classes).savefig(temporary, dpi=150)
        record = {"runs": compared_runs(comparison), **thumbnails(pictured, predictions, images, classes)}
        write_text(folder / "images.json", json.dumps(record))
    except OSError as error:
        raise ConfigError(f"{folder}: the images cannot be written there: {error.strerror or error}") from error
    say(f"→ {folder}/images.png, images.csv")


def difference_name(difference: ImageDifference, comparison: Comparison) -> str:
    """Name a difference, e.g. "kernel_size 9 instead of 5"."""
    if difference.effect:
        return effect_name(difference.effect, comparison)
    return " instead of ".join(label(setting, comparison) for setting in difference.settings)


def difference_row(name: str, difference: ImageDifference, predictions: Predictions) -> list[str]:
    """Make a row of the table on the terminal."""
    gains = difference.gains
    between = predictions.disagreement(difference.pairs)
    within = predictions.disagreement_of_seeds(difference.settings)
    return [
        name, f"{len(difference.won):,}", f"{len(difference.lost):,}", f"{gains.by_chance:,.0f}",
        f"{difference.clear:,}", change_text(gains.both.value, "accuracy", ""),
        sampled_text(gains.other_images), sampled_text(gains.new_runs, difference.p_new_runs),
        sampled_text(gains.both, difference.p_both),
        f"{100 * between:.1f} %", "one seed" if within is None else f"{100 * within:.1f} %",
    ]  # fmt: skip


def sampled_text(sampled: Sampled, p: float | None = None) -> str:
    """Write an interval and a p value, e.g. "± 1.20, p = 0.31"."""
    if sampled.margin is None:
        return "one seed"
    return f"± {100 * sampled.margin:.2f}" + ("" if p is None else f", {p_text(p)}")


def with_names(images: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Add each image's path and class if the run has recorded them."""
    try:
        text = read_text(run.folder / "predictions.csv")
        names = pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)
        names = names[["image", "label"]].loc[images["image"]]
        if not text.endswith("\n"):
            raise ValueError("it is cut off")
    except FileNotFoundError:  # it is not needed otherwise, and may have been removed
        return images
    except (OSError, KeyError, ValueError) as problem:
        say(f"{run.folder}/predictions.csv cannot be used, so images.csv has no paths: {first_line(problem)}")
        return images
    return images.assign(path=names["image"].to_numpy(), **{"class": names["label"].to_numpy()})


def images_table(named: Sequence[tuple[str, ImageDifference]], predictions: Predictions) -> pd.DataFrame:
    """Make images.csv: a row for each image won or lost, the most clearly lost first.

    A row's false discovery rate is that of the list of all images with at least this gain.
    """
    tables = []
    for name, difference in named:
        images, gains = np.concatenate([difference.lost, difference.won[::-1]]), difference.gains
        columns = {"image": images, "label": predictions.labels[images], "gain": gains.by_image[images]}
        columns["false_discovery_rate"] = gains.rates[images]
        tables.append(pd.DataFrame({"comparison": name, **columns}))
    return pd.concat(tables)
