"""What a comparison says, in sentences."""

from comparison.effects import Effect
from comparison.formatting import (
    change_text,
    count,
    duration,
    figure_text,
    label,
    level_text,
    listing,
    number_text,
    p_text,
    several,
)
from comparison.least_squares import TIE
from comparison.results import ACCURACIES, Comparison
from comparison.settings import Reference, Setting
from config.schema import GROUPS

SEEDS = "seed=0,1,2,3,4"
MOST = 20  # references listed


def result(comparison: Comparison) -> list[str]:
    """Which setting is the best, whether significantly, and how it stands beside the reference."""
    if not comparison.valued:
        return ["No run has completed yet: there is nothing to compare."] if comparison.runs else []
    metric, best = comparison.metric, comparison.valued[0]
    other_accuracies = [
        f"{number_text(estimate, name)} {name}"
        for name in ACCURACIES
        if name != metric and (estimate := best.estimate(name))
    ]
    lead = f"{number_text(best.estimate(metric), metric)} {metric}"
    lead += f" ({', '.join(other_accuracies)})" if other_accuracies else ""
    if len(comparison.valued) == 1:
        lines = [f"{label(best, comparison)}: {lead}."]
    else:
        lines = [f"Best: {label(best, comparison)} with {lead}.{equal_settings(comparison)}"]
        lines += [*significance(comparison), *missing_runs(comparison)]
    references = [
        reference_line(setting, setting.reference, comparison) for setting in comparison.settings if setting.reference
    ]
    return [*lines, *several(references, MOST)]


def equal_settings(comparison: Comparison) -> str:
    equals = [other for other, difference in comparison.differences.items() if abs(difference.change.value) < TIE]
    return f" Equal to it: {listing(equals, comparison)}." if equals else ""


def significance(comparison: Comparison) -> list[str]:
    """Than which of the others the best setting is significantly better, and than which by the same in every seed."""
    changes = {other: difference.change for other, difference in comparison.differences.items()}
    exact = {other: change.value for other, change in changes.items() if change.is_exact and change.value}
    tested = {other: effect for other, effect in comparison.differences.items() if other not in exact}
    not_significant = [other for other, effect in tested.items() if not effect.is_significant]
    n, lines = len(changes), []
    if exact:
        by = [
            f"{label(other, comparison)} by {change_text(abs(value), comparison.metric)[1:]}"
            for other, value in exact.items()
        ]
        lines.append(f"In every seed it is better by exactly the same: than {', '.join(several(by, 3))}.")
    if all(effect.p_holm is None for effect in tested.values()):
        return lines
    if not not_significant:
        others = "the other" if n == 1 else f"{'' if exact else 'all '}{count(len(tested), 'other')}"
        return [*lines, f"It is significantly better than {others}."]
    if len(not_significant) == n:
        others = "the other" if n == 1 else f"any of the {count(n, 'other')}"
    else:
        others = f"{len(not_significant)} of the {count(n, 'other')}: {listing(not_significant, comparison)}"
    return [*lines, f"It is not significantly better than {others}."]


def missing_runs(comparison: Comparison) -> list[str]:
    """Which runs are missing, and the raw means beside those that are adjusted for it."""
    missing, model, metric = comparison.missing, comparison.model, comparison.metric
    if not missing:
        return []
    if not model.shares_seeds:
        return ["The settings share too few seeds to be compared seed by seed: they count as independent samples."]
    lacking = [
        f"{label(setting, comparison)} (seed {', '.join(map(str, seeds[:5]))}{' …' if len(seeds) > 5 else ''})"
        for setting, seeds in missing.items()
    ]
    told = f"Runs are missing: {', '.join(several(lacking, 3))}."
    if not model.is_adjusted:
        return [f"{told} Seeds explain no more than noise would, so all means are raw means, not adjusted for seeds."]
    means = [
        f"{label(setting, comparison)} {figure_text(setting.average(metric) or 0.0, metric)}, "
        f"adjusted {figure_text(comparison.mean(setting) or 0.0, metric)}"
        for setting in dict.fromkeys([comparison.valued[0], *list(missing)[:3]])
    ]
    return [f"{told} Ranks and differences are adjusted for the seeds. Raw means: {'; '.join(means)}."]


def reference_line(setting: Setting, reference: Reference, comparison: Comparison) -> str:
    contained = reference.ours.contains(reference.value)
    verdict = {True: "within our 95 % interval", False: "outside our 95 % interval", None: "one seed, no interval"}
    ours, theirs = number_text(reference.ours, reference.metric), figure_text(reference.value, reference.metric)
    difference = change_text(reference.difference, reference.metric)
    return (
        f"{label(setting, comparison)}: {ours} {reference.metric}, the reference {theirs}: {difference}, "
        f"{verdict[contained]}."
    )


def effect_lines(comparison: Comparison) -> list[str]:
    return [effect_line(effect, comparison) for effect in comparison.effects]


