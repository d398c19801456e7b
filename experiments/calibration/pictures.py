"""Simulated test images: how often `compare.py --images` is right about equal settings and about lists of images."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from rates import Rate, generator

from stats.estimates import ERROR
from stats.images import Sampled, image_gains

WON = 0.1  # of the images, that the first setting alone gets right, where there are any


@dataclass(frozen=True)
class Test:
    """Settings on one test set.

    Attributes:
        spread: Spread of the runs' quality, in addition to the chance of each image from run to run.
        hard_seeds: Spread of the seeds' quality, shared by all settings.
        are_shared: True if all settings ran with the same seeds.
        has_won: True if the first setting wins a tenth of the images.
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


def same(test: Test, numbers: Iterable[int]) -> list[Rate]:
    """Compare two settings of equal quality."""
    gains_by_study = [image_gains(test.draw(generator(test, number)), [(0, 1)]) for number in numbers]
    name, n = str(test), len(gains_by_study)
    return [
        Rate("new training runs, these images: a setting differs from itself", name,
             sum(is_significant(gains.new_runs) for gains in gains_by_study), n, at_most=0.06),
        Rate("both: a setting differs from itself", name,
             sum(is_significant(gains.both) for gains in gains_by_study), n, at_most=0.06),
        Rate("a list of images at a rate of 10 %, nothing differs", name,
             sum(bool((gains.rates <= 0.1).any()) for gains in gains_by_study), n, at_most=0.1),
    ]  # fmt: skip


def is_significant(sampled: Sampled) -> bool:
    return sampled.p is not None and sampled.p < ERROR


def lists(test: Test, numbers: Iterable[int]) -> list[Rate]:
    """Count the wrong images in lists of images that the first setting has won."""
    won, false, n = int(WON * test.images), 0.0, 0
    for number in numbers:
        listed = image_gains(test.draw(generator(test, number)), [(0, 1)]).rates <= 0.1
        false += listed[won:].sum() / max(1, listed.sum())
        n += 1
    return [Rate("false images in a list at a rate of 10 %", str(test), false, n, at_most=0.1)]
