"""A rate that was simulated, beside what is claimed of it."""

from dataclasses import dataclass, replace

import numpy as np
from statsmodels.stats.proportion import proportion_confint

FRESH = 20261130  # the constants in src/stats were chosen with other random numbers


def generator(design: object, number: int) -> np.random.Generator:
    """Make the random numbers of one simulated study."""
    return np.random.default_rng([FRESH, number, *str(design).encode()])


@dataclass(frozen=True)
class Rate:
    """A claimed and a simulated rate.

    Attributes:
        statement: What happened, or was said.
        design: Of the simulated studies.
        count, of: How often it happened or was true, and in how many cases.
        at_least, at_most: What is claimed.
        is_share: A ratio of two sums, without an interval.
    """

    statement: str
    design: str
    count: float
    of: float
    at_least: float = 0.0
    at_most: float = 1.0
    is_share: bool = False

    def __add__(self, other: "Rate") -> "Rate":
        return replace(other, count=self.count + other.count, of=self.of + other.of)

    @property
    def is_claimed(self) -> bool:
        return self.at_least > 0 or self.at_most != 1

    @property
    def simulated(self) -> float:
        return self.count / self.of if self.of else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, for the number of cases (Wilson)."""
        if self.is_share:
            return self.simulated, self.simulated
        low, high = proportion_confint(self.count, self.of, method="wilson") if self.of else (0.0, 1.0)
        return float(low), float(high)

    @property
    def holds(self) -> bool:
        """The rate simulated is what is claimed."""
        return not self.is_claimed or not self.of or self.at_least <= self.simulated <= self.at_most

    @property
    def is_refuted(self) -> bool:
        """The rate simulated is beyond what is claimed by more than chance."""
        low, high = self.interval
        return self.is_claimed and (low > self.at_most or high < self.at_least)

    @property
    def claim(self) -> str:
        parts = [f"≥ {self.at_least:.0%}"] * (self.at_least > 0) + [f"≤ {self.at_most:.0%}"] * (self.at_most != 1)
        return " and ".join(parts)
