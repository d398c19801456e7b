"""Which images: those that the best setting and each factor win and lose, from the runs' predictions.npy.

Two questions that are easily mixed up have a test each. On these images: the trained models are given, and the images
are the sample, so the test is paired by image (McNemar's for two runs; here the t test of the differences, for any
number of them). For another training run: the images are given, and the runs are the sample, paired by seed. Both are
corrected as in the comparison: for all effects, or for all pairs of settings, of which the best two are picked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr

from comparison.effects import Effect, Pair, contrast, difference, holm
from comparison.findings import effect_name
from comparison.formatting import change_text, label, p_text
from comparison.least_squares import Estimate, SeedModel, mean
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


@dataclass(frozen=True)
class Predictions:
    """Of all settings, in the order of the comparison's model.

    Attributes:
        labels: [images].
        records: of each setting, [runs, images] of label, prediction, probability of the label.
    """

    labels: NDArray[np.uint16]
    records: list[NDArray[np.void]]

    @cached_property
    def correct(self) -> NDArray[np.float64]:
        """[settings, images]: the share of the runs that classify each correctly."""
        return np.stack([np.mean(runs["prediction"] == self.labels, axis=0) for runs in self.records])

    @cached_property
    def probability(self) -> NDArray[np.float32]:
        """[settings, images]: of the label, on average over the runs."""
        return np.stack([runs["probability"].mean(0) for runs in self.records])

    def disagreement(self, pairs: Sequence[Pair]) -> float:
        """The share of the images that two runs classify differently, one of each setting of a pair."""
        predicted = [(self.records[a]["prediction"], self.records[b]["prediction"]) for a, b in pairs]
        return float(np.mean([np.mean(a[:, None] != b[None]) for a, b in predicted]))

    def disagreement_of_seeds(self, settings: Sequence[int]) -> float | None:
        """The share that two runs of the same setting classify differently; None with one seed."""
        of_settings = [list(combinations(self.records[i]["prediction"], 2)) for i in settings]
        shares = [np.mean([np.mean(a != b) for a, b in pairs]) for pairs in of_settings if pairs]
        return float(np.mean(shares)) if shares else None


@dataclass(frozen=True)
class ImageDifference:
    """What one setting instead of another, or a factor, does to the test images.

    Attributes:
        name: "A instead of B".
        gains, probability_gains: [images], of the share of correct runs and of the label's mean probability.
        on_these_images, for_another_run: the change of test accuracy, tested in two ways.
    """

    name: str
    gains: NDArray[np.float64]
    probability_gains: NDArray[np.float64]
    on_these_images: Effect
    for_another_run: Effect

    @property
    def won(self) -> NDArray[np.int64]:
        """The images, the clearest first."""
        return np.lexsort((-self.probability_gains, -self.gains))[: np.sum(self.gains > 0)]

    @property
    def lost(self) -> NDArray[np.int64]:
        return np.lexsort((self.probability_gains, self.gains))[: np.sum(self.gains < 0)]


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


def read_predictions(comparison: Comparison) -> Predictions:
    if len(comparison.valued) < 2:
        raise ConfigError("--images: expected two settings at least that have a result")
    try:
        records = [[np.load(run.folder / "predictions.npy") for run in setting.completed]
                   for setting in comparison.position]  # fmt: skip
    except (OSError, ValueError) as error:
        raise ConfigError(f"--images: {error}; expected the predictions.npy of every completed run") from error
    labels = records[0][0]["label"]
    if any(not np.array_equal(run["label"], labels) for runs in records for run in runs):
        raise ConfigError("--images: the runs were tested on different images")
    return Predictions(labels, [np.stack(runs) for runs in records])


def image_differences(comparison: Comparison, predictions: Predictions) -> list[ImageDifference]:
    """Of the best setting against the next, and of every effect that is not the same."""
    model = SeedModel(pd.DataFrame([setting.by_seed("test/accuracy") for setting in comparison.position]))
    best, other = (comparison.position[setting] for setting in comparison.valued[:2])
    two = f"{label(comparison.valued[0], comparison)} instead of {label(comparison.valued[1], comparison)}"
    others = [effect for effect in comparison.effects if {*effect.compared} != {best, other}]
    families = [
        ([two], [difference("setting", best, other, [(best, other)], model)], math.comb(len(comparison.valued), 2)),
        ([effect_name(effect, comparison) for effect in others], others, None),
    ]
    found: list[ImageDifference] = []
    for names, effects, comparisons in families:
        weights = [contrast(effect.paired, len(model.values)) for effect in effects]
        gains = [np.round(of_settings @ predictions.correct, 9) for of_settings in weights]
        probability_gains = [of_settings @ predictions.probability for of_settings in weights]
        by_image, by_seed = (
            holm([replace(effect, change=change) for effect, change in zip(effects, changes, strict=True)], comparisons)
            for changes in (map(paired_by_image, gains), map(model.difference, weights))
        )
        found += map(ImageDifference, names, gains, probability_gains, by_image, by_seed)
    return found


def paired_by_image(gains: NDArray[np.float64]) -> Estimate:
    """The mean gain with its t test."""
    found = mean(gains)
    assert found
    if not found.error or not found.freedom:
        return found
    return replace(found, p=2 * float(stdtr(found.freedom, -abs(found.value / found.error))))


def row(one: ImageDifference, predictions: Predictions) -> list[str]:
    """Of the table on the terminal."""
    paired, compared = one.for_another_run.paired, one.for_another_run.compared
    between, within = predictions.disagreement(paired), predictions.disagreement_of_seeds(compared)
    tests = (one.on_these_images.p_holm, one.for_another_run.p_holm)
    return [
        one.name,
        f"{len(one.won):,}",
        f"{len(one.lost):,}",
        change_text(one.for_another_run.change.value, "accuracy", ""),
        *("one seed" if p is None else p_text(p) for p in tests),
        f"{100 * between:.1f} %",
        "one seed" if within is None else f"{100 * within:.1f} %",
    ]


def table(found: Sequence[ImageDifference], predictions: Predictions) -> pd.DataFrame:
    """images.csv: a row for each image that is won or lost, the most clearly lost first."""
    rows = [
        pd.DataFrame({"comparison": one.name, "image": own, "label": predictions.labels[own], "gain": one.gains[own]})
        for one in found
        for own in [np.concatenate([one.lost, one.won[::-1]])]
    ]
    return pd.concat(rows)
