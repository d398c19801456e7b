"""What a factor does with the others held fixed, and whether that can be told from noise.

A cell holds the runs of one setting, which differ in nothing but the seed. To compare two levels of
a factor, cells are paired that differ in this factor alone. All runs of these cells, and no others,
enter one least-squares model, value ~ cell + seed, and the effect is the mean over the pairs of the
difference between the two cells' terms, with its t interval. The residuals are what the seeds do:
interactions between factors widen no interval, and the model needs no balance, a seed missing here
or there is adjusted for. For two cells with the same seeds this is the paired t-test; where fewer
than half of the seeds ran on both sides the seed leaves the model, and it is the t-test of two
independent samples with pooled variance. Without a second seed there is no interval.

P values are corrected for the number of comparisons by Holm's method (Holm, 1979, Scandinavian
Journal of Statistics 6, 65-70); intervals are not.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats would take a second to import

CONFIDENCE = 0.95
TIE = 1e-9  # differences below it are rounding


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference; `std`, `low` and `high`, the 95 % interval's ends, are None where one value is all."""

    value: float
    n: int
    std: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def margin(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def contains(self, value: float) -> bool | None:
        """Whether the interval contains a value; None without an interval."""
        return None if self.low is None or self.high is None else self.low <= value <= self.high


@dataclass(frozen=True)
class Cell:
    """One setting: the level of every differing key, and what each seed came to (empty: no run completed)."""

    levels: dict[str, Any]
    values: dict[int, float]


@dataclass(frozen=True)
class Effect:
    """The change of the metric when `factor` goes from `baseline` to `level`."""

    factor: str
    level: Any
    baseline: Any
    change: Estimate  # n: the runs that it rests on
    pairs: int  # of settings that differ in the factor alone
    rises: int  # pairs in which the metric goes up
    by_seed: bool  # whether seeds were matched
    changes_with: tuple[str, ...] = ()  # keys that follow from the factors and changed, too
    p: float | None = None
    p_holm: float | None = None  # corrected for all comparisons that were made along with this one

    @property
    def is_clear(self) -> bool:
        """Whether it can be told from noise at the 5 % level, all comparisons considered."""
        return self.p_holm is not None and self.p_holm < 1 - CONFIDENCE


def mean(values: Iterable[float]) -> Estimate | None:
    """The mean, the sample's standard deviation and Student's t interval of the mean; None of nothing."""
    sample = np.array(list(values), dtype=float)
    if not sample.size:
        return None
    center = float(sample.mean())
    if sample.size == 1:
        return Estimate(center, 1)
    std = float(sample.std(ddof=1))
    margin = quantile(sample.size - 1) * std / math.sqrt(sample.size)
    return Estimate(center, sample.size, std, center - margin, center + margin)


def factors(cells: Sequence[Cell]) -> list[str]:
    """The fewest keys that set all cells apart.

    A key that follows from the others is no factor of its own: the width where each depth has its
    own, momentum where the optimizer's name decides it, whatever a config group's option sets.
    """
    kept = [key for key in cells[0].levels if len({cell.levels[key] for cell in cells}) > 1] if cells else []
    levels = {key: len({cell.levels[key] for cell in cells}) for key in kept}
    for key in sorted(kept, key=lambda key: ("." not in key, key.endswith(".name"), -levels[key])):
        others = [other for other in kept if other != key]
        if others and len({tuple(cell.levels[other] for other in others) for cell in cells}) == len(cells):
            kept = others
    return kept


def effects(cells: Sequence[Cell]) -> list[Effect]:
    """Every level of every factor against the factor's baseline.

    The baseline is the level that most settings share, as in a study that changes one thing at a
    time; of equals the lowest. A level that no pair of settings singles out is left out.
    """
    valued = [cell for cell in cells if cell.values]
    keys = factors(valued)
    found = []
    for factor in keys:
        contexts: dict[tuple[Any, ...], dict[Any, Cell]] = defaultdict(dict)
        for cell in valued:
            contexts[tuple(cell.levels[key] for key in keys if key != factor)][cell.levels[factor]] = cell
        planned = Counter(cell.levels[factor] for cell in cells)
        levels = sorted({cell.levels[factor] for cell in valued}, key=order)
        baseline = max(levels, key=lambda level: planned[level])
        for level in levels:
            pairs = [(by_level[level], by_level[baseline]) for by_level in contexts.values()
                     if level in by_level and baseline in by_level]  # fmt: skip
            if level != baseline and pairs:
                found.append(difference(factor, level, baseline, pairs, keys))
    return holm(found)


def against_best(best: Cell, others: Sequence[Cell]) -> list[Effect]:
    """Each other cell's distance from the best."""
    return holm([difference("setting", i, "best", [(other, best)]) for i, other in enumerate(others)])


def difference(
    factor: str, level: Any, baseline: Any, pairs: Sequence[tuple[Cell, Cell]], keys: Sequence[str] = ()
) -> Effect:
    """The mean difference between the cells of each pair, first minus second."""
    gaps = [np.mean(list(a.values.values())) - np.mean(list(b.values.values())) for a, b in pairs]
    cells = [cell for pair in pairs for cell in pair]
    weights = np.tile([1.0, -1.0], len(pairs)) / len(pairs)
    values = np.array([value for cell in cells for value in cell.values.values()])
    of_cell = np.repeat(np.eye(len(cells)), [len(cell.values) for cell in cells], axis=0)
    seeds = [seed for cell in cells for seed in cell.values]
    distinct = sorted(set(seeds))
    of_seed = np.array([[seed == other for other in distinct] for seed in seeds], dtype=float)

    first = {seed for cell, _ in pairs for seed in cell.values}
    shared = first & {seed for _, cell in pairs for seed in cell.values}
    change, p, by_seed = None, None, False
    if 2 * len(shared) >= len(distinct) and len(distinct) > 1:
        padded = np.concatenate([weights, np.zeros(len(distinct))])
        change, p = contrast(np.hstack([of_cell, of_seed]), values, padded)
        by_seed = change is not None
    if change is None and len(values) > len(cells):
        change, p = contrast(of_cell, values, weights)
    if change is None:
        change = Estimate(float(np.mean(gaps)), len(values))
    return Effect(
        factor,
        level,
        baseline,
        change,
        pairs=len(pairs),
        rises=sum(float(gap) > TIE for gap in gaps),
        by_seed=by_seed,
        changes_with=tuple(
            key
            for key in cells[0].levels
            if keys and key not in keys and any(a.levels[key] != b.levels[key] for a, b in pairs)
        ),
        p=p,
    )


def contrast(
    design: NDArray[np.float64], values: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[Estimate | None, float | None]:
    """A linear contrast of the least-squares coefficients and the p value of its being zero.

    Args:
        design: [runs, terms], of any rank.
        values: [runs].
        weights: [terms].

    Returns:
        (None, None) where the contrast cannot be estimated or no degree of freedom is left for the
        error. No interval and no p where the residuals are all zero: then the runs show no spread
        to judge by.
    """
    inverse = np.linalg.pinv(design)
    rank = np.linalg.matrix_rank(design)
    freedom = len(values) - int(rank)
    if freedom < 1 or not np.allclose(weights @ inverse @ design, weights, atol=1e-6):
        return None, None
    coefficients = inverse @ values
    value = float(weights @ coefficients)
    residual_std = math.sqrt(float(np.sum((values - design @ coefficients) ** 2)) / freedom)
    error = residual_std * float(np.linalg.norm(weights @ inverse))
    if error < TIE * max(1.0, float(np.abs(values).max())):
        return Estimate(value, len(values)), None
    margin = quantile(freedom) * error
    p = 2 * float(stdtr(freedom, -abs(value / error)))
    return Estimate(value, len(values), residual_std, value - margin, value + margin), p


def quantile(freedom: int) -> float:
    """Student's t: the factor from a standard error to half the interval."""
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def holm(found: Sequence[Effect]) -> list[Effect]:
    """The effects with their p values corrected for each other."""
    tested = sorted((effect.p, i) for i, effect in enumerate(found) if effect.p is not None)
    corrected, highest = list(found), 0.0
    for done, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - done)))
        corrected[i] = replace(found[i], p_holm=highest)
    return corrected


def order(level: Any) -> tuple[int, float, str]:
    """Sorts the levels of a factor: nothing first, then numbers, then words."""
    if level in (None, "none", "baseline"):
        return 0, 0.0, ""
    if isinstance(level, (int, float)):
        return 1, float(level), ""
    return 2, 0.0, str(level)
