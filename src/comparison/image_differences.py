"""Differences of settings and factors on each test image, from the runs' predictions.npy (stats/images.py).

P values are corrected as in the comparison: for all effects, or for all pairs of settings, of which the best two are
picked.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comparison.results import Comparison
from comparison.settings import Setting
from config.errors import ConfigError, first_line
from stats import Effect
from stats.families import holm
from stats.images import ImageGains, Runs, Sampled, image_gains

LISTED = 0.1  # false discovery rate of the images that are called clear

Pair = tuple[Setting, Setting]


@dataclass(frozen=True)
class Predictions:
    """The predictions of all settings and seeds.

    Attributes:
        labels: [images].
        records: Label, prediction and probability of the label, [images], for each setting and seed.
    """

    labels: NDArray[np.uint16]
    records: Mapping[Setting, Mapping[int, NDArray[np.void]]]

    def predicted(self, setting: Setting) -> NDArray[np.uint16]:
        """Return the predicted classes, [runs, images]."""
        return np.stack([run["prediction"] for run in self.records[setting].values()])

    def probability(self, setting: Setting) -> NDArray[np.float64]:
        """Probability of the label, averaged over the runs, [images]."""
        return np.mean([run["probability"] for run in self.records[setting].values()], axis=0)

    def disagreement(self, pairs: Sequence[Pair]) -> float:
        """Compute the share of images that two runs of different settings classify differently."""
        predicted = [(self.predicted(a), self.predicted(b)) for a, b in pairs]
        return float(np.mean([np.mean(a[:, None] != b[None]) for a, b in predicted]))

    def disagreement_of_seeds(self, settings: Sequence[Setting]) -> float | None:
        """Compute the share of images that two seeds of a setting classify differently; None with one seed."""
        of_settings = [list(combinations(self.predicted(setting), 2)) for setting in settings]
        shares = [np.mean([np.mean(a != b) for a, b in pairs]) for pairs in of_settings if pairs]
        return float(np.mean(shares)) if shares else None


@dataclass(frozen=True)
class ImageDifference:
    """The difference of two settings, or of a factor's levels, on the test images.

    Attributes:
        effect: The effect of the factor; None if the best setting is compared with the next one.
        pairs: The settings compared.
        gains: Gains by image, and the change of the accuracy.
        probability_gains: Change of the label's mean probability, [images].
        p_new_runs, p_both: p values for new runs on these images, and on other images, both corrected for the
            comparisons made; None with one seed.
    """

    effect: Effect | None
    pairs: Sequence[Pair]
    gains: ImageGains
    probability_gains: NDArray[np.float64]
    p_new_runs: float | None = None
    p_both: float | None = None

    @property
    def settings(self) -> list[Setting]:
        return list(dict.fromkeys(setting for pair in self.pairs for setting in pair))

    @property
    def won(self) -> NDArray[np.int64]:
        """List the images won or lost, the clearest first."""
        gains = self.gains.by_image
        return np.lexsort((-self.probability_gains, -gains))[: np.sum(gains > 0)]

    @property
    def lost(self) -> NDArray[np.int64]:
        gains = self.gains.by_image
        return np.lexsort((self.probability_gains, gains))[: np.sum(gains < 0)]

    @property
    def clear(self) -> int:
        """Count the images in the longest list of which at most one in ten is won or lost by chance."""
        return int(np.sum(self.gains.rates <= LISTED))


def read_predictions(comparison: Comparison) -> Predictions:
    """Read the predictions of all completed runs.

    Raises:
        ConfigError: Fewer than two settings have a result, or their predictions are missing or of different images.
    """
    if len(comparison.valued) < 2:
        raise ConfigError("--images: expected two settings at least that have a result")
    records = {
        setting: {run.seed: read_records(run.folder / "predictions.npy") for run in setting.completed}
        for setting in comparison.valued
    }
    runs = [run for of_setting in records.values() for run in of_setting.values()]
    if any(not np.array_equal(run["label"], runs[0]["label"]) for run in runs):
        raise ConfigError("--images: the runs were tested on different images")
    return Predictions(runs[0]["label"], records)


def read_records(path: Path) -> NDArray[np.void]:
    """Read and check a predictions.npy.

    Raises:
        ConfigError: The file is missing, cut off, or no predictions.
    """
    try:
        if not path.is_file():  # opening a pipe would block
            raise FileNotFoundError("file not found")
        mapped = np.load(path, mmap_mode="r")  # a damaged header may claim any size
        kinds = {name: mapped.dtype[name].kind for name in mapped.dtype.names or ()}
        if mapped.ndim != 1 or kinds != {"label": "u", "prediction": "u", "probability": "f"}:
            raise ValueError("no records of label, prediction and probability")
        return np.array(mapped)
    except (OSError, ValueError, TypeError, EOFError, SyntaxError, MemoryError) as error:  # NumPy evaluates the header
        raise ConfigError(
            f"--images: {path}: {first_line(error)}; expected the predictions.npy of every completed run. "
            "Fix: leave the run out with --filter"
        ) from error


def image_differences(comparison: Comparison, predictions: Predictions) -> list[ImageDifference]:
    """Compare the best setting with the next one, and the levels of every factor."""
    correct: dict[Hashable, Runs] = {
        setting: {seed: run["prediction"] == predictions.labels for seed, run in runs.items()}
        for setting, runs in predictions.records.items()
    }

    def difference(effect: Effect | None, pairs: Sequence[Pair]) -> ImageDifference:
        gains = np.mean([predictions.probability(a) - predictions.probability(b) for a, b in pairs], axis=0)
        return ImageDifference(effect, pairs, image_gains(correct, pairs), gains)

    best, other = comparison.valued[:2]
    two = difference(None, [(best, other)])
    others = [
        difference(effect, pairs)
        for effect, pairs in comparison.pairs_of.items()
        if {*pairs[0]} != {best, other} or len(pairs) > 1
    ]
    return [*corrected([two], math.comb(len(comparison.valued), 2)), *corrected(others)]


def corrected(differences: Sequence[ImageDifference], comparisons: int | None = None) -> list[ImageDifference]:
    """Correct the p values for multiple comparisons, by default for those listed."""

    def of(samples: Sequence[Sampled]) -> list[float | None]:
        p = holm(np.array([np.nan if sampled.p is None else sampled.p for sampled in samples]), comparisons)
        return [None if math.isnan(value) else float(value) for value in p]

    new_runs = of([difference.gains.new_runs for difference in differences])
    both = of([difference.gains.both for difference in differences])
    return [
        replace(difference, p_new_runs=p_new_runs, p_both=p_both)
        for difference, p_new_runs, p_both in zip(differences, new_runs, both, strict=True)
    ]
