"""The spread of each setting's runs, shrunk towards the settings' common distribution.

Two or three seeds hardly show a setting's spread, and settings share it only approximately. So each setting's variance
has a scaled inverse chi-square prior around a common value, with 1 / h degrees of freedom; h = 0 means that all
settings share one variance. This is the model of Smyth (2004, Statistical Applications in Genetics and Molecular
Biology 3(1), article 3). Few settings cannot determine h, so results are averaged over a grid of h, weighted by the
marginal likelihood. Degrees of freedom follow from Satterthwaite (1946, Biometrics Bulletin 2, 110-114): those of the
settings compared, and those of the common variance for the shared part.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, polygamma, psi, stdtr

Array = NDArray[np.float64]

HETEROGENEITY = np.array([1e-6, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0])  # values of h, equally likely a priori
SCALES = np.linspace(-4, 3, 41)  # logarithms of the common variance, relative to the pooled one
SHARED = 1e5  # degrees of freedom of the prior from which all settings have the common variance
LONE = 1.5  # degrees of freedom below which two runs determine a setting's spread
TAILS = 3.0, 1.5, 0.75  # weights of a spread's tail: from two runs; from more, in a mean over pairs, or in one pair
NEGLIGIBLE = 1e-4  # smaller weights of the grid are left out
PRECISION = 1e-7  # precision of the logarithms of probabilities


@dataclass(frozen=True)
class Spreads:
    """The settings' variances, estimated from residuals.

    Attributes:
        weights: [grid], probability of each heterogeneity.
        prior: [grid], degrees of freedom of the prior.
        variances: [grid, settings], moderated.
        freedoms: [settings], degrees of freedom of each setting's residuals.
    """

    weights: Array
    prior: Array
    variances: Array
    freedoms: Array

    @property
    def total(self) -> float:
        """Degrees of freedom of all residuals."""
        return float(self.freedoms.sum())

    @property
    def typical(self) -> Array:
        """Geometric mean of each setting's variance over the grid, [settings]."""
        return np.exp(self.weights @ np.log(np.maximum(self.variances, 1e-300)))


def moderate(squares: Array, freedoms: Array, are_equal: bool = False) -> Spreads | None:
    """Moderate the variances of settings.

    Args:
        squares: [settings], sums of squared residuals.
        freedoms: [settings], their degrees of freedom, which may be fractions.
        are_equal: True if all variances are equal.

    Returns:
        The variances; None if no residual varies, or if a square overflows.
    """
    used = freedoms > 0.05
    rss, df = squares[used], freedoms[used]
    if not used.any() or not 0 < rss.sum() < np.inf:
        return None
    if are_equal:
        pooled = np.full((1, len(squares)), rss.sum() / df.sum())
        return Spreads(np.ones(1), 1 / HETEROGENEITY[:1], pooled, freedoms)
    logs = np.log(rss.sum() / df.sum()) + SCALES
    prior = 1 / HETEROGENEITY[:, None]  # [grid, settings]
    constant = gammaln((df + prior) / 2) - gammaln(prior / 2) + df / 2 * np.log(df / prior)
    scaled = rss / np.exp(logs)[:, None]  # [scales, settings]
    likelihood = (
        constant.sum(1)[:, None]
        - df.sum() / 2 * logs
        - np.sum((df + prior)[:, None] / 2 * np.log1p(scaled / prior[:, None]), axis=2)
    )
    joint = np.exp(likelihood - likelihood.max())
    joint /= joint.sum()
    weights = joint.sum(1)
    likely = weights > NEGLIGIBLE
    common = np.exp((joint[likely] @ logs) / weights[likely])
    prior = prior[likely, 0]
    variances = (squares + (prior * common)[:, None]) / (freedoms + prior[:, None])
    return Spreads(weights[likely] / weights[likely].sum(), prior, variances, freedoms)


