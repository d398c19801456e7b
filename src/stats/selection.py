"""Selection bias: the best setting looks better than it is, as the same runs picked it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stats.estimates import Setting, Values
from stats.variances import Array, fit_prior

DRAWS = 4000
GRID = 60  # values that the true means are taken to be among
STEPS = 200  # of the EM algorithm


@dataclass(frozen=True)
class Selection:
    """The bias of the best setting's mean.

    Attributes:
        best: the setting with the best mean.
        bias: its expected mean minus its true one, in the metric's own direction: above 0 for an accuracy that looks
            too high, below 0 for a loss that looks too low. None: no spread over seeds is known.
        error: the standard error of its mean.
        fresh_seeds: further seeds of `best` alone of which the mean is unbiased and as precise.
    """

    best: Setting
    bias: float | None
    fresh_seeds: int
    error: float = 0.0


def selection_bias(values: Values, higher_is_better: bool = True, reported: Values | None = None) -> Selection | None:
    """Estimate how much too good the best setting's mean is, by simulating the choice.

    Observed means lie farther apart than the true ones, so that drawing around them would make the choice look easier
    than it was. The distribution of the true means is estimated first, and the choice is drawn around those. On average
    this says 73 to 111 % of the bias (experiments/calibration).

    Args:
        values: the metric that picks the best. A setting with failed runs competes only if every setting has some.
        reported: the metric that is quoted, e.g. test accuracy where validation accuracy picked; None: the same. It is
            biased as far as it varies along with the other from run to run.

    Returns:
        None where there are not two settings to pick from.

    Source: Kiefer and Wolfowitz, 1956, Annals of Mathematical Statistics 27, 887-906; by EM as Jiang and Zhang, 2009,
    Annals of Statistics 37, 1647-1684.
    """
    ran = {a: runs for a, runs in values.items() if any(value is not None for value in runs.values())}
    settings = [a for a, runs in ran.items() if None not in runs.values()] or list(ran)
    if len(settings) < 2:
        return None
    seeds = sorted({seed for a in settings for seed in values[a]})
    table = as_table(values, settings, seeds) * (1 if higher_is_better else -1)
    runs, means = (~np.isnan(table)).sum(1), np.nanmean(table, axis=1)
    best, noise = int(means.argmax()), residuals(table)
    variances = variances_of(noise, runs)
    if variances is None:
        return Selection(settings[best], None, int(runs[best]))
    errors = np.sqrt(variances / runs)
    true = shrunken(means, errors)
    drawn = true + errors * np.random.default_rng(0).standard_normal((DRAWS, len(true)))
    picked = drawn.argmax(1)
    bias = float(np.mean(drawn[np.arange(DRAWS), picked] - true[picked]))
    if reported is None:
        bias *= 1 if higher_is_better else -1
    else:
        bias *= slope(noise, residuals(as_table(reported, settings, seeds)))
    return Selection(settings[best], bias, int(runs[best]), float(errors[best]))


def as_table(values: Values, settings: Sequence[Setting], seeds: Sequence[int]) -> Array:
    """Arrange values as [settings, seeds], with NaN for missing and failed runs."""
    return np.array([[values.get(a, {}).get(seed) for seed in seeds] for a in settings], dtype=float)


def residuals(table: Array) -> Array:
    """Remove the settings' means, and in a full table the seeds': a seed that is good for all picks none of them."""
    left = table - np.nanmean(table, axis=1, keepdims=True)
    if np.isnan(table).any():
        return left
    scale = np.sqrt(len(table) / (len(table) - 1))  # so that a setting's own degrees of freedom are its runs - 1
    return (left - left.mean(0)) * scale


def variances_of(noise: Array, runs: Array) -> Array | None:
    """Moderate the settings' variances; None if no setting has two runs or nothing varies."""
    freedoms = np.maximum(runs - 1, 0)
    own = np.nansum(noise**2, axis=1) / np.maximum(freedoms, 1)
    prior = fit_prior(own, freedoms)
    if not prior.variance:
        return None
    weight = min(prior.freedom, 1e6)
    return (weight * prior.variance + freedoms * own) / np.maximum(weight + freedoms, 1e-9)


def shrunken(means: Array, errors: Array) -> Array:
    """Estimate the true means from the observed ones and the best fitting distribution of true means."""
    grid = np.linspace(means.min(), means.max(), GRID)
    squares = ((means[:, None] - grid) / np.maximum(errors, 1e-12)[:, None]) ** 2
    fit = np.exp(-0.5 * (squares - squares.min(1, keepdims=True)))  # where errors are tiny, the nearest value remains
    weights = np.full(GRID, 1 / GRID)
    for _ in range(STEPS):
        shares = fit * weights
        shares /= shares.sum(1, keepdims=True)
        weights = shares.mean(0)
    return shares @ grid


def slope(noise: Array, other: Array) -> float:
    """Estimate how much another metric changes from run to run for each unit of the first."""
    both = ~np.isnan(noise) & ~np.isnan(other)
    return float(np.sum(noise[both] * other[both]) / np.sum(noise[both] ** 2))
