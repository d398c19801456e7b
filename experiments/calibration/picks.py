"""Simulated picks of the best setting: coverage of prediction intervals, and the estimate of the selection bias."""

from collections.abc import Iterable

import numpy as np
from rates import Rate, generator

from stats.prediction import prediction_interval
from stats.selection import selection_bias

NOISE = ("normal", "heavy tails", "skewed")
AHEAD = "one far ahead"
MEANS = {
    "2 equal": np.zeros(2),
    "12 equal": np.zeros(12),
    "50 equal": np.zeros(50),
    "8, each 0.3 behind": np.arange(8) * -0.3,
    "4 equal, 4 far behind": np.repeat([0.0, -9.0], 4),
    AHEAD: np.array([9.0, 0, 0, 0]),
}


def draw(noise: str, n: int, rng: np.random.Generator) -> np.ndarray:
    if noise == "heavy tails":
        return rng.standard_t(3, n)
    return 1 - rng.exponential(size=n) if noise == "skewed" else rng.normal(size=n)


def predictions(noise: str, runs: int, numbers: Iterable[int]) -> list[Rate]:
    """Count how often the prediction interval of some runs contains one more run."""
    name, inside, n = f"{runs} runs, {noise}", 0, 0
    for number in numbers:
        new, *old = draw(noise, runs + 1, generator(name, number))
        low, high = prediction_interval(float(np.mean(old)), float(np.std(old, ddof=1)), runs)
        inside += bool(low <= new <= high)
        n += 1
    return [Rate("a new run lies within 95 %", name, inside, n, at_least=0.93 if noise == "normal" else 0.9)]


def bias(means_name: str, seeds: int, numbers: Iterable[int]) -> list[Rate]:
    """Compare the mean selection bias of the picked setting with its mean estimate."""
    means, name, true, estimate = MEANS[means_name], f"{means_name}, {seeds} seeds", 0.0, 0.0
    for number in numbers:
        table = means[:, None] + generator(name, number).normal(size=(len(means), seeds))
        values: dict[int, dict[int, float | None]] = {a: dict(enumerate(row)) for a, row in enumerate(table.tolist())}
        selection = selection_bias(values)
        assert selection and selection.bias is not None
        true += table[selection.best].mean() - means[selection.best]
        estimate += selection.bias
    least, most = (0.67, 1.1) if means_name != AHEAD else (0.0, 1.0)  # nothing is claimed of what is no choice
    return [Rate("said of the bias of the best", name, estimate, true, at_least=least, at_most=most, is_share=True)]
