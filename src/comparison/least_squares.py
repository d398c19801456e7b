"""The one model behind every rank, difference and p value: value ~ setting + seed, by least squares.

Where every setting ran with the same seeds, means are plain means and two settings are compared by the
paired t-test. Where runs are missing and the seeds matter, settings are compared as if each had run
with every seed: the settings that do have a seed tell whether it is a hard one, and the means of the
others are adjusted for it (the two-way layout without interaction; Searle, Speed and Milliken, 1980,
The American Statistician 34, 216-221). Whether seeds matter is decided by an F test at 25 %, the level
for such preliminary tests (Bancroft, 1964, Biometrics 20, 427-442). Where they do not, or too few are
shared, settings are independent samples, and two are compared by the t-test with pooled variance.

The noise of a difference is that of the runs of the settings compared, so that an unstable setting does
not blur the differences between others. What an adjusted difference owes to the runs of other settings
counts with their own squared residuals (HC3; MacKinnon and White, 1985, Journal of Econometrics 29,
305-325), and degrees of freedom are Satterthwaite's (1946, Biometrics Bulletin 2, 110-114).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import fdtrc, stdtr, stdtrit  # F and Student's t; scipy.stats would take a second to import

CONFIDENCE = 0.95
TIE = 1e-9  # differences below it are rounding
SETTINGS_PER_SEED = 1.5  # on average, or too few are shared; of two settings: half of them
SEEDS_MATTER = 0.25  # below this p value

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference, with its 95 % interval where there is more than one value to judge by.

    `is_exact`: every seed shows the same, so the interval has no width and there is nothing to test.
    """

    value: float
    n: int  # runs that it rests on
    std: float | None = None  # of a single run
    low: float | None = None
    high: float | None = None
    error: float | None = None  # standard error
    freedom: float | None = None  # degrees of freedom of the error
    p: float | None = None  # two-sided, of a difference's being zero
    by_seed: bool = False  # a difference between runs of the same seeds
    is_exact: bool = False

    @property
    def margin(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def contains(self, value: float) -> bool | None:
        """Whether the interval contains a value; None without an interval."""
        return None if self.low is None or self.high is None else self.low <= value <= self.high


def mean(values: Iterable[float]) -> Estimate | None:
    """The mean, the sample's standard deviation and Student's t interval of the mean; None of nothing."""
    sample = np.array(list(values), dtype=float)
    if not sample.size:
        return None
    center, freedom = float(sample.mean()), sample.size - 1
    if not freedom:
        return Estimate(center, 1)
    std = float(sample.std(ddof=1))
    error = std / math.sqrt(sample.size)
    margin = quantile(freedom) * error
    return Estimate(center, sample.size, std, center - margin, center + margin, error, freedom)


class SeedModel:
    """Settings' means, adjusted for missing runs, and differences between them.

    Args:
        values: [settings, seeds], NaN where there is no run; every setting has one at least.

    Attributes:
        raw_means, means: [settings], plain and adjusted.
        shares_seeds, has_seeds: whether enough seeds are shared to adjust for them, and whether that is done.
        noise, freedom: variance of the residuals and its degrees of freedom; 0 where there are none.
    """

    def __init__(self, values: ArrayLike) -> None:
        self.values = np.array(values, dtype=float)
        self.ran = ~np.isnan(self.values)
        self.runs_of = self.ran.sum(1)
        self.shares_seeds = share_seeds(self.ran)
        self.has_seeds = self.shares_seeds and seeds_matter(self.values)
        seeds = self.values.shape[1]
        self.inverse = solved_for_seeds(self.ran)[0] if self.has_seeds else np.zeros((seeds, seeds))
        self.residuals, self.freedom = residuals_of(self.values, self.has_seeds)
        self.noise = float(np.sum(self.residuals**2)) / self.freedom if self.freedom else 0.0

        self.raw_means = np.nansum(self.values, axis=1) / self.runs_of
        deviations = np.where(self.ran, self.values - self.raw_means[:, None], 0.0)
        seed_effects = self.inverse @ deviations.sum(0)
        # What each setting would come to with every seed, those that it lacks included.
        everywhere = self.ran.any(0) @ seed_effects / max(1, self.ran.any(0).sum())
        self.means = self.raw_means + everywhere - self.ran @ seed_effects / self.runs_of

    @property
    def is_adjusted(self) -> bool:
        """Whether missing runs make means differ from the plain ones."""
        return not np.allclose(self.means, self.raw_means, rtol=0, atol=TIE)

    def difference(self, weights: ArrayLike) -> Estimate:
        """A linear combination of the settings' means.

        Args:
            weights: [settings], with the sum 0, e.g. 1 and -1 for two of them.
        """
        weights = np.asarray(weights, dtype=float)
        of_run = self.ran * (weights / self.runs_of)[:, None]  # how much each run counts
        if self.has_seeds:
            moved = self.inverse @ of_run.sum(0)
            of_run -= self.ran * (moved - (self.ran @ moved / self.runs_of)[:, None])
        value = float(np.sum(of_run * np.where(self.ran, self.values, 0.0)))
        by_seed = bool(np.allclose(of_run.sum(0), 0, atol=1e-9))

        compared = weights != 0
        n = int(self.runs_of[compared].sum())
        residuals, freedom = residuals_of(self.values[compared], by_seed)
        noise, freedom = (float(np.sum(residuals**2)) / freedom, freedom) if freedom else (self.noise, self.freedom)
        if not freedom:
            return Estimate(value, n, by_seed=by_seed)
        own = noise * float(np.sum(of_run[compared] ** 2))
        others = (of_run * self.residuals / np.maximum(1 - self.leverage, TIE))[~compared] ** 2
        error = math.sqrt(own + others.sum())
        if error < TIE * max(1.0, float(np.nanmax(np.abs(self.values)))):
            return Estimate(value, n, 0.0, value, value, 0.0, freedom, by_seed=by_seed, is_exact=True)
        shared = float(error**4 / (own**2 / freedom + np.sum(others**2)))  # degrees of freedom
        margin = quantile(shared) * error
        p = 2 * float(stdtr(shared, -abs(value / error)))
        return Estimate(value, n, math.sqrt(noise), value - margin, value + margin, error, shared, p, by_seed)

    @cached_property
    def leverage(self) -> Array:
        """[settings, seeds]: how much the fit at each run depends on this run itself."""
        shares = self.ran / self.runs_of[:, None]
        of_seeds = shares @ self.inverse
        own = np.diag(self.inverse) - 2 * of_seeds + np.sum(of_seeds * shares, axis=1, keepdims=True)
        return 1 / self.runs_of[:, None] + own


def share_seeds(ran: NDArray[np.bool_]) -> bool:
    """Whether the settings share enough seeds, each with every other at least by way of further ones."""
    seeds = int(ran.any(0).sum())
    return bool(ran.sum() >= SETTINGS_PER_SEED * seeds) and solved_for_seeds(ran)[1] == seeds - 1


def seeds_matter(values: Array) -> bool:
    """Whether the seeds explain more than noise would."""
    noise, freedom = residuals_of(values, by_seed=True)
    total, total_freedom = residuals_of(values, by_seed=False)
    seeds = total_freedom - freedom
    if not freedom or not seeds:
        return False
    explained = max(0.0, float(np.sum(total**2) - np.sum(noise**2))) / seeds
    left = float(np.sum(noise**2)) / freedom
    return explained > TIE**2 and (not left or float(fdtrc(seeds, freedom, explained / left)) < SEEDS_MATTER)


def residuals_of(values: Array, by_seed: bool) -> tuple[Array, int]:
    """The residuals [settings, seeds] of setting (+ seed), 0 where there is no run, and their degrees of freedom."""
    ran = ~np.isnan(values)
    runs_of = ran.sum(1)
    residuals = np.where(ran, values - (np.nansum(values, axis=1) / runs_of)[:, None], 0.0)
    freedom = int(ran.sum()) - len(values)
    if by_seed:
        inverse, rank = solved_for_seeds(ran)
        effects = inverse @ residuals.sum(0)
        residuals -= ran * (effects - (ran @ effects / runs_of)[:, None])
        freedom -= rank
    return residuals, freedom


def solved_for_seeds(ran: NDArray[np.bool_]) -> tuple[Array, int]:
    """[seeds, seeds]: the inverse of the normal equations of the seeds' effects, the settings' eliminated; its rank."""
    equations = np.diag(ran.sum(0)) - ran.T @ (ran / ran.sum(1, keepdims=True))
    values, vectors = np.linalg.eigh(equations)
    kept = values > TIE * values.max(initial=1.0)
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T, int(kept.sum())


def quantile(freedom: float) -> float:
    """Student's t: the factor from a standard error to half the 95 % interval."""
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
