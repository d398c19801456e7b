"""How often prediction intervals hold a new run, and how much of the bias of a picked setting is said."""

from collections.abc import Iterator

import numpy as np
from rates import Rate

from stats.prediction import prediction_interval
from stats.selection import selection_bias

NOISE = ("normal", "heavy tails", "skewed")
MEANS = {
    "2 equal": np.zeros(2),
    "12 equal": np.zeros(12),
    "50 equal": np.zeros(50),
    "8, each 0.3 behind": np.arange(8) * -0.3,
    "4 equal, 4 far behind": np.repeat([0.0, -9.0], 4),
    "one far ahead": np.array([9.0, 0, 0, 0]),
}


def rates(repetitions: int) -> Iterator[Rate]:
    for noise in NOISE:
        for runs in (2, 3, 5, 10):
            rng, inside = np.random.default_rng(runs), 0
            for _ in range(repetitions):
                drawn = {
                    "normal": lambda n: rng.normal(size=n),  # noqa: B023
                    "heavy tails": lambda n: rng.standard_t(3, n),  # noqa: B023
                    "skewed": lambda n: 1 - rng.exponential(size=n),  # noqa: B023
                }[noise](runs + 1)
                low, high = prediction_interval(drawn[1:].mean(), drawn[1:].std(ddof=1), runs)
                inside += bool(low <= drawn[0] <= high)
            least = 0.93 if noise == "normal" else 0.9
            yield Rate("a new run lies within 95 %", f"{runs} runs, {noise}", inside, repetitions, at_least=least)


def biases(repetitions: int) -> Iterator[tuple[str, int, float, float]]:
    """Of each design and number of seeds: how much too good the picked mean is on average, and how much is said; in
    standard deviations of a run."""
    for name, means in MEANS.items():
        for seeds in (2, 3, 5):
            rng, true, said = np.random.default_rng(seeds), 0.0, 0.0
            for _ in range(repetitions):
                table = means[:, None] + rng.normal(size=(len(means), seeds))
                values = {a: dict(enumerate(row)) for a, row in enumerate(table.tolist())}
                selection = selection_bias(values)  # type: ignore[arg-type]
                assert selection and selection.bias is not None
                true += table[selection.best].mean() - means[selection.best]  # type: ignore[index, call-overload]
                said += selection.bias
            yield name, seeds, true / repetitions, said / repetitions
