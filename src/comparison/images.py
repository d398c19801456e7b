"""Which images: where the best setting and the next disagree, image by image, from the runs' predictions.npy.

Two questions that are easily mixed up have a test each. On these images: the trained models are given, and the images
are the sample, so the test is paired by image (McNemar's for two runs; here the t test of the differences, for any
number of them). For another training run: the images are given, and the runs are the sample, paired by seed.
"""

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr

from comparison.formatting import change_text, label, p_text
from comparison.least_squares import SeedModel, mean
from comparison.results import Comparison
from comparison.settings import Setting
from config.errors import ConfigError

Predictions = list[NDArray[np.void]]  # a run each: [images] of label, prediction, probability


def read_predictions(setting: Setting) -> Predictions:
    """
    Raises:
        ConfigError: a completed run kept none, as runs of older versions.
    """
    try:
        return [np.load(run.folder / "predictions.npy") for run in setting.completed]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--images: {error}; expected the predictions.npy of every completed run") from error


def share_correct(runs: Predictions) -> NDArray[np.float64]:
    """[images]: the share of the runs that classify each correctly."""
    return np.mean([run["label"] == run["prediction"] for run in runs], axis=0)


def disagreement(pairs: list[tuple[NDArray[np.void], NDArray[np.void]]]) -> float | None:
    """The share of the images that two runs classify differently, on average over pairs of runs."""
    return float(np.mean([a["prediction"] != b["prediction"] for a, b in pairs])) if pairs else None


def compare_images(comparison: Comparison, folder: Path) -> list[str]:
    """What the images say of the best setting and the next; images.csv in the folder has all that one wins or loses.

    Raises:
        ConfigError: there are no two settings, no predictions, or they are of different images.
    """
    if len(comparison.valued) < 2:
        raise ConfigError("--images: expected two settings at least that have a result")
    best, other = comparison.valued[:2]
    ours, theirs = read_predictions(best), read_predictions(other)
    labels = ours[0]["label"]
    if any(not np.array_equal(run["label"], labels) for run in (*ours, *theirs)):
        raise ConfigError("--images: the runs were tested on different images")
    within = disagreement([*combinations(ours, 2), *combinations(theirs, 2)])
    between = disagreement(list(product(ours, theirs)))
    gains = share_correct(ours) - share_correct(theirs)
    table = pd.DataFrame({"image": np.arange(len(labels)), "label": labels, "gain": gains})
    table[table.gain != 0].sort_values("gain", kind="stable").to_csv(folder / "images.csv", index=False)

    by_image = mean(gains)
    assert by_image
    lines = [f"{label(best, comparison)} against {label(other, comparison)}, {len(labels):,} test images:"]
    lines.append(
        f"  more often right on {np.sum(gains > 0):,} of them, less often on {np.sum(gains < 0):,} → images.csv"
    )
    lines.append(
        f"  two runs classify differently {between:.1%} of them, of the same setting "
        + (f"{within:.1%}" if within is not None else "not known, with one seed")
    )
    if by_image.error:
        p = 2 * float(stdtr(by_image.freedom, -abs(by_image.value / by_image.error)))
        lines.append(f"  on these images, with these runs: {change_text(by_image.value, 'accuracy')} ({p_text(p)})")
    model = SeedModel(pd.DataFrame([setting.by_seed("test/accuracy") for setting in (best, other)]))
    over_seeds = model.difference([1, -1])
    tested = p_text(over_seeds.p) if over_seeds.p is not None else "not tested, with one seed"
    lines.append(f"  for another training run: {change_text(over_seeds.value, 'accuracy')} ({tested})")
    return lines
