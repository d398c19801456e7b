"""What a comparison says, in sentences, and how numbers and settings are written in them."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from comparison.effects import TIE, Effect, Estimate
from comparison.results import ACCURACIES, COSTS, LOWER_IS_BETTER, Comparison, Reference, Row

OUTCOMES = {"interrupted": "unfinished"}  # it may still be going
SEEDS = "seed=0,1,2,3,4"
MOST = 20  # references listed


def result(comparison: Comparison) -> list[str]:
    """Which setting won, by how much, and how it stands beside the reference."""
    if not comparison.valued:
        return ["No run has completed yet: there is nothing to compare."] if comparison.runs else []
    metric, (best, *others) = comparison.metric, comparison.valued
    other_accuracies = [
        f"{number_text(estimate, name)} {name}"
        for name in ACCURACIES
        if name != metric and (estimate := best.estimate(name))
    ]
    lead = f"{number_text(best.estimate(metric), metric)} {metric}"
    lead += f" ({', '.join(other_accuracies)})" if other_accuracies else ""
    if not others:
        lines = [f"{label(best, comparison)}: {lead}."]
    else:
        equals = [row for row, gap in zip(others, comparison.gaps, strict=True) if abs(gap.change.value) < TIE]
        tie = f" Just as good: {listing(equals, comparison)}." if equals else ""
        lines = [f"Best: {label(best, comparison)} with {lead}.{tie}"]
        if any(gap.p_holm is not None for gap in comparison.gaps):
            close = [row for row, gap in zip(others, comparison.gaps, strict=True) if not gap.is_clear]
            worse = "higher" if metric.endswith(LOWER_IS_BETTER) else "lower"
            if not close:
                lines.append(f"That is clear of noise: all {len(others)} others are {worse}.")
            elif len(close) == len(others):
                lines.append(f"None of the {len(others)} others can be told from it.")
            else:
                lines.append(
                    f"{len(close)} of the {len(others)} others cannot be told from it: {listing(close, comparison)}."
                )
    references = [reference_line(row, row.reference, comparison) for row in comparison.rows if row.reference]
    return [*lines, *several(references, MOST)]


def reference_line(row: Row, reference: Reference, comparison: Comparison) -> str:
    contained = reference.ours.contains(reference.value)
    verdict = {True: "within our interval", False: "outside our interval", None: "one seed, no interval"}[contained]
    ours, theirs = number_text(reference.ours, reference.metric), figure_text(reference.value, reference.metric)
    gap = change_text(reference.ours.value - reference.value, reference.metric)
    return f"{label(row, comparison)}: {ours} {reference.metric}, the reference {theirs}: {gap}, {verdict}."


def effect_lines(comparison: Comparison) -> list[str]:
    return [effect_line(effect, comparison) for effect in comparison.effects]


def effect_line(effect: Effect, comparison: Comparison) -> str:
    """One effect in plain words."""
    change, metric = effect.change, comparison.metric
    text = f"{effect_name(effect, comparison)}: {change_text(change.value, metric)}"
    if change.low is not None and change.high is not None:
        text += f" [{change_text(change.low, metric, '')}, {change_text(change.high, metric, '')}]"
    if effect.pairs > 1:
        text += f", higher in {effect.rises} of {effect.pairs} pairs of settings"
    return f"{text}; {verdict(effect, comparison)}."


def effect_name(effect: Effect, comparison: Comparison, width: int | None = None) -> str:
    """E.g. "kernel_size 9 instead of 5"."""
    level, baseline = level_text(effect.level, width), level_text(effect.baseline, width)
    name = f"{comparison.short(effect.factor)} {level} instead of {baseline}"
    if "." not in effect.factor or effect.factor.endswith(".name"):  # what an option sets goes without saying
        return name
    with_it = " and ".join(comparison.short(key) for key in effect.changes_with[:3])
    more = f" and {len(effect.changes_with) - 3} more" if len(effect.changes_with) > 3 else ""
    return f"{name} (together with {with_it}{more})" if with_it else name


def verdict(effect: Effect, comparison: Comparison) -> str:
    if effect.p_holm is None:
        if effect.change.n > 2 * effect.pairs:
            return "all seeds agree to the last digit, which leaves no spread to judge by"
        return "one seed cannot tell this from noise"
    tests = sum(other.p_holm is not None for other in comparison.effects)
    among = f", {tests} comparisons considered" if tests > 1 else ""
    if effect.is_clear:
        return f"clear of noise ({p_text(effect.p_holm)}{among})"
    if effect.change.contains(0) is False:
        return (
            f"not told from noise: alone it would count, but this is one of {tests} comparisons "
            f"({p_text(effect.p_holm)})"
        )
    return f"cannot be told from noise ({p_text(effect.p_holm)}{among})"


def caveats(comparison: Comparison) -> list[str]:
    """What the numbers cannot say."""
    rows, metric = comparison.valued, comparison.metric
    lines = []
    single = [row for row in rows if len(row.by_seed(metric)) == 1]
    if rows and len(single) == len(rows):
        lines.append(
            "How sure is this? Not at all: with one seed a difference cannot be told from chance. "
            f"To find out, run these settings with {SEEDS}."
        )
    elif single:
        lines.append(f"One seed only, so no interval of their own: {listing(single, comparison)}.")
    if len(rows) > 1 and not comparison.effects:
        lines.append("No setting differs from a baseline in one factor alone, so no factor's own effect can be told.")
    part = metric.partition("/")[0]
    images = next((row.completed[0].summary.get("images", {}).get(part) for row in rows), None)
    if metric in ACCURACIES and images and images < 2000:
        lines.append(f"{metric} rests on {images} images: a single one is {100 / images:.2f} points.")
    empty = [row for row in comparison.rows if row.completed and row not in rows]
    if empty and rows:
        lines.append(f"Completed without {metric}: {listing(empty, comparison)}.")
    return lines


def method(comparison: Comparison) -> list[str]:
    """How the numbers came about, for the report."""
    lines = []
    if comparison.metric.startswith("val/"):
        lines.append(f"{comparison.metric} is the best epoch's, which flatters; test/accuracy was looked at once.")
    if any(effect.p_holm is not None for effect in [*comparison.effects, *comparison.gaps]):
        lines.append(
            "Intervals are 95 %, Student's t, over seeds: they do not cover the choice of the images. "
            "An effect is the mean difference between settings that differ in nothing else, by least squares over "
            "their runs with the seeds as blocks where both sides share them. "
            "What is called clear has p < 0.05 after Holm's correction: an effect's for all effects listed; a distance "
            "from the best setting, which is picked from the same runs, for all pairs of settings. "
            "Intervals are not corrected."
        )
    seconds = sum(run.figure("seconds") or 0 for run in comparison.runs)
    if seconds:
        devices = sorted({str(run.summary["device"]) for run in comparison.runs if run.summary.get("device")})
        lines.append(f"Training took {duration(seconds)} in all, on {', '.join(devices) or 'an unknown device'}.")
    if source := next((run.config["study.source"] for run in comparison.runs if run.config.get("study.source")), None):
        lines.append(f"The reference values are from {source}.")
    return lines


def differed(comparison: Comparison) -> list[str]:
    found = []
    for key in comparison.keys:
        levels = [level_text(level) for level in comparison.levels(key)]
        listed = ", ".join(levels) if len(levels) <= 12 else f"{len(levels)} values from {levels[0]} to {levels[-1]}"
        found.append(f"`{key}`: {listed}" + ("" if key in comparison.factors else " (follows from the others)"))
    seeds = sorted({run.config["seed"] for run in comparison.runs if "seed" in run.config})
    if len(seeds) > 1:
        found.append(f"`seed`: {', '.join(map(str, seeds)) if len(seeds) <= 12 else count(len(seeds), 'value')}")
    return found


def not_completed_lines(comparison: Comparison) -> list[str]:
    return [
        f"{OUTCOMES.get(run.status, run.status)}: {run.folder.name}" + (f" ({run.reason})" if run.reason else "")
        for run in comparison.not_completed
    ]


# Settings and numbers.


def label(row: Row, comparison: Comparison, width: int | None = None) -> str:
    """What sets a row apart, e.g. "kernel_size=9 depth=8"."""
    named = [f"{comparison.short(key)}={level_text(row.levels[key], width)}" for key in comparison.factors]
    name = str(row.runs[0].summary.get("name") or row.runs[0].folder.name)
    return " ".join(named) or " ".join(word for word in name.split() if not word.startswith("seed=")) or "baseline"


def listing(rows: Sequence[Row], comparison: Comparison) -> str:
    named = ", ".join(label(row, comparison) for row in rows[:3])
    return f"{named} and {len(rows) - 3} more" if len(rows) > 3 else named


def several(lines: list[str], limit: int) -> list[str]:
    return lines if len(lines) <= limit else [*lines[:limit], f"… and {len(lines) - limit} more"]


def lost(row: Row) -> str:
    counts = Counter(OUTCOMES.get(run.status, run.status) for run in row.runs if run.status != "completed")
    return ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))


def number_text(estimate: Estimate | None, name: str, unit: str = " %") -> str:
    """A mean with its interval's half width: "98.61 ± 0.43"; costs without."""
    if estimate is None:
        return ""
    if name in COSTS or estimate.margin is None:
        return figure_text(estimate.value, name, unit)
    return f"{figure_text(estimate.value, name, '')} ± {figure_text(estimate.margin, name, unit)}"


