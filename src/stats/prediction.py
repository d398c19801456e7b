"""Predictions of further runs: the interval of their mean, and their possible rate of failures."""

import math

from scipy.special import betaincinv  # importing scipy.stats would take a second

from stats.estimates import CONFIDENCE, quantile


def prediction_interval(
    mean: float, std: float, runs: int, freedom: float | None = None, new_runs: int = 1, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Compute the interval that contains the mean of further runs of the same recipe with this probability.

    A published result is compared with this interval. The interval of our mean is narrower, as it is for the mean of
    endless runs: a single run of the same recipe is outside it in 8 % of cases with 2 seeds, and in 51 % with 10.

    Args:
        mean: mean of our runs.
        std: standard deviation of a single run.
        runs: number of our runs.
        freedom: degrees of freedom of `std`; None: runs - 1, if `std` is computed from these runs.
        new_runs: number of further runs.
        confidence: probability of the interval.

    Raises:
        ValueError: there is a single run, and `freedom` is not given.

    Source: Hahn and Meeker, 1991, Statistical Intervals, section 4.7.
    """
    freedom = runs - 1 if freedom is None else freedom
    if freedom <= 0:
        raise ValueError(f"freedom={freedom}: no spread is known. Fix: two runs at least, or the freedom of std")
    margin = quantile(freedom, confidence) * std * math.sqrt(1 / runs + 1 / new_runs)
    return mean - margin, mean + margin


def rate_bounds(events: int, runs: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Compute the lowest and the highest rate that are consistent with a count of events, each with this confidence.

    If none of 9 runs failed, the rate of failures may be as high as 28 %.

    Source: Clopper and Pearson, 1934, Biometrika 26, 404-413.
    """
    low = float(betaincinv(events, runs - events + 1, 1 - confidence)) if events else 0.0
    high = float(betaincinv(events + 1, runs - events, confidence)) if events < runs else 1.0
    return low, high
