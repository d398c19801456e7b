"""Power analysis of a comparison: the differences that the seeds find, and new seeds for each open question."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from comparison.settings import Setting
from stats import Analysis, Difference, Effect, SampleSize

FIRST_ESTIMATE = 2  # seeds that a setting of one seed needs more, to have a spread to judge by
LISTED = 100  # open questions; of more, the smallest differences are no plans to make


@dataclass(frozen=True)
class Plan:
    """The plan for an open question.

    Attributes:
        settings: to run; of two, the best one first.
        difference: as seen, in the metric's unit.
        is_answered: it is significant, or too small to matter.
        effect: None: the question is that of the best setting against another.
        size: what it takes; None where no spread is known, so that a first estimate is all that can be planned.
        seeds: new ones, to be run with each of the settings: that answer the question, or the first two where too
            little is known of the spread; none where none is needed, or more than 1,000.
        seconds: that these take, at the time measured.
        curve: new seeds, and the difference that they find with 80 % power.
    """

    settings: tuple[Setting, ...]
    difference: float
    is_answered: bool
    size: SampleSize | None
    effect: Effect | None = None
    seeds: tuple[int, ...] = ()
    seconds: float | None = None
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def runs(self) -> int:
        return len(self.seeds) * len(self.settings)


def plans(
    analysis: Analysis,
    key_of: Mapping[Setting, Any],
    valued: Sequence[Setting],
    pairs_of: Mapping[Effect, Sequence[tuple[Setting, Setting]]],
) -> list[Plan]:
    """Plan for the best setting against the next, and for all other questions without a significant answer.

    Args:
        key_of: each setting's key in the analysis.
        valued: the settings with a result, the best first.
        pairs_of: the settings that each effect compares.
    """
    if len(valued) < 2:
        return []
    best, closest, *_ = valued
    found: dict[frozenset[Setting], Plan] = {}
    for other in valued[1 : LISTED + 1]:
        pair = key_of[best], key_of[other]
        difference = analysis.differences[pair]
        if other is closest or not difference.is_significant:
            found[frozenset({best, other})] = plan((best, other), difference, analysis.sample_sizes[pair], key_of)
    for effect, pairs in pairs_of.items():
        settings = tuple(dict.fromkeys(setting for pair in pairs for setting in pair))
        if not effect.is_significant and frozenset(settings) not in found:
            found[frozenset(settings)] = replace(plan(settings, effect, effect.sample_size, key_of), effect=effect)
    if known := [one for one in found.values() if one.size]:
        return known
    return [plan(tuple(valued), Difference(0.0), None, key_of)]


def plan(
    settings: tuple[Setting, ...], difference: Difference, size: SampleSize | None, every: Iterable[Setting]
) -> Plan:
    """Plan for one question; new seeds are those that none of all settings has."""
    now = Plan(settings, difference.estimate, bool(difference.is_significant or difference.is_negligible), size)
    needed = size.seeds_needed if size and size.detectable else FIRST_ESTIMATE
    if now.is_answered or not needed:
        return now
    times = [setting.average("seconds") for setting in settings]
    seconds = None if None in times else needed * sum(time for time in times if time is not None)
    curve: tuple[tuple[float, float], ...] = ()
    if size and size.seeds_needed:
        planned = np.unique(np.geomspace(2, max(10, 1.5 * needed), 30).round())
        curve = tuple((float(n), size.detectable_with(n)) for n in planned)
    used = [run.config.get("seed", 0) for setting in every for run in setting.runs]
    seeds = tuple(range(max(used) + 1, max(used) + 1 + needed))
    return replace(now, seeds=seeds, seconds=seconds, curve=curve)
