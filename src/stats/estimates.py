"""The frozen results of an analysis: estimates with intervals, differences, effects."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # Student's t; importing scipy.stats would take a second

from stats.sample_size import SampleSize

CONFIDENCE = 0.95
ERROR = 1 - CONFIDENCE
TIE = 1e-9  # smaller differences are rounding errors

Setting = Any  # any hashable value
Values = Mapping[Setting, Mapping[int, float | None]]  # by setting and seed; None: the run failed


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; one value alone has no interval."""

    value: float
    n: int  # number of values
    std: float | None = None  # standard deviation of a single value
    low: float | None = None
    high: float | None = None
    error: float | None = None  # standard error
    freedom: float | None = None  # degrees of freedom of the error

    @property
    def margin(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference:
    """The difference of two settings, or of a level of a factor and its baseline.

    Attributes:
        estimate: Mean of the first minus mean of the second, in the metric's unit.
        low, high: Its 95 % interval, not corrected for multiple comparisons; None if no spread is known.
        p: P value, corrected for all differences of the family; None if nothing can be tested.
        is_significant: True if it is significant at the family's 5 % level, also with failed runs as the worst.
        p_alone: P value without correction.
        error, freedom: Standard error and its degrees of freedom.
        n: Number of runs.
        is_tied: True if the means are equal.
        is_negligible: True if it is significantly smaller than `smallest`; None if there is no `smallest`.
    """

    estimate: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    is_significant: bool = False
    p_alone: float | None = None
    error: float | None = None
    freedom: float | None = None
    n: int = 0
    is_tied: bool = False
    is_negligible: bool | None = None


@dataclass(frozen=True)
class Effect(Difference):
    """The change of the metric when `factor` goes from `baseline` to `level`, the other factors held fixed."""

    factor: Any = None
    level: Any = None
    baseline: Any = None
    pairs: tuple[tuple[Setting, Setting], ...] = ()  # settings that differ in this factor only
    n_higher: int = 0  # number of pairs in which the metric is higher
    plan: Callable[[], SampleSize | None] = field(default=lambda: None, repr=False, compare=False)

    @cached_property
    def sample_size(self) -> SampleSize | None:
        """The sample size that would find this effect; None if no spread is known."""
        return self.plan()


def as_table(values: Values, settings: Sequence[Setting], seeds: Sequence[int]) -> NDArray[np.float64]:
    """Arrange values as [settings, seeds], with NaN for missing and failed runs."""
    rows = [[values.get(setting, {}).get(seed) for seed in seeds] for setting in settings]
    return np.array(rows, dtype=float).reshape(len(settings), len(seeds))


def mean(values: Iterable[float]) -> Estimate | None:
    """Compute the mean, the standard deviation and Student's t interval of a sample; None if it is empty."""
    sample = np.array(list(values), dtype=float)
    if not sample.size:
        return None
    center, freedom = float(sample.mean()), sample.size - 1
    if not freedom:
        return Estimate(center, 1)
    std = float(sample.std(ddof=1))
    if std < TIE * max(1.0, abs(center)):  # equal values do not show how much others vary
        return Estimate(center, sample.size, 0.0)
    error = std / math.sqrt(sample.size)
    margin = quantile(freedom) * error
    return Estimate(center, sample.size, std, center - margin, center + margin, error, freedom)


def quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Return the factor from a standard error to half the two-sided interval (Student's t)."""
    return float(stdtrit(freedom, (1 + confidence) / 2))
