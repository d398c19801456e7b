"""Predictions of further runs: the interval of their mean, and their possible rate of failures."""

import math

from scipy.special import betaincinv  # scipy.stats would take a second to import

from stats.estimates import CONFIDENCE, quantile


def prediction_interval(
    mean: float, std: float, runs: int, freedom: float | None = None, new_runs: int = 1, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the interval that holds the mean of further runs of the same recipe with this probability.

    It is the one to compare a published result with: the interval of our mean only says where the mean of endless runs
    lies, and a single run of the identical recipe falls outside it in 8 % of cases with 2 seeds and 51 % with 10.

    Args:
        mean, runs: of our runs.
        std: of a single run.
        freedom: degrees of freedom of `std`; None: runs - 1, as of the runs' own standard deviation.
        new_runs: how many runs the other mean rests on.

    Raises:
        ValueError: a single run without a spread known from others.

    Source: Hahn and Meeker, 1991, Statistical Intervals, section 4.7.
    """
    freedom = runs - 1 if freedom is None else freedom
    if freedom <= 0:
        raise ValueError(f"freedom={freedom}: no spread is known. Fix: two runs at least, or the freedom of std")
    margin = quantile(freedom, confidence) * std * math.sqrt(1 / runs + 1 / new_runs)
    return mean - margin, mean + margin


def rate_bounds(events: int, runs: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the lowest and the highest rate of an event that fit to what was counted, each with this confidence.

    Of 9 runs none failed: the rate of failures may be as high as 28 %.

    Source: Clopper and Pearson, 1934, Biometrika 26, 404-413.
    """
    low = float(betaincinv(events, runs - events + 1, 1 - confidence)) if events else 0.0
    high = float(betaincinv(events + 1, runs - events, confidence)) if events < runs else 1.0
    return low, high
