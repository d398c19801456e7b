"""A rate that was simulated, beside what is claimed of it."""

from dataclasses import dataclass

from statsmodels.stats.proportion import proportion_confint


@dataclass(frozen=True)
class Rate:
    """
    Attributes:
        statement: what happened, or was said.
        design: of the simulated studies.
        count, of: how often it happened or was true, and in how many cases.
        at_least, at_most: what is claimed.
    """

    statement: str
    design: str
    count: float
    of: int
    at_least: float = 0.0
    at_most: float = 1.0

    @property
    def simulated(self) -> float:
        return self.count / self.of if self.of else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, for the number of repetitions (Wilson)."""
        low, high = proportion_confint(self.count, self.of, method="wilson") if self.of else (0.0, 1.0)
        return float(low), float(high)

    @property
    def holds(self) -> bool:
        """The rate simulated is what is claimed."""
        return self.at_least <= self.simulated <= self.at_most

    @property
    def is_refuted(self) -> bool:
        """The rate simulated is beyond what is claimed by more than chance."""
        low, high = self.interval
        return low > self.at_most or high < self.at_least

    @property
    def row(self) -> dict[str, str | int]:
        low, high = self.interval
        claimed = [f"≥ {self.at_least:.0%}"] * (self.at_least > 0) + [f"≤ {self.at_most:.0%}"] * (self.at_most < 1)
        return {
            "statement": self.statement, "design": self.design, "claimed": " and ".join(claimed),
            "simulated": f"{self.simulated:.3f}", "low": f"{low:.3f}", "high": f"{high:.3f}", "cases": self.of,
        }  # fmt: skip
