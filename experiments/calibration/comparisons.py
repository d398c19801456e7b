"""How often what `stats.analyse` says of a comparison is true, where the truth is known."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from designs import Array, Design, Values
from rates import Rate

from stats import analyse

STUDY = Path(__file__).parents[1] / "optimizers_reduced" / "comparison.csv"


def random(design: object, number: int) -> np.random.Generator:
    return np.random.default_rng([number, *str(design).encode()])


def errors(design: Design, repetitions: int) -> list[Rate]:
    """Simulate settings that are all equal: what is significant then is wrong, and every interval should hold 0."""
    wrong = wrong_effects = holds = intervals = excluded = 0
    for number in range(repetitions):
        values = design.draw(random(design, number))
        result = analyse(values)
        differences = list(result.differences.values())
        wrong += any(difference.is_significant for difference in differences)
        tested = [difference for difference in differences if difference.low is not None]
        holds += sum(difference.low <= 0 <= difference.high for difference in tested)  # type: ignore[operator]
        intervals += len(tested)
        excluded += 0 not in result.may_be_best
        effects = analyse(as_grid(values)).effects
        wrong_effects += any(effect.is_significant for effect in effects)
        tested = [effect for effect in effects if effect.low is not None]
        holds += sum(effect.low <= 0 <= effect.high for effect in tested)  # type: ignore[operator]
        intervals += len(tested)
    limit, covered = (0.06, 0.93) if design.is_mild else (0.09, 0.90)
    found = [
        Rate("a difference is called significant, none is", str(design), wrong, repetitions, at_most=limit),
        Rate("an effect is called significant, none is", str(design), wrong_effects, repetitions, at_most=limit),
        Rate("may_be_best leaves out the best", str(design), excluded, repetitions, at_most=0.05),
    ]
    if intervals:  # not independent of each other: counted as one for each study
        share = holds / intervals
        found.append(
            Rate("a 95 % interval holds the truth", str(design), share * repetitions, repetitions, at_least=covered)
        )
    return found


def as_grid(values: Values) -> dict[tuple[int, int], dict[int, float | None]]:
    """The settings as those of two factors, the second with two levels."""
    return {divmod(i, 2): runs for i, runs in values.items()}


def true_best(design: Design, tau: float, repetitions: int) -> tuple[Rate, Counter[str]]:
    """Simulate settings whose true means scatter, and count what is said of the best.

    Args:
        tau: standard deviation of the true means, in those of a run.

    Returns:
        how often `may_be_best` lacks the best; how many statements with probability 0.85 to 0.95 are made and true.
    """
    lacks, said = 0, Counter[str]()
    for number in range(repetitions):
        rng = random(f"{design}{tau}", number)
        means = tau * rng.normal(size=design.settings)
        result = analyse(design.draw(rng, means))
        lacks += int(means.argmax()) not in result.may_be_best
        for setting, probability in result.probability_best.items():
            if 0.85 <= probability <= 0.95:
                said += Counter(best=1, best_true=int(setting == means.argmax()), best_sum=1000 * probability)
        new = means + design.deviations * rng.normal(size=design.settings)
        if len(result.ranked) > 1 and (chance := result.beats(*result.ranked[:2])) and 0.85 <= chance.value <= 0.95:
            first, second = result.ranked[:2]
            said += Counter(beats=1, beats_true=int(new[first] > new[second]))  # type: ignore[index]
    return Rate("may_be_best leaves out the best", f"{design}, means {tau}", lacks, repetitions, at_most=0.05), said


def probabilities(designs: Iterable[Design], taus: Iterable[float], repetitions: int) -> Iterator[Rate]:
    said = Counter[str]()
    for design in designs:
        for tau in taus:
            rate, counts = true_best(design, tau, repetitions)
            said += counts
            yield rate
    for statement, of_what in (("best", "is the best"), ("beats", "beats the next in a new run")):
        name = f"with probability 0.9 a setting {of_what}"
        yield Rate(name, "all of the above", said[f"{statement}_true"], said[statement], at_least=0.87, at_most=0.93)


def power(design: Design, repetitions: int) -> Rate:
    """Simulate if the difference that a study says it finds with 80 % power is found by another one of its size."""
    found = studies = 0
    for number in range(repetitions):
        rng = random(design, number)
        size = analyse(design.draw(rng)).sample_sizes[0, 1]
        if size is None or size.detectable is None or not np.isfinite(size.detectable):
            continue
        means = np.zeros(design.settings)
        means[0] = size.detectable
        difference = analyse(design.draw(rng, means)).differences[0, 1]
        studies += 1
        found += difference.p_alone is not None and difference.p_alone < size.level
    return Rate("80 % power finds the difference", str(design), found, studies, at_least=0.75, at_most=0.85)


def misses(repetitions: int) -> Rate:
    """Redraw the study of optimizers from its means and spreads: of settings over 5 points behind, which are missed?"""
    with STUDY.open() as file:
        rows = [(float(row["val/accuracy"]), float(row["val/accuracy/std"])) for row in csv.DictReader(file)]
    means, deviations = (np.array(column) for column in zip(*rows, strict=True))
    far = np.flatnonzero(means < means.max() - 0.05)
    missed = 0
    for number in range(repetitions):
        table: Array = means[:, None] + deviations[:, None] * random("optimizers", number).normal(size=(len(means), 3))
        result = analyse({i: dict(enumerate(row.tolist())) for i, row in enumerate(table)})
        missed += sum(not result.differences[result.best, int(i)].is_significant for i in far if i != result.best)
    return Rate(
        "a setting 5 points behind is missed", "optimizers_reduced", missed, repetitions * len(far), at_most=0.2
    )
