"""Simulations of how often the statistics are right, with the code that is shipped; writes calibration.csv.

python experiments/calibration/calibrate.py        # calibration.csv and the table in README.md: 20 minutes of one core
python experiments/calibration/calibrate.py 2      # two rounds instead of all

Each round adds the same number of simulated studies to every part. An interrupted simulation resumes.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import comparisons
import pictures
import races
from designs import Design, grid
from picks import MEANS, NOISE, bias, predictions
from rates import Rate
from table import read, summarize, write

WRITTEN = Path(__file__).with_name("calibration.csv")
ROUNDS = 14


@dataclass(frozen=True)
class Part:
    """A part of the simulations.

    Attributes:
        simulate: Function from the numbers of studies to their rates.
        studies: Number of studies in a round.
    """

    name: str
    simulate: Callable[[range], list[Rate]]
    studies: int


def parts() -> Iterator[Part]:
    """Yield all parts."""
    yield Part("misses", comparisons.misses, 125)
    studies = [Design(k, n, spread) for k, n in ((2, 3), (3, 3), (6, 3), (12, 5)) for spread in ("equal", "1:2")]
    yield Part("probabilities", partial(comparisons.probabilities, studies), 50)
    for design in (Design(k, n) for k, n in ((2, 3), (2, 5), (6, 3), (6, 5), (12, 3))):
        yield Part(f"power {design}", partial(comparisons.power, design), 125)
    for field in races.EQUAL:
        yield Part(f"race {field.name}", partial(races.equal, field), 125)
    for field in (*races.UNSTEADY, *races.UNLUCKY):
        yield Part(f"race {field.name}", partial(races.failing, field), 62)
    for field in races.CONFIDENT:
        yield Part(f"race {field.name}", partial(races.confident, field), 62)
    for test in pictures.SAME:
        yield Part(f"images {test}", partial(pictures.same, test), 125 if test.images < 1000 else 25)
    for test in pictures.LISTS:
        yield Part(f"images {test}", partial(pictures.lists, test), 25)
    for noise in NOISE:
        for runs in (2, 3, 5, 10):
            yield Part(f"prediction {runs} {noise}", partial(predictions, noise, runs), 250)
    for means in MEANS:
        for seeds in (2, 3, 5):
            yield Part(f"bias {means} {seeds}", partial(bias, means, seeds), 50)
    for design in grid():
        yield Part(f"errors {design}", partial(comparisons.errors, design), 125)
        if design.settings > 3:  # two factors with two levels each, or more
            yield Part(f"interactions {design}", partial(comparisons.interactions, design), 125)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    done = read(WRITTEN)
    for number in range(1, rounds + 1):
        for part in parts():
            studies, rates = done.get(part.name, (0, []))
            if studies >= number * part.studies:
                continue
            new = part.simulate(range(studies, number * part.studies))
            rates = [old + added for old, added in zip(rates, new, strict=True)] if rates else new
            done[part.name] = number * part.studies, rates
            write(WRITTEN, done)
        print(f"round {number} of {rounds}: {time.process_time():.0f} seconds of the processor", flush=True)
        summarize(done)


if __name__ == "__main__":
    main()
