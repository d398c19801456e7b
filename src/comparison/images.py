"""Which images the best setting and each factor win and lose: a table, images.csv and images.png."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from comparison.effects import Effect
from comparison.formatting import change_text, p_text
from comparison.image_differences import ImageDifference, Predictions, image_differences, read_predictions
from comparison.results import Comparison
from config.errors import ConfigError
from runtime.console import print_table, say

HEADER = (
    "", "won", "lost", "points", "on these\nimages", "for another\ntraining run",
    "settings\ndisagree", "seeds\ndisagree",
)  # fmt: skip
NOTES = (
    "Won, lost: images that more, or fewer, of the runs classify correctly.",
    "On these images: p of the difference between these trained models, over images. For another training run: over "
    "seeds. Both are corrected for the comparisons made.",
    "Disagree: images that two runs classify differently, of the two settings, or of one setting with two seeds.",
)
ROWS = 20
PICTURED = 4  # of the differences


def compare_images(comparison: Comparison, folder: Path) -> None:
    """Print which images are won and lost, by the best setting against the next and by every effect.

    images.csv in the folder has all of them, and images.png the clearest, where the data set is at hand.

    Raises:
        ConfigError: there are no two settings, no predictions, or they are of different images; or the folder cannot be
            written to.
    """
    predictions = read_predictions(comparison)
    found = image_differences(comparison, predictions)
    title = f"{comparison.title}: {len(predictions.labels):,} test images"
    print_table(title, HEADER, [row(one, predictions) for one in found[:ROWS]])
    if len(found) > ROWS:
        say(f"… and {len(found) - ROWS} more in images.csv")
    for line in NOTES:
        say(line)

    from comparison.image_sheet import image_sheet, read_images  # Matplotlib and torchvision take long to import
    from data.image_files import DataError

    try:
        table(found, predictions).to_csv(folder / "images.csv", index=False)
        try:
            images, classes = read_images(comparison.valued[0].completed[0], predictions.labels)
        except DataError as error:
            say(f"→ {folder}/images.csv; no images.png: {error}")
            return
        largest = sorted(found[1:], key=lambda one: -abs(one.for_another_run.change.value))
        sheet = image_sheet([found[0], *largest[: PICTURED - 1]], predictions, images, classes)
        sheet.savefig(folder / "images.png", dpi=150)
    except OSError as error:
        raise ConfigError(f"{folder}: the images cannot be written there: {error.strerror or error}") from error
    say(f"→ {folder}/images.png, images.csv")


def row(one: ImageDifference, predictions: Predictions) -> list[str]:
    """Of the table on the terminal."""
    paired, compared = one.for_another_run.paired, one.for_another_run.compared
    between, within = predictions.disagreement(paired), predictions.disagreement_of_seeds(compared)
    return [
        one.name,
        f"{len(one.won):,}",
        f"{len(one.lost):,}",
        change_text(one.for_another_run.change.value, "accuracy", ""),
        *map(test_text, (one.on_these_images, one.for_another_run)),
        f"{100 * between:.1f} %",
        "one seed" if within is None else f"{100 * within:.1f} %",
    ]


def test_text(tested: Effect) -> str:
    if tested.p_holm is not None:
        return p_text(tested.p_holm)
    return "same in all" if tested.change.is_exact else "one seed"


def table(found: Sequence[ImageDifference], predictions: Predictions) -> pd.DataFrame:
    """images.csv: a row for each image that is won or lost, the most clearly lost first."""
    rows = [
        pd.DataFrame({"comparison": one.name, "image": own, "label": predictions.labels[own], "gain": one.gains[own]})
        for one in found
        for own in [np.concatenate([one.lost, one.won[::-1]])]
    ]
    return pd.concat(rows)
