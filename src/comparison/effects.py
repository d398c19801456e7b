"""What a factor does with the others held fixed, and how far each setting is from the best; is it significant?

To compare two levels of a factor, settings are paired that differ in this factor alone; the effect is
the mean over the pairs of the difference between their adjusted means (comparison/least_squares.py).

P values are corrected for the number of comparisons by Holm's method (Holm, 1979, Scandinavian
Journal of Statistics 6, 65-70), those against the best setting for all pairs of settings, as the
best is picked from the same runs; intervals are not corrected.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comparison.least_squares import CONFIDENCE, TIE, Estimate, SeedModel

Levels = Mapping[str, Any]  # of a setting: key → level
Pair = tuple[int, int]  # the model's settings with the level and with the baseline


@dataclass(frozen=True)
class Effect:
    """The change of the metric when `factor` goes from `baseline` to `level`."""

    factor: str
    level: Any
    baseline: Any
    change: Estimate
    paired: tuple[Pair, ...]  # settings that differ in the factor alone
    n_higher: int  # pairs in which the metric goes up
    changes_with: tuple[str, ...] = ()  # keys that follow from the factors and changed, too
    p_holm: float | None = None  # corrected for all comparisons that were made along with this one

    @property
    def pairs(self) -> int:
        return len(self.paired)

    @property
    def compared(self) -> tuple[int, ...]:
        """The model's settings that are in a pair."""
        return tuple(dict.fromkeys(i for pair in self.paired for i in pair))

    @property
    def is_significant(self) -> bool:
        """At the 5 % level, all comparisons considered."""
        return self.p_holm is not None and self.p_holm < 1 - CONFIDENCE


def effects(
    model: SeedModel, settings: Sequence[Levels], factors: Sequence[str], planned: Sequence[Levels]
) -> list[Effect]:
    """Every level of every factor against the factor's baseline.

    The baseline is the level that most settings share, as in a study that changes one thing at a
    time; of equals the lowest. A level that no pair of settings singles out is left out.

    Args:
        settings: the levels of the model's settings, in its order.
        factors: the keys whose effects are asked for.
        planned: the levels of these and of the settings without a result.
    """
    found = []
    for factor in factors if settings else ():
        counts = Counter(levels[factor] for own in planned for levels in stands_for(own, planned))
        contexts: dict[tuple[Any, ...], dict[Any, int]] = defaultdict(dict)
        for i, own in enumerate(settings):
            for levels in stands_for(own, planned):
                contexts[tuple(levels[key] for key in factors if key != factor)][levels[factor]] = i
        reached = sorted({level for by_level in contexts.values() for level in by_level}, key=order)
        baseline = max(reached, key=lambda level: counts[level])
        pairs = defaultdict(list)
        for by_level in contexts.values():
            for level, i in by_level.items():
                if i != by_level.get(baseline, i):
                    pairs[level].append((i, by_level[baseline]))
        for level in (level for level in reached if pairs[level]):
            others = [key for key in settings[0] if key not in factors]
            changed = tuple(key for key in others if any(settings[a][key] != settings[b][key] for a, b in pairs[level]))
            found.append(replace(difference(factor, level, baseline, pairs[level], model), changes_with=changed))
    return holm(found)


def stands_for(levels: Levels, planned: Sequence[Levels]) -> Iterator[Levels]:
    """Without dropout the place makes no difference: the setting is the rate of 0 at every place."""
    if levels.get("dropout") == "none" and levels.get("dropout.rate") == 0:
        places = {other["dropout"] for other in planned} - {"none"} or {"none"}
        yield from ({**levels, "dropout": place} for place in places)
    else:
        yield levels


def differences_from_best(model: SeedModel, ranked: Sequence[int]) -> list[Effect]:
    """Of every other setting, in their order.

    Which one is best is known from the same runs: as if all pairs of settings had been compared, and
    the extreme ones picked. So the p values are corrected for all pairs.

    Args:
        ranked: the model's settings, the best first.
    """
    if not ranked:
        return []
    best, *others = ranked
    found = [difference("setting", i, best, [(i, best)], model) for i in others]
    return holm(found, math.comb(len(ranked), 2))


def difference(factor: str, level: Any, baseline: Any, pairs: Sequence[Pair], model: SeedModel) -> Effect:
    """The mean difference between the settings of each pair, first minus second."""
    higher = sum(bool(model.means[first] - model.means[second] > TIE) for first, second in pairs)
    change = model.difference(contrast(pairs, len(model.values)))
    return Effect(factor, level, baseline, change, tuple(pairs), higher)


def contrast(pairs: Sequence[Pair], settings: int) -> NDArray[np.float64]:
    """[settings]: the weights of their means in the mean difference between the settings of each pair."""
    weights = np.zeros(settings)
    for first, second in pairs:
        weights[first] += 1 / len(pairs)
        weights[second] -= 1 / len(pairs)
    return weights


def holm(found: Sequence[Effect], comparisons: int | None = None) -> list[Effect]:
    """The effects with their p values corrected for each other, or for so many comparisons that they are picked from.

    Of such a choice this never rejects more than Holm's method does of all comparisons: an effect's
    place among those found is at most its place among all.
    """
    tested = sorted((effect.change.p, i) for i, effect in enumerate(found) if effect.change.p is not None)
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
