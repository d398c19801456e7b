"""Effects of factors: contrasts of settings that differ in one factor only."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from stats.estimates import Setting

EVERY = "every level"  # the level of a setting for which a factor makes no difference, such as the place of no dropout

Levels = Mapping[Any, Any]  # factor → level, of one setting


@dataclass(frozen=True)
class Change:
    """A factor's level instead of its baseline; `pairs` are indices of settings that differ in this factor only."""

    factor: Any
    level: Any
    baseline: Any
    pairs: tuple[tuple[int, int], ...]


def levels_of(setting: Setting) -> Levels | None:
    """Read the levels of a setting that is a tuple of (factor, level) pairs, or of levels; None for other settings."""
    if not isinstance(setting, tuple):
        return None
    if setting and all(isinstance(part, tuple) and len(part) == 2 for part in setting):
        return dict(setting)
    return dict(enumerate(setting))


def changes(planned: Sequence[Levels], has_result: Sequence[int]) -> list[Change]:
    """List every level of every factor, compared with the factor's baseline.

    The baselines are the levels of the most central setting, e.g. the center of a study that changes one factor at a
    time; see centrality(). If settings are equally central, as in a full grid, the lowest level is the baseline. So one
    more setting seldom moves it. A level without a pair of settings is left out.

    Args:
        planned: Levels of all settings, including those without a result.
        has_result: Indices of the settings with a result. Pairs are made of these, and refer to their order.
    """
    effects = []
    factors = list(planned[0]) if planned else []
    every = {factor: {levels[factor] for levels in planned} - {EVERY} or {"none"} for factor in factors}
    central = centrality({tuple(full.values()) for levels in planned for full in expanded(levels, every)})
    for i, factor in enumerate(factors):
        contexts: dict[tuple[Any, ...], dict[Any, int]] = defaultdict(dict)
        for place, of_setting in enumerate(has_result):
            for levels in expanded(planned[of_setting], every):
                setting = tuple(levels.values())
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
                effects.append(Change(factor, level, baseline, tuple(pairs)))
    return effects


def centrality(settings: Collection[tuple[Any, ...]]) -> dict[tuple[Any, ...], float]:
    """Count, for each setting, the factors in which another setting differs from it and in no other factor.

    The count is infinite for a center, which differs in one factor only from two thirds of all settings, and from more
    than any other setting does. So further settings that combine changes do not move the baseline.
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
    """Yield the levels of a setting, with every level in place of EVERY."""
    free = [factor for factor, level in levels.items() if level == EVERY]
    if not free:
        yield levels
        return
    for level in sorted(every[free[0]], key=order):
        yield from expanded({**levels, free[0]: level}, every)


def order(level: Any) -> tuple[int, float, str]:
    """Return the key that sorts levels: none first, then numbers, then text."""
    if level in (None, "none", "baseline"):
        return 0, 0.0, ""
    if isinstance(level, (int, float)):
        return 1, float(level), ""
    return 2, 0.0, str(level)
