"""Simulated races: how often a race names a wrong winner, and how often its confidence in the leader is right."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rates import Rate, generator

from stats.race import Outcome, Rules, Standing, confidence, standing


@dataclass(frozen=True)
class Field:
    """The settings of a race. The first two are the best; they are equal unless the first one has a `lead`.

    Attributes:
        behind: Distance of the other settings from the best, in points.
        spreads: Standard deviation of the runs of each setting, in points.
        noise: "normal", "heavy" (Student's t with 4 degrees of freedom) or "skewed" (to either side).
        images: Number of validation images.
        diverging, lost: The rate at which runs of the first setting diverge, or cannot be made.
    """

    name: str
    spreads: Sequence[float]
    behind: Sequence[float] = ()
    lead: float = 0.0
    noise: str = "normal"
    images: int = 1797
    diverging: float = 0.0
    lost: float = 0.0

    def run(self, rng: np.random.Generator, max_seeds: int = 20) -> tuple[Standing, Rules]:
        settings, shape = len(self.spreads), (len(self.spreads), max_seeds)
        noise = {
            "normal": lambda: rng.normal(size=shape),
            "heavy": lambda: rng.standard_t(4, shape) / math.sqrt(2),
            "skewed down": lambda: 1 - rng.exponential(size=shape),
            "skewed up": lambda: rng.exponential(size=shape) - 1,
        }[self.noise]()
        means = np.array([self.lead, 0.0, *(-points for points in self.behind)])[:settings, None]
        hard = rng.normal(0, 1, max_seeds)  # seeds are hard or easy for all settings alike
        values = 0.9 + (means + noise * np.array(self.spreads)[:, None] + hard) / 100
        values = np.round(values * self.images) / self.images
        chance = rng.random(max_seeds)
        rules = Rules(settings, max_seeds=max_seeds, resolution=1 / self.images)

        def result(run: tuple[int, int]) -> Outcome:
            if run[0] == 0 and chance[run[1]] < self.diverging:
                return Outcome(None)
            return Outcome(math.nan if run[0] == 0 and chance[run[1]] < self.lost else float(values[run]))

        return standing(result, rules), rules


EQUAL = [
    Field("2 equal", [0.5] * 2),
    Field("4 equal", [0.5] * 4, [0] * 2),
    Field("12 equal", [0.5] * 12, [0] * 10),
    Field("2 equal, 2 worse", [0.5] * 4, [2, 2]),
    Field("2 equal, 10 worse", [0.5] * 12, [2] * 10),
    Field("2 equal, 10 a little worse", [0.5] * 12, [0.7] * 10),
    Field("2 equal, spreads 1:5, 2 worse", [0.2, 1, 0.4, 0.4], [2, 2]),
    Field("2 equal noisy, 6 quiet a little worse", [1, 1] + [0.2] * 6, [0.7] * 6),
    Field("2 equal, 2 worse, one never learns", [1, 0.2, 2, 0], [2, 80]),
    Field("6 equal, one x 10", [0.3] * 5 + [3], [0] * 4),
    Field("2 equal, heavy tails", [0.5] * 2, noise="heavy"),
    Field("2 equal, 2 worse, heavy tails", [0.5] * 4, [2, 2], noise="heavy"),
    Field("2 equal, 2 worse, skewed down", [0.5] * 4, [3, 3], noise="skewed down"),
    Field("2 equal, 2 worse, skewed up", [0.5] * 4, [3, 3], noise="skewed up"),
    Field("2 equal, ties on 144 images", [0.5] * 2, images=144),
]
BETTER = "the better one"
UNSTEADY = [Field(f"{BETTER} diverges in {rate:.0%}", [0.6] * 2, lead=1, diverging=rate) for rate in (0.02, 0.05, 0.1)]
UNLUCKY = [Field(f"{BETTER} loses {rate:.0%} of its runs", [0.6] * 2, lead=1, lost=rate) for rate in (0.02, 0.05)]
CONFIDENT = [Field(f"{settings} settings", [0.4] * settings) for settings in (2, 4, 8)]


def equal(field: Field, numbers: Iterable[int]) -> list[Rate]:
    """Race settings that have no single best one."""
    races = [field.run(generator(field.name, number))[0] for number in numbers]
    named = sum(race.end == "winner" for race in races)
    return [Rate("a race names a winner, none is", field.name, named, len(races), at_most=0.05)]


def failing(field: Field, numbers: Iterable[int]) -> list[Rate]:
    """Race two settings. The better one sometimes diverges, or loses runs.

    If it diverges, but did not in the race, it may be named the winner; nothing is claimed about this case.
    """
    races = [field.run(generator(field.name, number))[0] for number in numbers]
    won = [race.ranked[0] for race in races if race.end == "winner"]
    failed = sum(race.end == "winner" and race.failures(race.ranked[0]) > 0 for race in races)
    rates = [
        Rate("a race names the worse one", field.name, won.count(1), len(races), at_most=0.05),
        Rate("a race names one with failed runs", field.name, failed, len(races), at_most=0.0),
    ]
    if field.diverging:
        rates.append(Rate("it named one that had not failed yet", field.name, won.count(0), len(races)))
    return rates


def confident(field: Field, numbers: Iterable[int]) -> list[Rate]:
    """Race means that vary as much as runs do; count how often a confident leader is the best if nobody wins."""
    right, sure = 0, 0
    for number in numbers:
        rng = generator(field.name, number)
        means = rng.normal(0, 0.4, len(field.spreads))
        apart = Field(field.name, field.spreads, (means[1] - means[2:]).tolist(), means[0] - means[1])
        race, rules = apart.run(rng, max_seeds=9)
        if race.end == "max_seeds" and 0.85 < (confidence(race, rules) or 0) < 0.95:
            sure += 1
            right += race.ranked[0] == int(means.argmax())
    return [Rate("a leader with 85 to 95 % is the best", field.name, right, sure, at_least=0.85)]
