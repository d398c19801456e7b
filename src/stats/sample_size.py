"""Power analysis: the difference that the available seeds find, and the new seeds that find a given one.

How much results vary is itself known from few runs only. So the power stated is averaged over the spreads that these
runs leave possible (assurance; O'Hagan, Stevens and Campbell, 2005, Pharmaceutical Statistics 4, 187-201), and the
number of seeds is a range: from the lowest to the highest spread that is likely, with 80 %. Two seeds say too little of
the spread to state a power at all.

New seeds are planned for one test on these alone: a question that was chosen by its results is answered by others.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.special import chdtri, ndtr, stdtrit

from stats.variances import Array

POWER = 0.8
LEVEL = 0.05  # of the test on new seeds alone, two-sided
MOST = 1000  # seeds; what needs more is not worth the runs
KNOWN_FROM = 3  # seeds, before a power is stated
UNLIKELY = (0.1, 0.9)  # that the spread is lower, or higher, than the one beyond which it is not considered


@dataclass(frozen=True)
class SampleSize:
    """The sample size for a difference.

    Attributes:
        seeds: in each setting now, on average.
        settings: that are compared.
        level: of the next test on the runs at hand, two-sided, corrected for all comparisons.
        error, freedom: of the difference now.
        critical: the distance from zero, in standard errors, from which a difference is significant now.
        detectable: the difference that so many seeds find with 80 % power; None where that is not known.
        seeds_low, seeds_needed, seeds_high: new seeds that find the difference seen, if the spread is at the low end
            of what is likely, on average, and at the high end; None where that is not known, or more than 1,000.
    """

    seeds: float
    settings: int
    level: float
    error: float
    freedom: float
    critical: float
    detectable: float | None = None
    seeds_low: int | None = None
    seeds_needed: int | None = None
    seeds_high: int | None = None

    def detectable_with(self, seeds: float) -> float:
        """Compute the difference that so many new seeds in each setting would find with 80 % power."""
        freedom = (self.settings - 1) * (seeds - 1)
        return distance(self.freedom, freedom, critical(freedom)) * self.error * math.sqrt(self.seeds / seeds)


def sample_size(
    estimate: float, error: float, freedom: float, critical: float, seeds: float, settings: int, level: float
) -> SampleSize:
    """Compute the difference that the available seeds find, and the new seeds that would find the one seen."""
    now = SampleSize(seeds, settings, level, error, freedom, critical)
    fewest, most = (seeds_for(estimate * math.sqrt(chdtri(freedom, part) / freedom), now) for part in UNLIKELY)
    now = replace(now, seeds_low=fewest, seeds_high=most)
    if seeds < KNOWN_FROM:
        return now
    detectable = distance(freedom, freedom, critical) * error
    return replace(now, detectable=detectable, seeds_needed=seeds_for(estimate, now, freedom))


def seeds_for(difference: float, now: SampleSize, known: float = math.inf) -> int | None:
    """Return how many new seeds find such a difference with 80 % power; None: more than MOST.

    Args:
        known: degrees of freedom from which the spread is known.
    """

    def is_found(seeds: int) -> bool:
        freedom = (now.settings - 1) * (seeds - 1)
        return (
            power(abs(difference) / (now.error * math.sqrt(now.seeds / seeds)), critical(freedom), known, freedom)
            >= POWER
        )

    seeds = bisect_left(range(MOST + 1), True, lo=2, key=is_found)
    return seeds if seeds <= MOST else None


def critical(freedom: float) -> float:
    """Return from how many standard errors a test on new seeds is significant (Student's t)."""
    return float(stdtrit(freedom, 1 - LEVEL / 2))


def distance(known: float, freedom: float, critical: float) -> float:
    """Return the difference, in estimated standard errors, that is found with 80 % power."""
    low, high = 0.0, 10.0
    while power(high, critical, known, freedom) < POWER:
        low, high = high, 2 * high
        if high > 1e6:
            return math.inf
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, critical, known, freedom) >= POWER else (middle, high)
    return high


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
