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
Journal of Statistics 6, 65-70), those against the best setting for all pairs of settings, as the
best is picked from the same runs; intervals are not corrected.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
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


def factors(cells: Sequence[Cell], given: Collection[str] = ()) -> list[str]:
    """The keys that set the cells apart, without those that follow from others.

    The width where each depth has its own, momentum where the optimizer's name decides it, whatever
    a config group's option sets. Where the fewest keys that set all cells apart are crossed, as in a
    grid, they are the factors. Elsewhere, as in a search, these can be a single key with a value of
    its own in each run; from that nothing follows, and a key needs a reason to be left out.

    Args:
        cells: the settings.
        given: keys that were set by their own name, not by a config group's option.
    """
    kept = [key for key in cells[0].levels if len({cell.levels[key] for cell in cells}) > 1] if cells else []
    levels = {key: len({cell.levels[key] for cell in cells}) for key in kept}
    fewest, justified = kept, kept
    for key in sorted(kept, key=lambda key: ("." not in key, key.endswith(".name"), -levels[key])):
        may_follow = key not in given and comes_again(cells, key)
        others = [other for other in fewest if other != key]
        if are_apart(cells, others) and (may_follow or follows(key, others, cells, key in given)):
            fewest = others
        others = [other for other in justified if other != key]
        if are_apart(cells, others) and follows(key, others, cells, key in given):
            justified = others
    return fewest if are_crossed(cells, fewest) else justified


def are_apart(cells: Sequence[Cell], keys: Sequence[str]) -> bool:
    return bool(keys) and len({tuple(cell.levels[key] for key in keys) for cell in cells}) == len(cells)


def are_crossed(cells: Sequence[Cell], keys: Sequence[str]) -> bool:
    """Whether more than half of the keys' combinations are there, and their levels come again."""
    combinations = math.prod(len({cell.levels[key] for cell in cells}) for key in keys)
    return len(keys) > 1 and 2 * len(cells) > combinations and all(comes_again(cells, key) for key in keys)


def comes_again(cells: Sequence[Cell], key: str) -> bool:
    """Whether most cells share their level with another cell."""
    counts = Counter(cell.levels[key] for cell in cells)
    return 2 * sum(n for n in counts.values() if n > 1) > len(cells)


def follows(key: str, others: Sequence[str], cells: Sequence[Cell], is_given: bool) -> bool:
    """Whether another key decides this one, by the config's structure or as often as it came to the test."""
    section = key.rpartition(".")[0]
    if key == "dropout.rate":  # it is the rate at the places that dropout has
        return any(other.startswith("dropout.") for other in others)
    for other in others:
        pairs = {(cell.levels[other], cell.levels[key]) for cell in cells}
        is_decided = len(pairs) == len({level for level, _ in pairs})
        is_option = not is_given and ("." not in other or other == f"{section}.name")
        if is_decided and (is_option or comes_again(cells, other) or all(a == b for a, b in pairs)):
            return True
    return False


def effects(cells: Sequence[Cell], given: Collection[str] = ()) -> list[Effect]:
    """Every level of every factor against the factor's baseline.

    The baseline is the level that most settings share, as in a study that changes one thing at a
    time; of equals the lowest. A level that no pair of settings singles out is left out.
    """
    valued = [cell for cell in cells if cell.values]
    keys = factors(valued, given)
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
    """Each other cell's distance from the best.

    Which one is best is known from the same runs: as if all pairs of cells had been compared, and
    the extreme ones picked. So the p values are corrected for all pairs; those of cells with one
    value each cannot be tested and do not count.
    """
    single = sum(len(cell.values) < 2 for cell in (best, *others))
    found = [difference("setting", i, "best", [(other, best)]) for i, other in enumerate(others)]
    return holm(found, math.comb(1 + len(others), 2) - math.comb(single, 2))


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


def holm(found: Sequence[Effect], comparisons: int | None = None) -> list[Effect]:
    """The effects with their p values corrected for each other, or for so many comparisons that they are picked from.

    Of such a choice this never rejects more than Holm's method does of all comparisons: an effect's
    place among those found is at most its place among all.
    """
    tested = sorted((effect.p, i) for i, effect in enumerate(found) if effect.p is not None)
    corrected, highest = list(found), 0.0
    for done, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, p * ((comparisons or len(tested)) - done)))
        corrected[i] = replace(found[i], p_holm=highest)
    return corrected


def order(level: Any) -> tuple[int, float, str]:
    """Sorts the levels of a factor: nothing first, then numbers, then words."""
    if level in (None, "none", "baseline"):
        return 0, 0.0, ""
    if isinstance(level, (int, float)):
        return 1, float(level), ""
    return 2, 0.0, str(level)
