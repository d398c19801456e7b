"""The price of an answer: which difference the seeds at hand could show, and how many would show the one seen.

A difference is tested by a two-sided t test; with `seeds` in each of the settings compared its standard error falls
with their square root, and its degrees of freedom rise by one for every setting and seed, less one for every seed
where runs are matched by seed. The power of such a test follows from the noncentral t distribution (Cohen, 1988,
Statistical Power Analysis for the Behavioral Sciences, chapter 2). The other tail, an effect found with the wrong
sign, is left out: at 80 % power it is below 1e-5.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

from scipy.special import nctdtrinc, stdtrit

from comparison.least_squares import Estimate

POWER = 0.8
MOST = 1000  # seeds; what needs more is not worth the runs


@dataclass(frozen=True)
class Design:
    """The test of a difference as a function of the seeds in each of its settings.

    Attributes:
        scale: the difference's standard error times the square root of the seeds.
        freedom: degrees of freedom that each seed but the first adds.
        level: of the test, two-sided, corrected for all comparisons made.
    """

    scale: float
    freedom: int
    level: float

    @classmethod
    def of(cls, change: Estimate, settings: int, level: float) -> "Design":
        """The design whose runs gave this estimate, if no run were missing.

        Args:
            settings: how many were compared, each of them a side of the difference or a part of one.
        """
        assert change.error is not None
        return cls(change.error * math.sqrt(change.n / settings), settings - change.by_seed, level)

    def detectable(self, seeds: float) -> float:
        """The smallest true difference that is found with 80 % power."""
        return detectable(self.scale / math.sqrt(seeds), self.freedom * (seeds - 1), self.level)

    def seeds_for(self, difference: float) -> int | None:
        """How many find such a difference with 80 % power; None: more than MOST."""
        seeds = bisect_left(range(MOST + 1), True, lo=2, key=lambda seeds: self.detectable(seeds) <= abs(difference))
        return seeds if seeds <= MOST else None


def detectable(error: float, freedom: float, level: float) -> float:
    """The smallest true difference that a two-sided t test finds with 80 % power; infinite without a freedom."""
    if freedom <= 0:
        return math.inf
    return float(nctdtrinc(freedom, 1 - POWER, stdtrit(freedom, 1 - level / 2))) * error
