"""The frozen results of an analysis: estimates with intervals, differences, effects."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import stdtrit  # Student's t; scipy.stats would take a second to import

from stats.sample_size import SampleSize

CONFIDENCE = 0.95
ERROR = 1 - CONFIDENCE
TIE = 1e-9  # differences below it are rounding

Setting = Any  # whatever identifies one; it must be hashable


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; one value alone has no interval."""

    value: float
    n: int  # runs that it rests on
    std: float | None = None  # of a single run
    low: float | None = None
    high: float | None = None
    error: float | None = None  # standard error
    freedom: float | None = None  # degrees of freedom of the error

    @property
    def margin(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def contains(self, value: float) -> bool | None:
        """Return if the interval contains a value; None without an interval."""
        return None if self.low is None or self.high is None else self.low <= value <= self.high


@dataclass(frozen=True)
class Difference:
    """The difference of two settings, or of a level of a factor and its baseline.

    Attributes:
        estimate: the difference of the means, the first minus the second, in the metric's own direction.
        low, high: its 95 % interval, for this difference alone; None where no spread is known.
        p: corrected for all differences of its family; None where nothing can be tested.
        is_significant: at the 5 % level for the whole family, failed runs considered.
        p_alone: not corrected.
        error, freedom: standard error and its degrees of freedom.
        n: runs that it rests on.
        is_tied: the means are the same in these runs.
        is_negligible: it is shown that the difference does not matter, being below `smallest`; None without that.
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
    pairs: tuple[tuple[Setting, Setting], ...] = ()  # settings that differ in the factor alone
    n_higher: int = 0  # pairs in which the metric goes up
    plan: Callable[[], SampleSize | None] = field(default=lambda: None, repr=False, compare=False)

    @cached_property
    def sample_size(self) -> SampleSize | None:
        """What it would take to find this effect; None where no spread is known."""
        return self.plan()

    @property
    def compared(self) -> tuple[Setting, ...]:
        """The settings that are in a pair."""
        return tuple(dict.fromkeys(setting for pair in self.pairs for setting in pair))


def mean(values: Iterable[float]) -> Estimate | None:
    """Compute the mean, the standard deviation and Student's t interval of one sample; None of no values."""
    sample = np.array(list(values), dtype=float)
    if not sample.size:
        return None
    center, freedom = float(sample.mean()), sample.size - 1
    if not freedom:
        return Estimate(center, 1)
    std = float(sample.std(ddof=1))
    if std < TIE * max(1.0, abs(center)):  # runs that all show the same say nothing of how others vary
        return Estimate(center, sample.size, 0.0)
    error = std / math.sqrt(sample.size)
    margin = quantile(freedom) * error
    return Estimate(center, sample.size, std, center - margin, center + margin, error, freedom)


def quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Return the factor from a standard error to half the two-sided interval (Student's t)."""
    return float(stdtrit(freedom, (1 + confidence) / 2))


Values = Mapping[Setting, Mapping[int, float | None]]  # of each setting and seed; None: the run failed