def effect_line(effect: Effect, comparison: Comparison) -> str:
    """E.g. "kernel_size 9 instead of 5: +1.20 points [+0.40, +2.00]; significant (p = 0.012)."."""
    change, metric = effect.change, comparison.metric
    text = f"{effect_name(effect, comparison)}: {change_text(change.value, metric)}"
    if change.low is not None and change.high is not None and not change.is_exact:
        text += f" [{change_text(change.low, metric, '')}, {change_text(change.high, metric, '')}]"
    if effect.pairs > 1:
        text += f", higher in {effect.n_higher} of {effect.pairs} pairs of settings"
    return f"{text}; {verdict(effect, comparison)}."


def effect_name(effect: Effect, comparison: Comparison, width: int | None = None) -> str:
    """E.g. "kernel_size 9 instead of 5"."""
    level, baseline = level_text(effect.level, width), level_text(effect.baseline, width)
    name = f"{comparison.short(effect.factor)} {level} instead of {baseline}"
    if effect.factor in GROUPS or effect.factor.endswith(".name"):  # what an option sets goes without saying
        return name
    changed = [key for key in effect.changes_with if key.partition(".")[0] not in comparison.factors]
    with_it = " and ".join(comparison.short(key) for key in changed[:3])
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"{name} (together with {with_it}{more})" if with_it else name


def verdict(effect: Effect, comparison: Comparison) -> str:
    if effect.change.is_exact:
        return "the same in every seed"
    if effect.p_holm is None or effect.change.p is None:
        return "not tested, with one seed"
    tests = sum(other.p_holm is not None for other in comparison.effects)
    corrected = f" after correction for {tests} comparisons" if tests > 1 else ""
    if effect.is_significant:
        return f"significant ({p_text(effect.p_holm)}{corrected})"
    alone = f", {p_text(effect.change.p)} without it" if effect.change.contains(0) is False else ""
    return f"not significant ({p_text(effect.p_holm)}{corrected}{alone})"


def caveats(comparison: Comparison) -> list[str]:
    """What the numbers cannot say."""
    settings, metric = comparison.valued, comparison.metric
    lines = []
    single = [setting for setting in settings if len(setting.by_seed(metric)) == 1]
    if len(single) == len(settings) > 1:
        lines.append(
            "How sure is this? With one seed, no difference can be tested for significance: how much results vary from "
            "seed to seed is not known."
        )
    elif len(single) == len(settings) == 1:
        lines.append(f"How sure is this? One seed has no interval; {SEEDS} would give one.")
    elif single:
        lines.append(f"One seed only, so no interval of their own: {listing(single, comparison)}.")
    if len(settings) > 1 and not comparison.effects:
        lines.append("No setting differs from a baseline in one factor alone: no factor's own effect can be estimated.")
    if any(run.folder.with_name("race.md").exists() for run in comparison.runs):
        lines.append(
            "A race chose the seeds of each setting by its results. Its own tests (race.md) allow for that; the "
            "intervals and p values here do not."
        )
    if any(run.folder.with_name("search.db").exists() for run in comparison.runs):
        lines.append(
            "A search chose these settings, and the seeds of each, by their results: the best of them look better than "
            "they are, and the intervals and p values here do not allow for that. Fresh seeds of the best would tell."
        )
    part = metric.partition("/")[0]
    numbers = {(run.summary.get("images") or {}).get(part) for setting in settings for run in setting.completed}
    images = numbers.pop() if len(numbers) == 1 else None
    if metric in ACCURACIES and images and images < 2000:
        lines.append(f"{metric} rests on {images} images: a single one is {100 / images:.2f} points.")
    empty = [setting for setting in comparison.settings if setting.completed and setting not in settings]
    if empty and settings:
        lines.append(f"Completed without {metric}: {listing(empty, comparison)}.")
    return lines


def method(comparison: Comparison) -> list[str]:
    """How the numbers came about, for the report."""
    lines = []
    if comparison.metric.startswith("val/"):
        lines.append(
            f"{comparison.metric} is the best epoch's: biased upward, as a maximum over epochs. "
            "test/accuracy was evaluated exactly once."
        )
    if any(effect.p_holm is not None for effect in [*comparison.effects, *comparison.differences.values()]):
        lines.append(
            "Ranks, differences and effects come from one model, value ~ setting + seed, fitted by least squares. "
            "An effect is the mean difference between settings that differ in nothing else. "
            "Intervals are 95 %, Student's t, over seeds: they do not cover the choice of the images, and they are "
            "not corrected. Significant means p < 0.05 after Holm's correction: of an effect for all effects listed, "
            "of a difference from the best setting, which is picked from the same runs, for all pairs of settings."
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
        f"{run.status}: {run.folder.name}" + (f" ({run.reason})" if run.reason else "")
        for run in comparison.not_completed
    ]
