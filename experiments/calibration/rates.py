"""Rates: what is claimed, and what was simulated."""

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
        statement: The event or the statement that is counted.
        design: The design of the simulated studies.
        count, of: Number of events or true statements, and number of cases.
        at_least, at_most: The claimed bounds of the rate.
        is_share: True for a ratio of two sums, which has no interval.
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
        """The rate's 95 % interval for this number of cases (Wilson)."""
        if self.is_share:
            return self.simulated, self.simulated
        low, high = proportion_confint(self.count, self.of, method="wilson") if self.of else (0.0, 1.0)
        return float(low), float(high)

    @property
    def holds(self) -> bool:
        """True if the simulated rate is within the claimed bounds."""
        return not self.is_claimed or not self.of or self.at_least <= self.simulated <= self.at_most

    @property
    def is_refuted(self) -> bool:
        """True if the simulated rate is outside the claimed bounds by more than chance."""
        low, high = self.interval
        return self.is_claimed and (low > self.at_most or high < self.at_least)

    @property
    def claim(self) -> str:
        parts = [f"≥ {self.at_least:.0%}"] * (self.at_least > 0) + [f"≤ {self.at_most:.0%}"] * (self.at_most != 1)
        return " and ".join(parts)
