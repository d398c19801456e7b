"""Simulated comparisons with known truth: how often the results of `stats.analyse` are true."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from designs import Array, Design, Values
from rates import Rate, generator

from stats import Difference, analyse

STUDY = Path(__file__).parents[1] / "optimizers_reduced" / "comparison.csv"
TAUS = (0.5, 1.0, 2.0)  # spreads of true means, in standard deviations of a run
SURE = (0.85, 0.95)  # probabilities that count as 0.9


def errors(design: Design, numbers: Iterable[int]) -> list[Rate]:
    """Simulate settings that are all equal: every significant difference is wrong, and every interval should hold 0."""
    wrong = wrong_effects = excluded = studies = 0
    covered = covered_effects = 0.0
    for number in numbers:
        result = analyse(as_grid(design.draw(generator(design, number))))
        differences, effects = list(result.differences.values()), result.effects
        studies += 1
        wrong += any(difference.is_significant for difference in differences)
        wrong_effects += any(effect.is_significant for effect in effects)
        excluded += (0, 0) not in result.may_be_best
        covered += share_covered(differences)
        covered_effects += share_covered(effects)
    limit, least = claims(design)
    name = str(design)
    return [
        Rate("a difference is called significant, none is", name, wrong, studies, at_most=limit),
        Rate("an effect is called significant, none is", name, wrong_effects, studies, at_most=limit),
        Rate("may_be_best leaves out the best", name, excluded, studies, at_most=0.05),
        Rate("a 95 % interval of a difference holds the truth", name, covered, studies, at_least=least),
        Rate("a 95 % interval of an effect holds the truth", name, covered_effects, studies, at_least=least),
    ]


def interactions(design: Design, numbers: Iterable[int]) -> list[Rate]:
    """Simulate settings of two factors that are all equal: no effect depends on the other factor."""
    wrong, covered, studies = 0, 0.0, 0
    for number in numbers:
        result = analyse(as_grid(design.draw(generator(f"{design}, interactions", number))))
        differences = [interaction.difference for interaction in result.interactions]
        studies += 1
        wrong += any(difference.is_significant for difference in differences)
        covered += share_covered(differences)
    limit, least = claims(design)
    return [
        Rate("an interaction is called significant, none is", str(design), wrong, studies, at_most=limit),
        Rate("a 95 % interval of an interaction holds the truth", str(design), covered, studies, at_least=least),
    ]


def claims(design: Design) -> tuple[float, float]:
    """Return the highest rate of false findings and the lowest coverage that are claimed."""
    return (0.06, 0.93) if design.is_mild else (0.09, 0.90)


def as_grid(values: Values) -> dict[tuple[int, int], dict[int, float | None]]:
    """Convert the settings to those of two factors, the second with two levels."""
    return {divmod(i, 2): runs for i, runs in values.items()}


def share_covered(differences: Sequence[Difference]) -> float:
    """Compute the share of a study's intervals that hold 0; they are not independent, so a study is one case."""
    tested = [(d.low, d.high) for d in differences if d.low is not None and d.high is not None]
    return float(np.mean([low <= 0 <= high for low, high in tested])) if tested else 1.0


def probabilities(designs: Iterable[Design], numbers: Sequence[int]) -> list[Rate]:
    """Count how many statements with a probability of about 0.9 are true, over designs and spreads of true means."""
    rates, statements = [], Counter[str]()
    for design in designs:
        for tau in TAUS:
            rate, counts = true_best(design, tau, numbers)
            rates.append(rate)
            statements += counts
    for statement, of_what in (("best", "is the best"), ("beats", "beats the next in a new run")):
        name = f"with probability 0.9 a setting {of_what}"
        true, of = statements[f"{statement}_true"], statements[statement]
        rates.append(Rate(name, "all of the above", true, of, at_least=0.87, at_most=0.93))
    return rates


def true_best(design: Design, tau: float, numbers: Iterable[int]) -> tuple[Rate, Counter[str]]:
    """Simulate settings whose true means differ, and count the statements about the best one.

    Args:
        tau: Standard deviation of the true means, in standard deviations of a run.

    Returns:
        The rate at which `may_be_best` lacks the best; the number of statements with a probability of 0.85 to 0.95,
        and of the true ones among them.
    """
    name, statements = f"{design}, means {tau:g}", Counter[str]()
    lacks = studies = 0
    for number in numbers:
        rng = generator(name, number)
        means = tau * rng.normal(size=design.settings)
        result = analyse(design.draw(rng, means))
        studies += 1
        lacks += int(means.argmax()) not in result.may_be_best
        for setting, probability in result.probability_best.items():
            if is_sure(probability):
                statements += Counter(best=1, best_true=int(setting == means.argmax()))
        new = means + design.deviations * rng.normal(size=design.settings)
        if len(result.ranked) > 1 and (chance := result.beats(*result.ranked[:2])) and is_sure(chance.value):
            first, second = result.ranked[:2]
            statements += Counter(beats=1, beats_true=int(new[first] > new[second]))
    return Rate("may_be_best leaves out the best", name, lacks, studies, at_most=0.05), statements


def is_sure(probability: float) -> bool:
    return SURE[0] <= probability <= SURE[1]


def power(design: Design, numbers: Iterable[int]) -> list[Rate]:
    """Count how often a second study finds the difference that the first one says it finds with 80 % power."""
    significant = studies = 0
    for number in numbers:
        rng = generator(f"{design}, power", number)
        size = analyse(design.draw(rng)).sample_sizes[0, 1]
        if size is None or size.detectable is None or not np.isfinite(size.detectable):
            continue
        means = np.zeros(design.settings)
        means[0] = size.detectable
        difference = analyse(design.draw(rng, means)).differences[0, 1]
        studies += 1
        significant += difference.p_alone is not None and difference.p_alone < size.level
    return [Rate("80 % power finds the difference", str(design), significant, studies, at_least=0.75, at_most=0.85)]


def misses(numbers: Iterable[int]) -> list[Rate]:
    """Redraw the study of optimizers, and count settings over 5 points behind whose difference is missed."""
    with STUDY.open() as file:
        rows = [(float(row["val/accuracy"]), float(row["val/accuracy/std"])) for row in csv.DictReader(file)]
    means, deviations = (np.array(column) for column in zip(*rows, strict=True))
    far = np.flatnonzero(means < means.max() - 0.05).tolist()
    missed = studies = 0
    for number in numbers:
        noise = generator("optimizers_reduced", number).normal(size=(len(means), 3))
        table: Array = means[:, None] + deviations[:, None] * noise
        result = analyse({i: dict(enumerate(row)) for i, row in enumerate(table.tolist())})
        missed += sum(i != result.best and not result.differences[result.best, i].is_significant for i in far)
        studies += 1
    share = missed / len(far)  # those of a study are not independent, so that it counts as one case
    return [Rate("a setting 5 points behind is missed", "optimizers_reduced", share, studies, at_most=0.2)]
