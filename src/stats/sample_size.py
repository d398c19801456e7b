"""Power analysis: which difference some seeds find, and how many seeds find a difference of a given size.

How much results vary is itself known from few runs only. So the power stated is that of a new study of the same size,
averaged over the spreads that these runs leave possible (assurance; O'Hagan, Stevens and Campbell, 2005, Pharmaceutical
Statistics 4, 187-201), and the number of seeds is a range: from the lowest to the highest of the spreads that are
likely, with 80 %. Two seeds say too little of the spread to state a power at all.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.special import chdtri, ndtr, stdtrit

from stats.variances import Array

POWER = 0.8
MOST = 1000  # seeds; what needs more is not worth the runs
KNOWN_FROM = 3  # seeds, before a power is stated
UNLIKELY = (0.1, 0.9)  # that the spread is lower, or higher than the one beyond which it is not considered


@dataclass(frozen=True)
class SampleSize:
    """
    Attributes:
        seeds: in each setting now, on average.
        level: of the next test, two-sided, corrected for all comparisons.
        error, freedom: of the difference now.
        critical: the distance from zero, in standard errors, from which a difference is significant now.
        detectable: the difference that so many seeds find with 80 % power; None where it is not known.
        seeds_low, seeds_needed, seeds_high: for the difference seen, if the spread is at the low end of what is likely,
            on average, and at the high end; None where that is not known, or more than 1,000.
    """

    seeds: float
    level: float
    error: float
    freedom: float
    critical: float
    detectable: float | None = None
    seeds_low: int | None = None
    seeds_needed: int | None = None
    seeds_high: int | None = None

    def detectable_with(self, seeds: float) -> float:
        """Compute the difference that so many seeds in each setting would find with 80 % power."""
        freedom = self.freedom * max(seeds - 1, 1e-3) / max(self.seeds - 1, 1e-3)
        critical = self.critical if seeds == self.seeds else stdtrit(freedom, 1 - self.level / 2)
        low, high = 0.0, 10.0
        while power(high, float(critical), self.freedom, freedom) < POWER:
            low, high = high, 2 * high
            if high > 1e6:
                return math.inf
        for _ in range(25):
            middle = (low + high) / 2
            is_found = power(middle, float(critical), self.freedom, freedom) >= POWER
            low, high = (low, middle) if is_found else (middle, high)
        return high * self.error * math.sqrt(self.seeds / seeds)


def sample_size(
    estimate: float, error: float, freedom: float, critical: float, seeds: float, level: float
) -> SampleSize:
    """Plan for a difference: what is found with the seeds at hand, and how many would find the one seen."""
    now = SampleSize(seeds, level, error, freedom, critical)
    fewest, most = (seeds_for(estimate * math.sqrt(chdtri(freedom, part) / freedom), now) for part in UNLIKELY)
    if seeds < KNOWN_FROM:
        return replace(now, seeds_low=fewest, seeds_high=most)
    needed = seeds_for(estimate, now, averaged=True)
    return replace(now, detectable=now.detectable_with(seeds), seeds_low=fewest, seeds_needed=needed, seeds_high=most)


def seeds_for(difference: float, now: SampleSize, averaged: bool = False) -> int | None:
    """Return how many seeds find such a difference with 80 % power; None: more than MOST."""

    def is_found(seeds: int) -> bool:
        freedom = now.freedom * (seeds - 1) / max(now.seeds - 1, 1e-3)
        distance = abs(difference) / (now.error * math.sqrt(now.seeds / seeds))
        critical = float(stdtrit(freedom, 1 - now.level / 2))
        return power(distance, critical, now.freedom if averaged else math.inf, freedom) >= POWER

    seeds = bisect_left(range(MOST + 1), True, lo=2, key=is_found)
    return seeds if seeds <= MOST else None


def power(distance: float, critical: float, known: float, freedom: float) -> float:
    """Compute how often a new test finds a difference.

    Args:
        distance: the difference in estimated standard errors.
        critical: from how many standard errors the new test calls it significant.
        known: degrees of freedom from which the standard error was estimated; infinite: it is known.
        freedom: degrees of freedom of the new test.
    """
    now, later = roots(known), roots(freedom)
    return float(np.mean(ndtr(distance * now[:, None] - critical * later)))


@lru_cache(maxsize=4096)
def roots(freedom: float) -> Array:
    """Draw evenly from the ratio of an estimated to the true standard error: the root of chi-square by its freedom."""
    if freedom > 1e5:
        return np.ones(1)
    return np.sqrt(chdtri(freedom, (np.arange(60) + 0.5) / 60) / freedom)
