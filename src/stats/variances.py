"""Moderated variances: each setting's own, drawn towards what the settings have in common."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import polygamma, psi

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """What settings' variances have in common: scaled inverse chi-square with this scale and degrees of freedom."""

    variance: float
    freedom: float  # infinite: all are the same


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
