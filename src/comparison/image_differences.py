"""What a setting or a factor does to each test image, from the runs' predictions.npy.

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

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr

from comparison.effects import Effect, Pair, contrast, difference, holm
from comparison.findings import effect_name
from comparison.formatting import label
from comparison.least_squares import Estimate, SeedModel, mean
from comparison.results import Comparison
from config.errors import ConfigError


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
    if not found.error:  # the same for every image; where nothing differs, p is 1
        return replace(found, p=float(not found.value))
    return replace(found, p=2 * float(stdtr(found.freedom, -abs(found.value / found.error))))
