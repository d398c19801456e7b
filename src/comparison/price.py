"""What it would take to tell: seeds, runs, hours and the command, for each difference that is not significant."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from comparison.commands import commands
from comparison.effects import Effect
from comparison.findings import effect_name
from comparison.formatting import change_text, count, duration, label
from comparison.least_squares import CONFIDENCE
from comparison.power import MOST, Design, detectable
from comparison.results import Comparison
from comparison.settings import Setting

FIRST_ESTIMATE = 2  # seeds that a setting of one seed needs more, to have a spread to judge by
COMMANDS = 3  # shown below a price


@dataclass(frozen=True)
class Price:
    """
    Attributes:
        question: which settings, or which effect.
        difference: as seen; in the metric's unit, like `detectable`.
        level: of the test, two-sided, corrected for all comparisons made.
        seeds: in each setting now, on average.
        design: the test as a function of the seeds; None where one seed leaves no spread to judge by.
        detectable: what these seeds show with 80 % power; None without a spread.
        seeds_needed: for the difference seen; None where it is not known, more than 1,000, or not needed.
        runs, seconds: that these are more than now, at the time measured.
        commands: that run them; none where runs do not tell their overrides.
    """

    question: str
    difference: float
    level: float
    seeds: float
    is_significant: bool
    design: Design | None = None
    detectable: float | None = None
    seeds_needed: int | None = None
    runs: int | None = None
    seconds: float | None = None
    commands: tuple[str, ...] = ()


@lru_cache(maxsize=1)  # for the terminal, the files and the figure
def prices(comparison: Comparison) -> list[Price]:
    """Of the best setting against the next, and of every other difference and effect that is not significant."""
    if not comparison.differences:
        return []
    best, closest, *_ = comparison.valued
    of_differences = level(list(comparison.differences.values()), math.comb(len(comparison.valued), 2))
    of_effects = level(comparison.effects, len(comparison.effects))
    found: dict[frozenset[int], Price] = {}
    for other, difference in comparison.differences.items():
        if other is closest or not difference.is_significant:
            question = f"{label(best, comparison)} against {label(other, comparison)}"
            found[frozenset(difference.compared)] = price(question, difference, of_differences, comparison)
    for effect in comparison.effects:
        if not effect.is_significant and frozenset(effect.compared) not in found:
            found[frozenset(effect.compared)] = price(effect_name(effect, comparison), effect, of_effects, comparison)
    known = [one for one in found.values() if one.detectable is not None]
    return known or list(found.values())[:1]


def level(family: Sequence[Effect], comparisons: int) -> float:
    """Holm's for the next test: as many comparisons as are left once those that are significant are settled."""
    settled = sum(effect.is_significant for effect in family)
    return (1 - CONFIDENCE) / max(1, comparisons - settled)


def price(question: str, effect: Effect, level: float, comparison: Comparison) -> Price:
    change = effect.change
    of_model = list(comparison.position)
    compared = [of_model[i] for i in effect.compared]
    seeds = change.n / len(compared)
    known = Price(question, change.value, level, seeds, effect.is_significant)
    if change.is_exact:
        return replace(known, detectable=0.0)
    if change.error is None or not change.freedom:
        return replace(known, **more_seeds(comparison.valued, 1 + FIRST_ESTIMATE, comparison))
    design = Design.of(change, len(compared), level)
    known = replace(known, design=design, detectable=detectable(change.error, change.freedom, level))
    needed = design.seeds_for(change.value)
    if effect.is_significant or needed is None:
        return known
    needed = max(needed, math.floor(seeds) + 1)
    return replace(known, seeds_needed=needed, **more_seeds(compared, needed, comparison))


def more_seeds(settings: Sequence[Setting], seeds: int, comparison: Comparison) -> dict[str, Any]:
    """The runs, their seconds at the time measured, and the commands that bring every setting to so many seeds."""
    have = [set(setting.by_seed(comparison.metric)) for setting in settings]
    known = sorted(set.union(*have))
    target = [*known, *range(known[-1] + 1, known[-1] + 1 + seeds)][: max(seeds, 1)]
    missing = [set(target) - own for own in have]
    times = [setting.average("seconds") for setting in settings]
    timed = [len(lacking) * time for lacking, time in zip(missing, times, strict=True) if time is not None]
    return {
        "runs": sum(map(len, missing)),
        "seconds": sum(timed) if len(timed) == len(settings) else None,
        "commands": commands(settings, sorted(set.union(*missing))),
    }


def price_lines(comparison: Comparison, most: int) -> list[str]:
    """The price of an answer in sentences, with the command below each."""
    found = prices(comparison)
    lines = []
    for one in found[:most]:
        hidden = len(one.commands) - COMMANDS
        more = [f"# … and {count(hidden, 'more command')}"] if hidden > 0 else []
        lines += [price_line(one, comparison.metric), *(f"  {line}" for line in [*one.commands[:COMMANDS], *more])]
    if len(found) > most:
        lines.append(f"… and {len(found) - most} more in comparison.md")
    if any(one.detectable for one in found):
        lines.append("All with 80 % power, corrected for the comparisons made.")
    return lines


def price_line(one: Price, metric: str) -> str:
    """E.g. "kernel_size=5 against kernel_size=9: 0.31 points seen; 5 seeds show 0.84 points or more; …"."""

    def size(change: float) -> str:
        return change_text(abs(change), metric).lstrip("+")

    if one.detectable is None:
        return f"{FIRST_ESTIMATE} more seeds of each setting would show how much results vary{cost(one)}."
    is_possible = one.detectable < 1 or not metric.endswith("accuracy")
    shows = f"show {size(one.detectable)} or more" if is_possible else "can show no difference"
    line = f"{one.question}: {size(one.difference)} seen; {one.seeds:.3g} seeds {shows}"
    if one.is_significant or not one.detectable:
        return f"{line}."
    if one.seeds_needed is None:
        return f"{line}; more than {MOST:,} seeds would be needed."
    return f"{line}; about {one.seeds_needed} seeds would be needed{cost(one)}."


def cost(one: Price) -> str:
    if one.runs is None:
        return ""
    return f": {count(one.runs, 'more run')}" + (f", {duration(one.seconds)}" if one.seconds is not None else "")