def figure_text(number: float, name: str, unit: str = " %") -> str:
    if name.endswith("accuracy"):
        return f"{100 * number:.2f}{unit}"
    if name in ("seconds", "images_per_second"):
        return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"
    if name in ("parameters", "macs"):
        return si(number)
    return f"{si(number)}B" if name == "peak_memory" else f"{number:.4g}"


def change_text(change: float, name: str, unit: str = " points") -> str:
    if not name.endswith("accuracy"):
        return f"{change:+.4g}"
    return f"{round(100 * change, 2) + 0.0:+.2f}{unit}"  # + 0.0: no -0.00


def si(number: float) -> str:
    """Three digits and a prefix: 78.2 k, 4.76 M."""
    rounded = float(f"{number:.3g}")  # 999.6 is 1.00 k
    power = min(4, int(math.log10(rounded) // 3)) if rounded >= 1 else 0
    digits = f"{number / 1000**power:#.3g}" if power else f"{number:.3g}"
    return f"{digits.rstrip('.')} {' kMGT'[power]}".rstrip()


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def p_text(p: float) -> str:
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def level_text(level: Any, width: int | None = None) -> str:
    """A config value as YAML writes it."""
    if level is None or isinstance(level, bool):
        return {None: "null", True: "true", False: "false"}[level]
    if isinstance(level, tuple):
        level = f"[{', '.join(level_text(part) for part in level)}]"
    return shorten(f"{level:g}" if isinstance(level, float) else str(level), width)


def shorten(text: str, width: int | None) -> str:
    """Leave out the middle: names tend to differ at their ends."""
    if width is None or len(text) <= width:
        return text
    return f"{text[: width // 2]}…{text[len(text) - (width - width // 2 - 1) :]}"


def count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
