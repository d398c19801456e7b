"""How often `compare.py --images` is right, through stats.images: a setting beside itself, and lists of images."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rates import Rate

from stats.images import image_gains

WON = 0.1  # of the images, that the first setting alone gets right, where there are any


@dataclass(frozen=True)
class Test:
    """Settings on one test set.

    Attributes:
        spread: of the runs' quality, beside an image's own chance from run to run.
        hard_seeds: spread of the seeds' quality, shared by all settings.
        are_shared: all settings ran with the same seeds.
        has_won: a tenth of the images are the first setting's.
    """

    settings: int
    seeds: int
    images: int
    spread: float
    hard_seeds: float = 0.0
    are_shared: bool = True
    has_won: bool = False

    def __str__(self) -> str:
        words = [f"{self.settings} x {self.seeds}, {self.images} images, spread {self.spread:g}"]
        words += ["hard seeds"] * (self.hard_seeds > 0) + ["seeds not shared"] * (not self.are_shared)
        return ", ".join(words + [f"{WON:.0%} won"] * self.has_won)

    def draw(self, rng: np.random.Generator) -> dict[int, dict[int, np.ndarray]]:
        easy, hard = rng.normal(1.5, 1.5, self.images), rng.normal(0, self.hard_seeds, self.seeds)
        won = int(WON * self.images) * self.has_won
        correct: dict[int, dict[int, np.ndarray]] = {}
        for a in range(self.settings):
            runs = {}
            for seed in range(self.seeds):
                quality = rng.normal(0, self.spread) + hard[seed]
                right = easy + quality + rng.normal(size=self.images) > 0
                right[:won] = rng.random(won) < (0.95 if a == 0 else 0.05)
                runs[seed if self.are_shared else 100 * a + seed] = right
            correct[a] = runs
        return correct


SAME = [
    Test(settings, seeds, images, spread)
    for settings, seeds in ((2, 2), (2, 3), (6, 2), (4, 3), (2, 5), (2, 8))
    for images in (144, 360)
    for spread in (0.05, 0.3)
] + [
    Test(4, 3, 360, 0.2, hard_seeds=0.5),
    Test(4, 3, 360, 0.2, are_shared=False),
    Test(2, 3, 5000, 0.1),
    Test(2, 5, 10_000, 0.1),
]
LISTS = [Test(2, seeds, 500, spread, has_won=True) for seeds in (5, 8) for spread in (0.1, 0.5)]


def rates(repetitions: int) -> Iterator[Rate]:
    for test in SAME:
        found = [image_gains(test.draw(rng), [(0, 1)]) for rng in generators(test, repetitions)]
        for kind, words in (("new_runs", "new training runs, these images"), ("both", "both")):
            wrong = sum(getattr(gains, kind).p < 0.05 for gains in found)
            yield Rate(f"{words}: a setting differs from itself", str(test), wrong, repetitions, at_most=0.06)
        lists = sum(bool((gains.rates <= 0.1).any()) for gains in found)
        yield Rate("a list at a rate of 10 %, nothing differs", str(test), lists, repetitions, at_most=0.1)
    for test in LISTS:
        won, false = int(WON * test.images), 0.0
        for rng in generators(test, repetitions):
            listed = image_gains(test.draw(rng), [(0, 1)]).rates <= 0.1
            false += listed[won:].sum() / max(1, listed.sum())
        yield Rate("false images in a list at a rate of 10 %", str(test), false, repetitions, at_most=0.1)


def generators(test: Test, repetitions: int) -> Iterator[np.random.Generator]:
    return (np.random.default_rng([number, *str(test).encode()]) for number in range(repetitions))
