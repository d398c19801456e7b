"""Effects of factors with the others held fixed, as contrasts of settings that differ in one factor only."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from stats.estimates import Setting

EVERY = "every level"  # the level of a setting for which a factor makes no difference, such as the place of no dropout

Levels = Mapping[Any, Any]  # of a setting: factor → level


@dataclass(frozen=True)
class Change:
    """A level instead of its factor's baseline; `pairs` are the indices of settings that differ in that only."""

    factor: Any
    level: Any
    baseline: Any
    pairs: tuple[tuple[int, int], ...]


def levels_of(setting: Setting) -> Levels | None:
    """Read the levels of a setting that is a tuple of (factor, level) pairs, or of levels; None of any other."""
    if not isinstance(setting, tuple):
        return None
    if setting and all(isinstance(part, tuple) and len(part) == 2 for part in setting):
        return dict(setting)
    return dict(enumerate(setting))


def changes(planned: Sequence[Levels], has_result: Sequence[int]) -> list[Change]:
    """List every level of every factor, compared with the factor's baseline.

    The baseline is the level of the setting that differs from others in one factor alone for the most factors, as the
    center of a study that changes one thing at a time does (see centrality). Of equals, as in a full grid, it is the
    lowest. So a setting added to either seldom moves it. A level that no pair of settings singles out is left out.

    Args:
        planned: the levels of all settings, of those without a result, too.
        has_result: the places of the others; pairs are made of these, and counted in their order.
    """
    found = []
    factors = list(planned[0]) if planned else []
    every = {factor: {own[factor] for own in planned} - {EVERY} or {"none"} for factor in factors}
    central = centrality({tuple(own.values()) for levels in planned for own in expanded(levels, every)})
    for i, factor in enumerate(factors):
        contexts: dict[tuple[Any, ...], dict[Any, int]] = defaultdict(dict)
        for place, of_setting in enumerate(has_result):
            for own in expanded(planned[of_setting], every):
                setting = tuple(own.values())
                contexts[without(setting, i)][setting[i]] = place
        reached = sorted({level for by_level in contexts.values() for level in by_level}, key=order)
        if not reached:
            continue
        most = {setting[i]: n for setting, n in sorted(central.items(), key=itemgetter(1))}
        baseline = max(reached, key=lambda level: most[level])
        for level in reached:
            pairs = [
                (by_level[level], by_level[baseline])
                for by_level in contexts.values()
                if level in by_level and baseline in by_level and by_level[level] != by_level[baseline]
            ]
            if pairs:
                found.append(Change(factor, level, baseline, tuple(pairs)))
    return found


def centrality(settings: Collection[tuple[Any, ...]]) -> dict[tuple[Any, ...], float]:
    """Count for each setting the factors in which alone it differs from another setting; infinity for a center.

    A center differs in one factor alone from two thirds of all settings, and no other setting from as many. Further
    settings that combine changes do not move it.
    """
    factors, neighbors = Counter[tuple[Any, ...]](), Counter[tuple[Any, ...]]()
    for i in range(len(next(iter(settings), ()))):
        alike = Counter(without(setting, i) for setting in settings)
        neighbors.update({setting: alike[without(setting, i)] - 1 for setting in settings})
        factors.update({setting: alike[without(setting, i)] > 1 for setting in settings})
    (center, most), *others = neighbors.most_common(2) or [((), 0)]
    is_center = bool(others) and most > others[0][1] and 3 * most >= 2 * (len(settings) - 1)
    return {setting: math.inf if is_center and setting == center else factors[setting] for setting in settings}


def without(levels: tuple[Any, ...], i: int) -> tuple[Any, ...]:
    return levels[:i] + levels[i + 1 :]


def expanded(levels: Levels, every: Mapping[Any, set[Any]]) -> Iterator[Levels]:
    """Yield the levels of a setting, with each level of a factor that makes no difference for it."""
    free = [factor for factor, level in levels.items() if level == EVERY]
    if not free:
        yield levels
        return
    for level in sorted(every[free[0]], key=order):
        yield from expanded({**levels, free[0]: level}, every)


def order(level: Any) -> tuple[int, float, str]:
    """Sort the levels of a factor: nothing first, then numbers, then words."""
    if level in (None, "none", "baseline"):
        return 0, 0.0, ""
    if isinstance(level, (int, float)):
        return 1, float(level), ""
    return 2, 0.0, str(level)
