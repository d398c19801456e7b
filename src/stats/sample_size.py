"""Power analysis: the difference that the available seeds find, and the new seeds that find a certain difference.

The spread of results is estimated from few runs. So power is averaged over the spread's posterior distribution
(assurance; O'Hagan, Stevens and Campbell, 2005, Pharmaceutical Statistics 4, 187-201), and the number of seeds is a
range, for the lowest to the highest likely spread, with 80 %. Two seeds are too few to state a power.

New seeds are planned for one test on these alone, because results that raised a question cannot answer it.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.special import chdtri, ndtr, stdtrit

from stats.variances import Array

POWER = 0.8
LEVEL = 0.05  # two-sided level of the test on new seeds
MOST = 1000  # most seeds that are planned
KNOWN_FROM = 3  # fewest seeds for which a power is stated
UNLIKELY = (0.1, 0.9)  # quantiles of the spread that bound the likely ones


@dataclass(frozen=True)
class SampleSize:
    """The sample size for a difference.

    Attributes:
        seeds: Mean number of available seeds of a setting.
        settings: Number of settings compared.
        level: Two-sided level of the next test on the available runs, corrected for all comparisons.
        error, freedom: Standard error of the difference and its degrees of freedom.
        critical: Smallest significant difference in the available runs, in standard errors.
        detectable: Difference that the available seeds find with 80 % power; None if unknown.
        seeds_low, seeds_needed, seeds_high: New seeds that find the observed difference, for the lowest likely spread,
            on average, and for the highest likely spread; None if unknown, or more than 1,000.
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
        """Compute the difference that this number of new seeds of each setting finds with 80 % power."""
        freedom = (self.settings - 1) * (seeds - 1)
        return distance(self.freedom, freedom, critical(freedom)) * self.error * math.sqrt(self.seeds / seeds)


def sample_size(
    estimate: float, error: float, freedom: float, critical: float, seeds: float, settings: int, level: float
) -> SampleSize:
    """Compute the difference that the available seeds find, and the new seeds that find the observed one."""
    current = SampleSize(seeds, settings, level, error, freedom, critical)
    fewest, most = (seeds_for(estimate * math.sqrt(chdtri(freedom, part) / freedom), current) for part in UNLIKELY)
    current = replace(current, seeds_low=fewest, seeds_high=most)
    if seeds < KNOWN_FROM:
        return current
    detectable = distance(freedom, freedom, critical) * error
    return replace(current, detectable=detectable, seeds_needed=seeds_for(estimate, current, freedom))


def seeds_for(difference: float, current: SampleSize, error_freedom: float = math.inf) -> int | None:
    """Compute the number of new seeds that find a difference with 80 % power; None if more than MOST.

    Args:
        difference: The true difference.
        current: Error and number of the available seeds.
        error_freedom: Degrees of freedom of the available standard error; infinite: it is exact.
    """

    def is_found(seeds: int) -> bool:
        freedom = (current.settings - 1) * (seeds - 1)
        errors = abs(difference) / (current.error * math.sqrt(current.seeds / seeds))
        return power(errors, critical(freedom), error_freedom, freedom) >= POWER

    seeds = bisect_left(range(MOST + 1), True, lo=2, key=is_found)
    return seeds if seeds <= MOST else None


def critical(freedom: float) -> float:
    """Return the smallest significant difference of new seeds, in standard errors (Student's t)."""
    return float(stdtrit(freedom, 1 - LEVEL / 2))


def distance(error_freedom: float, freedom: float, critical: float) -> float:
    """Compute the difference that is found with 80 % power, in estimated standard errors."""
    low, high = 0.0, 10.0
    while power(high, critical, error_freedom, freedom) < POWER:
        low, high = high, 2 * high
        if high > 1e6:
            return math.inf
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, critical, error_freedom, freedom) >= POWER else (middle, high)
    return high


def power(distance: float, critical: float, error_freedom: float, freedom: float) -> float:
    """Compute the probability that a new test finds a difference.

    Args:
        distance: The true difference in estimated standard errors.
        critical: Smallest significant difference in the new test, in standard errors.
        error_freedom: Degrees of freedom of the estimated standard error; infinite: it is exact.
        freedom: Degrees of freedom of the new test.
    """
    available, new = roots(error_freedom), roots(freedom)
    return float(np.mean(ndtr(distance * available[:, None] - critical * new)))


@lru_cache(maxsize=4096)
def roots(freedom: float) -> Array:
    """Return quantiles of the ratio of the estimated to the true standard error, by the chi-square distribution."""
    if freedom > 1e5:
        return np.ones(1)
    return np.sqrt(chdtri(freedom, (np.arange(60) + 0.5) / 60) / freedom)
