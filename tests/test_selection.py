"""Tests of prediction intervals and of the selection bias, by simulation."""

import warnings

import numpy as np
import pytest
from scipy.stats import binomtest

from stats.estimates import Values
from stats.prediction import prediction_interval, rate_bounds
from stats.selection import selection_bias

SIMULATIONS = 2000


@pytest.mark.parametrize("runs", [2, 3, 5, 10])
def test_a_prediction_interval_holds_95_percent_of_new_results(runs: int) -> None:
    generator, inside = np.random.default_rng(runs), 0
    for _ in range(SIMULATIONS):
        *ours, theirs = generator.normal(0.9, 0.01, runs + 1)
        low, high = prediction_interval(float(np.mean(ours)), float(np.std(ours, ddof=1)), runs)
        inside += low <= theirs <= high
    assert 0.935 <= inside / SIMULATIONS <= 0.965


@pytest.mark.parametrize(("events", "runs"), [(0, 1), (0, 9), (1, 20), (3, 3)])
def test_rate_bounds_are_clopper_and_pearsons(events: int, runs: int) -> None:
    exact = binomtest(events, runs).proportion_ci(0.9)  # 95 % at each end
    assert rate_bounds(events, runs) == pytest.approx((exact.low, exact.high))


def biases(means: np.ndarray, seeds: int, shared: float = 0.0, missing: float = 0.0) -> tuple[float, float]:
    """Simulate the mean bias of the picked setting's metric, and its mean estimate."""
    generator, true, estimated = np.random.default_rng(1), [], []
    for _ in range(200):
        ran = generator.random((len(means), seeds)) >= missing
        ran[:, 0] = True
        noise = generator.normal(0, 1, (len(means), seeds)) + shared * generator.normal(0, 1, seeds)
        values = {a: {s: means[a] + noise[a, s] for s in range(seeds) if ran[a, s]} for a in range(len(means))}
        selection = selection_bias(values)
        assert selection and selection.bias is not None
        best = selection.best
        assert best == max(values, key=lambda a: np.mean(list(values[a].values())))
        true.append(np.mean(list(values[best].values())) - means[best])
        estimated.append(selection.bias)
    return float(np.mean(true)), float(np.mean(estimated))


@pytest.mark.parametrize(
    ("means", "seeds", "missing"),
    [(np.zeros(12), 3, 0.0), (np.zeros(12), 3, 0.2), (np.arange(8) * -0.3, 3, 0.0), (np.repeat([0, -9], 4), 5, 0.0)],
)
def test_the_bias_of_the_best_is_said_to_within_0_15_spreads(means: np.ndarray, seeds: int, missing: float) -> None:
    true, estimated = biases(means, seeds, missing=missing)
    assert true > 0.2
    assert estimated == pytest.approx(true, abs=0.15)


def test_a_clear_winner_is_hardly_biased() -> None:
    _, estimated = biases(np.array([9.0, 0, 0, 0]), 3, shared=2.0)
    assert abs(estimated) < 0.02


def test_losses_look_too_low_and_survivors_do_not_compete() -> None:
    values: Values = {"a": {0: 0.5, 1: 0.6}, "b": {0: 0.55, 1: 0.52}, "c": {0: 0.1, 1: None}}
    selection = selection_bias(values, higher_is_better=False)
    assert selection and selection.bias is not None
    assert (selection.best, selection.fresh_seeds) == ("b", 2) and selection.bias < 0
    one_seed = selection_bias({"a": {0: 0.5}, "b": {0: 0.4}})
    assert one_seed and one_seed.bias is None
    assert selection_bias({"a": {0: 0.5, 1: 0.4}}) is None


def test_settings_that_hardly_vary_have_no_bias() -> None:
    """Their errors are far smaller than the steps between the true means in the estimate."""
    values = {a: {0: a / 10 + 1e-9, 1: a / 10 - 1e-9} for a in range(9)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selection = selection_bias(values)
    assert selection and selection.bias == pytest.approx(0, abs=1e-6)
