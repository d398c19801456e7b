"""Probabilities: that a setting is the best, and that a new run of one is better than a new run of another.

The best of many settings was also lucky. So true means are modelled as draws from a common normal distribution, whose
spread is estimated from the results (the hierarchical model of Rubin, 1981, Journal of Educational Statistics 6,
377-401), with the moderated variances of stats.variances. Few settings hardly determine that spread, so it has a
half-Cauchy prior, whose median is 0.7 spreads of a run (Gelman, 2006, Bayesian Analysis 1, 515-534). Probabilities are
shares of draws from the posterior distribution; the draws are the same at every call.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stats.estimates import Estimate, Setting
from stats.seeds import SeedModel
from stats.variances import Array

DRAWS = 2000
MOST = 2_000_000  # most numbers drawn at once
MEANS = np.array([0, 0.25, 0.5, 1, 2, 4, 8, 16, 64, 256, 1024])  # spreads of the true means, in spreads of a run
EDGES = np.concatenate([[0, 0.125], np.sqrt(MEANS[1:-1] * MEANS[2:]), [np.inf]])  # bounds of the intervals around MEANS
LIKELY = np.diff(np.arctan(EDGES / 0.7))  # weights of the half-Cauchy prior


@dataclass(frozen=True)
class Draws:
    """Draws from the posterior distribution.

    Attributes:
        place: Column of each setting.
        means: [draws, settings], true means, where higher is better.
        spreads: [draws, settings], standard deviations of a run.
        failures: [draws, settings], rates of failed runs; 0 if no run failed.
    """

    place: Mapping[Setting, int]
    means: Array
    spreads: Array
    failures: Array

    def probability_best(self) -> dict[Setting, float]:
        """Compute each setting's probability of being the best, which is 0 in draws in which most runs fail."""
        means = np.where(self.failures > 0.5, -np.inf, self.means)
        wins = np.bincount(means.argmax(1), minlength=means.shape[1]) / len(means)
        return {setting: float(wins[i]) for setting, i in self.place.items()}

    def beats(self, first: Setting, second: Setting) -> Estimate:
        """Compute the probability that a new run of the first is better; a failed run loses."""
        from scipy.special import ndtr

        a, b = self.place[first], self.place[second]
        spread = np.hypot(self.spreads[:, a], self.spreads[:, b])
        chance = ndtr((self.means[:, a] - self.means[:, b]) / np.maximum(spread, 1e-300))
        completes, other = 1 - self.failures[:, a], 1 - self.failures[:, b]
        chance = completes * other * chance + completes * (1 - other) + (1 - completes) * (1 - other) / 2
        low, high = np.quantile(chance, (0.025, 0.975))
        return Estimate(float(chance.mean()), len(chance), low=float(low), high=float(high))


def draw(model: SeedModel, settings: list[Setting], failed: Array, sign: int) -> Draws | None:
    """Draw from the posterior distribution; None if no spread is known."""
    if model.spreads is None:
        return None
    rng = np.random.default_rng(0)
    spreads, k = model.spreads, len(settings)
    n = max(500, min(DRAWS, MOST // k))
    grid = rng.choice(len(spreads.weights), n, p=spreads.weights)
    freedoms = spreads.freedoms + spreads.prior[grid][:, None]
    variances = spreads.variances[grid] * freedoms / rng.chisquare(np.minimum(freedoms, 1e6))
    variances *= np.where(freedoms > 1e6, 1e6 / freedoms, 1)
    if spreads.total < 1e6:  # the common variance is an estimate, too
        common = spreads.total / rng.chisquare(spreads.total, n)
        pull = spreads.prior[grid][:, None] / freedoms
        variances *= common[:, None] ** pull
    errors = variances / model.runs_of
    observed = sign * model.means
    typical = np.sqrt(np.median(variances, axis=1))
    likelihoods = np.array([likelihood(observed, (size * typical)[:, None] ** 2 + errors) for size in MEANS])
    joint = (LIKELY[:, None] * np.exp(likelihoods - likelihoods.max())).ravel()
    size, drawn = np.divmod(rng.choice(joint.size, n, p=joint / joint.sum()), n)
    errors, variances, tau = errors[drawn], variances[drawn], (MEANS[size] * typical[drawn])[:, None]
    total = tau**2 + errors
    precision = (1 / total).sum(1, keepdims=True)
    center = (observed / total).sum(1, keepdims=True) / precision + rng.normal(size=(n, 1)) / np.sqrt(precision)
    weight = tau**2 / total
    means = weight * observed + (1 - weight) * center + np.sqrt(weight * errors) * rng.normal(size=(n, k))
    runs = model.runs_of + failed
    rates = np.where(failed > 0, rng.beta(failed + 0.5, runs - failed + 0.5, (n, k)), 0.0)
    return Draws({setting: i for i, setting in enumerate(settings)}, means, np.sqrt(variances), rates)


def likelihood(observed: Array, variances: Array) -> Array:
    """Compute the log-likelihood of the observed means, with their common center integrated out, [draws]."""
    precision = (1 / variances).sum(1)
    center = (observed / variances).sum(1) / precision
    squares = ((observed - center[:, None]) ** 2 / variances).sum(1)
    return -0.5 * (np.log(variances).sum(1) + np.log(precision) + squares)
