"""Predictions of further runs: the interval of their mean, and their possible rate of failures."""

import math

from scipy.special import betaincinv  # importing scipy.stats would take a second

from stats.estimates import CONFIDENCE, quantile


def prediction_interval(mean: float, std: float, runs: int) -> tuple[float, float]:
    """Compute the interval that contains one more run of the same recipe with a probability of 95 %, from two runs on.

    A published result is compared with this interval. The interval of our mean is narrower, as it is for the mean of
    endless runs: a single run of the same recipe is outside it in 8 % of cases with 2 seeds, and in 51 % with 10.

    Source: Hahn and Meeker, 1991, Statistical Intervals, section 4.7.
    """
    margin = quantile(runs - 1) * std * math.sqrt(1 / runs + 1)
    return mean - margin, mean + margin


def rate_bounds(events: int, runs: int) -> tuple[float, float]:
    """Compute the lowest and the highest rate that are consistent with a count of events, each with 95 % confidence.

    If none of 9 runs failed, the rate of failures may be as high as 28 %.

    Source: Clopper and Pearson, 1934, Biometrika 26, 404-413.
    """
    low = float(betaincinv(events, runs - events + 1, 1 - CONFIDENCE)) if events else 0.0
    high = float(betaincinv(events + 1, runs - events, CONFIDENCE)) if events < runs else 1.0
    return low, high
