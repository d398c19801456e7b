"""Means of settings, adjusted for missing seeds: value ~ setting + seed.

If settings share seeds and these matter, runs of one seed are compared with each other (the two-way layout without
interaction; Searle, Speed and Milliken, 1980, The American Statistician 34, 216-221). If they share too few, they are
independent samples. Runs are weighted by the precision of their setting, so that a noisy setting does not disturb the
seeds' effects (weighted least squares, with variances by the equations of restricted maximum likelihood).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from stats.estimates import TIE
from stats.variances import Array, Errors, Spreads, errors_of, joined, moderate

SEEDS_MATTER = 0.25  # highest p value at which seeds matter
SETTINGS_PER_SEED = 1.5  # least mean number of settings that ran with a seed
AT_ONCE = 2_000_000  # weights of contrasts that are computed at once
ROUNDS = 12  # most rounds of estimating variances and weights in turn


@dataclass(frozen=True)
class SeedModel:
    """The fitted model, value ~ setting + seed.

    Attributes:
        ran: [settings, seeds], True if there is a value.
        raw_means: [settings], means of the available values.
        means: [settings], means adjusted for missing seeds.
        weights: [settings], weight of each of its runs.
        inverse: [seeds, seeds], inverse of the normal equations of the seeds' effects; None if seeds are not shared.
        spreads: The settings' variances; None if no spread is known.
    """

    ran: NDArray[np.bool_]
    raw_means: Array
    means: Array
    weights: Array
    inverse: Array | None
    spreads: Spreads | None

    @property
    def runs_of(self) -> Array:
        """Number of runs with a value, [settings]."""
        return self.ran.sum(1).astype(float)

    @property
    def is_adjusted(self) -> bool:
        """True if means are adjusted for missing runs."""
        return not np.allclose(self.means, self.raw_means, rtol=0, atol=TIE)

    def errors(self, contrasts: Array, parts: NDArray[np.int64] | None = None) -> Errors | None:
        """Compute the standard errors of linear combinations of the means.

        Args:
            contrasts: [contrasts, settings], weights with sums 0.
            parts: [contrasts, parts], indices of the settings compared, padded with -1; the tail of each setting's
                spread is considered. None: tails are not considered.
        """
        if self.spreads is None:
            return None
        parts = np.empty((len(contrasts), 0), dtype=np.int64) if parts is None else parts
        shares = (self.shares(part) for part in np.array_split(contrasts, 1 + contrasts.size // AT_ONCE))
        places = np.array_split(parts, 1 + contrasts.size // AT_ONCE)
        return joined([errors_of(self.spreads, *both) for both in zip(shares, places, strict=True)])

    def shares(self, contrasts: Array) -> Array:
        """Sum the squared weights of each setting's runs, [contrasts, settings]."""
        shares = contrasts**2 / self.runs_of
        if self.inverse is not None and not self.ran.all():  # other settings' runs show how hard missing seeds are
            of_setting = self.ran / self.runs_of[:, None]
            moved = contrasts @ of_setting @ self.inverse
            added = moved**2 @ self.ran.T - self.runs_of * (moved @ of_setting.T) ** 2
            shares += self.weights**2 * np.maximum(added, 0)
        return shares


def fit(values: Array, floor: float = 0.0) -> SeedModel:
    """Estimate the means of the settings and their spreads; if seeds matter, adjust for missing runs.

    Args:
        values: [settings, seeds], NaN without a run; every setting has at least one run.
        floor: Smallest variance that values of this resolution can have.
    """
    ran = ~np.isnan(values)
    runs_of = ran.sum(1)
    raw = np.where(ran, values, 0.0).sum(1) / runs_of
    deviations = np.where(ran, values - raw[:, None], 0.0)
    is_paired = bool(ran.all()) or len(ran) == 2  # no mean is adjusted
    shares_seeds = share_seeds(ran) and (is_paired or seeds_matter(deviations, ran))
    used = weights = np.ones(len(values))
    spreads = None
    shares = ran / runs_of[:, None]
    inverse, effects, leverage = None, np.zeros(values.shape[1]), np.zeros(len(values))
    for number in range(ROUNDS):
        if shares_seeds:
            inverse = solved_for_seeds(ran, weights)[0]
            effects = inverse @ (deviations.T @ weights)
            leverage = ran @ np.diag(inverse) - np.sum((ran @ inverse) * shares, axis=1)
        of_setting = shares @ effects
        residuals = np.where(ran, deviations - effects + of_setting[:, None], 0.0)
        freedoms = np.clip(runs_of - 1 - weights * leverage, 0, None)
        squares = np.sum(residuals**2, axis=1)
        squares = np.maximum(squares * (squares > TIE**2), floor * freedoms)
        # With two settings and shared seeds, only the spread of the difference is known: this is the paired t test.
        spreads = moderate(squares, freedoms, are_equal=shares_seeds and len(values) == 2)
        if spreads is None:
            break
        used, weights = weights, 1 / spreads.typical
        if number > 3:  # damping keeps one setting from dominating the seeds' effects
            weights = np.sqrt(weights * used)
        if np.abs(np.log(weights / used)).max() < 1e-3:
            break
    everywhere = effects[ran.any(0)].mean() if ran.any() else 0.0
    return SeedModel(ran, raw, raw + everywhere - of_setting, used, inverse, spreads)


def share_seeds(ran: NDArray[np.bool_]) -> bool:
    """Check if the settings share enough seeds, so that shared seeds connect all settings."""
    seeds = int(ran.any(0).sum())
    if len(ran) < 2 or ran.sum() < SETTINGS_PER_SEED * seeds:
        return False
    return solved_for_seeds(ran, np.ones(len(ran)))[1] == seeds - 1


def seeds_matter(deviations: Array, ran: NDArray[np.bool_]) -> bool:
    """Test if the seeds explain more than noise does; if not, means are not adjusted for missing runs.

    It is an F test at 25 %, the level for such preliminary tests (Bancroft, 1964, Biometrics 20, 427-442). So a seed
    does not count as hard because a single run diverged.
    """
    inverse, seeds = solved_for_seeds(ran, np.ones(len(ran)))
    explained = float(deviations.sum(0) @ inverse @ deviations.sum(0))
    freedom = int(ran.sum()) - len(ran) - seeds
    unexplained = float(np.sum(deviations**2)) - explained
    if freedom < 1 or explained <= TIE**2:
        return False
    return unexplained <= 0 or float(fdtrc(seeds, freedom, explained / seeds / (unexplained / freedom))) < SEEDS_MATTER


def solved_for_seeds(ran: NDArray[np.bool_], weights: Array) -> tuple[Array, int]:
    """Invert the normal equations of the seeds' effects, with settings eliminated; return the inverse and the rank."""
    weighted = ran * weights[:, None]
    equations = np.diag(weighted.sum(0)) - ran.T @ (weighted / ran.sum(1, keepdims=True))
    values, vectors = np.linalg.eigh(equations)
    is_positive = values > TIE * values.max(initial=0.0)
    return (vectors[:, is_positive] / values[is_positive]) @ vectors[:, is_positive].T, int(is_positive.sum())