@dataclass(frozen=True)
class Errors:
    """Standard errors of some contrasts and their degrees of freedom.

    Attributes:
        weights: [grid], probability of each heterogeneity.
        errors, freedoms: [grid, contrasts], by Satterthwaite's approximation.
        part_errors, part_freedoms: [grid, contrasts, parts], errors and degrees of freedom of each setting compared.
        part_weights: [contrasts, parts], weights of these settings' tails.
    """

    weights: Array
    errors: Array
    freedoms: Array
    part_errors: Array
    part_freedoms: Array
    part_weights: Array

    def __getitem__(self, some: slice) -> "Errors":
        columns = self.errors[:, some], self.freedoms[:, some], self.part_errors[:, some], self.part_freedoms[:, some]
        return Errors(self.weights, *columns, self.part_weights[some])

    def above(self, distance: Array) -> Array:
        """Compute the probability that noise exceeds a distance in one direction, [contrasts].

        One setting's spread may be far larger than its few seeds show. Then this setting determines the tail, and not
        Satterthwaite's approximation to the sum.
        """
        together = stdtr(self.freedoms, -distance / self.errors)
        alone = stdtr(self.part_freedoms, -np.abs(distance)[:, None] / self.part_errors)
        alone = np.minimum(0.5, np.sum(alone * self.part_weights, axis=2))
        return self.weights @ np.where(distance > 0, np.maximum(together, alone), together)

    def within(self, level: float) -> Array:
        """Compute the distance that noise exceeds in either direction with this probability, [contrasts].

        The method is regula falsi on the logarithm of the probability, with the Illinois algorithm's halving.
        """

        def excess(distance: Array) -> Array:
            return np.log(np.maximum(2 * self.above(distance), 1e-300) / level)

        low, high = np.zeros(self.errors.shape[1]), self.errors.max(0)
        at_low, at_high = excess(low), excess(high)
        while (wide := at_high > 0).any():
            low, at_low = np.where(wide, high, low), np.where(wide, at_high, at_low)
            high = np.where(wide, 3 * high, high)
            at_high = excess(high)
        was_wide = wide
        for number in range(60):
            middle = (low * at_high - high * at_low) / (at_high - at_low)
            at_middle = excess(middle)
            if np.abs(at_middle).max(initial=0.0) < PRECISION:
                break
            wide = at_middle > 0
            again = np.where((wide == was_wide) & (number > 0), 0.5, 1.0)
            at_low, at_high = np.where(wide, at_middle, again * at_low), np.where(wide, again * at_high, at_middle)
            low, high, was_wide = np.where(wide, middle, low), np.where(wide, high, middle), wide
        return middle

    @cached_property
    def error(self) -> Array:
        """Geometric mean of the standard errors over the grid, [contrasts]."""
        return np.exp(self.weights @ np.log(self.errors))

    @cached_property
    def freedom(self) -> Array:
        """Harmonic mean of the degrees of freedom over the grid, [contrasts]."""
        return 1 / (self.weights @ (1 / self.freedoms))


def errors_of(spreads: Spreads, shares: Array, parts: NDArray[np.int64]) -> Errors:
    """Compute the standard errors of contrasts.

    Args:
        shares: [contrasts, settings], the sum of squared weights of each setting's runs in a contrast.
        parts: [contrasts, parts], indices of the settings compared, padded with -1.
    """
    df, columns = spreads.freedoms, []
    rows = np.arange(len(shares))[:, None]
    for prior, variances in zip(spreads.prior, spreads.variances, strict=True):
        of_setting = shares * variances
        pull = prior / (prior + df)  # share of the common variance in a variance
        total = np.sum(df * prior / (df + prior))  # degrees of freedom of the common variance
        variance = of_setting.sum(1)
        relative = (of_setting**2 @ (1 / (df + prior)) + (of_setting @ pull) ** 2 / total) / variance**2
        freedoms = np.minimum(1 / relative, spreads.total)
        part_freedoms = np.minimum(1 / (1 / (df + prior) + pull**2 / total), spreads.total)
        part_errors = np.sqrt(np.where((parts < 0) | (prior > SHARED), 0, of_setting[rows, parts]))
        columns.append((np.sqrt(variance), freedoms, np.maximum(part_errors, 1e-150), part_freedoms[parts]))
    errors, freedoms, part_errors, part_freedoms = (np.array(column) for column in zip(*columns, strict=True))
    few, several, pair = TAILS
    more = np.where((parts >= 0).sum(1, keepdims=True) > 2, several, pair)
    part_weights = np.where((df < LONE)[parts], few, more)
    return Errors(spreads.weights, errors, freedoms, part_errors, part_freedoms, part_weights)


def joined(errors: list[Errors]) -> Errors:
    """Join the errors of several blocks of contrasts."""

    def join(name: str) -> Array:
        return np.concatenate([getattr(block, name) for block in errors], axis=1)

    weights = np.concatenate([block.part_weights for block in errors])
    columns = join("errors"), join("freedoms"), join("part_errors"), join("part_freedoms")
    return Errors(errors[0].weights, *columns, weights)


@dataclass(frozen=True)
class Prior:
    """The common distribution of settings' variances: scaled inverse chi-square."""

    variance: float
    freedom: float  # infinite if all variances are equal


def fit_prior(variances: ArrayLike, freedoms: ArrayLike) -> Prior:
    """Fit the common distribution of variances by the moments of their logarithms.

    Source: Smyth, 2004, Statistical Applications in Genetics and Molecular Biology 3(1), article 3, section 6.2
    (limma's fitFDist).
    """
    variances, freedoms = np.asarray(variances, float), np.asarray(freedoms, float)
    usable = (freedoms > 0) & (variances > 0)
    if not usable.any():
        return Prior(0.0, 0.0)
    pooled = float(np.average(variances[usable], weights=freedoms[usable]))
    if usable.sum() < 2:
        return Prior(pooled, 0.0)
    half = freedoms[usable] / 2
    logs = np.log(variances[usable]) - psi(half) + np.log(half)
    excess = float(logs.var(ddof=1) - polygamma(1, half).mean())
    if excess <= 0:
        return Prior(pooled, math.inf)
    prior = 2 * inverse_trigamma(excess)
    return Prior(float(np.exp(logs.mean() + psi(prior / 2) - math.log(prior / 2))), prior)


def inverse_trigamma(value: float) -> float:
    """Solve trigamma(x) = value by Newton's method (Smyth, 2004, appendix)."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return x
