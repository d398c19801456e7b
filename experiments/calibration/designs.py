"""Designs of simulated studies with known truth: numbers of settings and seeds, spreads, missing runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Values = dict[int, dict[int, float | None]]

SIZES = ((2, 3), (2, 8), (3, 2), (3, 5), (6, 2), (6, 3), (6, 8), (12, 2), (12, 3), (12, 5))  # settings, seeds
SPREADS = ("equal", "1:2", "1:5", "one x 10", "heavy tails", "skewed", "diverging", "ties")
MILD = ("equal", "1:2")  # for which the stricter bounds are claimed
MISSING = ("none", "one", "a fifth")
CHANCES = ("plain", "hard seeds", "own seeds")


@dataclass(frozen=True)
class Design:
    """A design of simulated studies.

    Attributes:
        spread: The spreads of the settings' runs, as a ratio of standard deviations, or a distribution. With "ties"
            accuracies are of few images.
        missing: The pattern of runs without a result.
        chance: "plain"; "hard seeds": some seeds are harder for all settings; "own seeds": no seed is shared.
    """

    settings: int
    seeds: int
    spread: str = "equal"
    missing: str = "none"
    chance: str = "plain"

    def __str__(self) -> str:
        chance = f", {self.chance}" if self.chance != "plain" else ""
        return f"{self.settings} x {self.seeds}, {self.spread}, missing {self.missing}{chance}"

    @property
    def is_mild(self) -> bool:
        return self.spread in MILD

    @property
    def deviations(self) -> Array:
        """Standard deviation of a run, [settings]."""
        scales = np.ones(self.settings)
        if self.spread in ("1:2", "1:5"):
            scales[self.settings // 2 :] = float(self.spread[2:])
        if self.spread == "one x 10":
            scales[-1] = 10
        return scales

    def draw(self, rng: np.random.Generator, means: Array | float = 0.0) -> Values:
        """Simulate one study; means are in standard deviations of a run of the first setting."""
        shape = (self.settings, self.seeds)
        noise = rng.normal(size=shape)
        if self.spread == "heavy tails":
            noise = rng.standard_t(3, shape)
        elif self.spread == "skewed":
            noise = 1 - rng.exponential(size=shape)
        elif self.spread == "diverging":
            noise = np.where(rng.random(shape) < 0.05, -20.0, noise)
        noise *= self.deviations[:, None]
        values = noise + np.broadcast_to(means, self.settings)[:, None]
        values += rng.normal(size=self.seeds) if self.chance == "hard seeds" else 0.0
        if self.spread == "ties":
            values = np.round(values)
        gone = self.draw_missing(rng)
        first = [100 * i * (self.chance == "own seeds") for i in range(self.settings)]
        return {
            i: {first[i] + s: float(values[i, s]) for s in range(self.seeds) if not gone[i, s]}
            for i in range(self.settings)
        }

    def draw_missing(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Draw which runs have no result, [settings, seeds]; every setting keeps one."""
        gone = np.zeros((self.settings, self.seeds), bool)
        runs = {"none": 0, "one": 1, "a fifth": round(0.2 * gone.size)}[self.missing]
        for run in rng.permutation(gone.size):
            i, s = divmod(int(run), self.seeds)
            if gone.sum() < runs and gone[i].sum() < self.seeds - 1:
                gone[i, s] = True
        return gone


def grid() -> Iterator[Design]:
    """Yield all sizes with all spreads; missing runs and kinds of seeds alternate (a third of a factorial design)."""
    for (i, (settings, seeds)), (j, spread) in product(enumerate(SIZES), enumerate(SPREADS)):
        missing = MISSING[(i + j) % 3] if settings * seeds > 5 else "none"
        yield Design(settings, seeds, spread, missing, chance=CHANCES[(i + 2 * j) % 3])
