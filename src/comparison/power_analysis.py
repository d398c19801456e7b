"""Power analysis of a comparison: differences that the seeds so far find, and new seeds for each open question."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from comparison.settings import Setting
from stats import Analysis, Difference, Effect, SampleSize

FIRST_ESTIMATE = 2  # new seeds of each setting if the spread is unknown
LISTED = 100  # settings compared with the best one


@dataclass(frozen=True)
class Plan:
    """The new seeds that would answer one question.

    Attributes:
        settings: The settings to run; of two, the best one first.
        difference: The difference so far, in the metric's unit.
        is_answered: True if the difference is significant, or too small to matter.
        size: The sample size; None if the spread is unknown, so that only a first estimate can be planned.
        effect: The effect in question; None if the question is the best setting against another.
        seeds: New seeds for each setting. They answer the question, or are the first two if the spread is hardly known.
            Empty if none are needed, or more than 1,000.
        seconds: Estimated training time of these runs.
        curve: Pairs of a number of new seeds and the difference that they find with 80 % power.
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
    """Plan new seeds for the best setting against the next, and for each question without a significant answer.

    Args:
        analysis: The statistics of the comparison.
        key_of: Key of each setting in the analysis.
        valued: Settings with a result, best first.
        pairs_of: Pairs of settings that each effect compares.
    """
    if len(valued) < 2:
        return []
    best, closest, *_ = valued
    plan_of: dict[frozenset[Setting], Plan] = {}
    for other in valued[1 : LISTED + 1]:
        pair = key_of[best], key_of[other]
        difference = analysis.differences[pair]
        if other is closest or not difference.is_significant:
            plan_of[frozenset({best, other})] = plan((best, other), difference, analysis.sample_sizes[pair], key_of)
    for effect, pairs in pairs_of.items():
        settings = tuple(dict.fromkeys(setting for pair in pairs for setting in pair))
        if not effect.is_significant and frozenset(settings) not in plan_of:
            plan_of[frozenset(settings)] = replace(plan(settings, effect, effect.sample_size, key_of), effect=effect)
    if sized := [plan for plan in plan_of.values() if plan.size]:
        return sized
    return [plan(tuple(valued), Difference(0.0), None, key_of)]


def plan(
    settings: tuple[Setting, ...], difference: Difference, size: SampleSize | None, every: Iterable[Setting]
) -> Plan:
    """Plan for one question, with seeds that no setting has run."""
    current = Plan(settings, difference.estimate, bool(difference.is_significant or difference.is_negligible), size)
    needed = size.seeds_needed if size and size.detectable else FIRST_ESTIMATE
    if current.is_answered or not needed:
        return current
    times = [setting.average("seconds") for setting in settings]
    seconds = None if None in times else needed * sum(time for time in times if time is not None)
    curve: tuple[tuple[float, float], ...] = ()
    if size and size.seeds_needed:
        planned = np.unique(np.geomspace(2, max(10, 1.5 * needed), 30).round())
        curve = tuple((float(n), size.detectable_with(n)) for n in planned)
    first = 1 + max(run.seed for setting in every for run in setting.runs)
    seeds = tuple(range(first, first + needed))
    return replace(current, seeds=seeds, seconds=seconds, curve=curve)
