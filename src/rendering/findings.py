"""The sentences of a comparison: warnings, the result, effects, caveats, method."""

from collections import Counter

from comparison.results import ACCURACIES, Comparison, count_images
from comparison.settings import Reference, Setting
from config.schema import GROUPS
from config.text import printable
from rendering.formatting import change_text, figure_text, label, level_text, listing, number_text, p_text, several
from runtime.console import count, duration
from stats import Effect
from stats.interactions import Interaction
from stats.prediction import rate_bounds

SEEDS = "seed=0,1,2,3,4"
NAMED = 5  # runs in a line of runs without a result
MOST = 20  # listed references
WARNED = 5  # listed copies, and listed sets of images
NOTABLE = 0.001  # smallest bias of an accuracy that is stated
SLIGHT = 0.75  # standard errors; a smaller bias of a picked setting is well within its interval


def warnings(comparison: Comparison) -> list[str]:
    """Warn of copies of runs, and of results on different images; these lines stand above the ranking."""
    copies = [f"{copy.folder} is a copy of {original.folder}: not counted." for copy, original in comparison.copies]
    return [*several(copies, WARNED), *different_images(comparison)]


def different_images(comparison: Comparison) -> list[str]:
    """Warn if the metric was measured on different images for different settings."""
    part, _, _ = comparison.metric.partition("/")
    data = ("data.name", "data.root")
    keys = {"val": (*data, "data.val_fraction", "data.split_seed"), "test": data}
    sets: Counter[str] = Counter()
    for setting in comparison.valued if part in keys else ():
        values = [f"{key}={setting.levels[key]}" for key in keys[part] if setting.levels.get(key) is not None]
        images = {(run.summary.get("images") or {}).get(part, 0) for run in setting.completed} - {0}
        sets[", ".join([*values, *(count(number, "image") for number in sorted(images))])] += len(setting.completed)
    if len(sets) < 2:
        return []
    listed = "; ".join(several([f"{images} ({count(runs, 'run')})" for images, runs in sets.items()], WARNED))
    return [f"Not comparable: {comparison.metric} was measured on different images: {listed}."]


def result(comparison: Comparison) -> list[str]:
    """State the best setting, its significance, failures, and the comparison with published values."""
    if not comparison.valued:
        has_completed = any(setting.completed for setting in comparison.settings)
        missing = f"completed run has {comparison.metric}" if has_completed else "run has completed yet"
        return [f"No {missing}: there is nothing to compare."] if comparison.runs else []
    metric, best = comparison.metric, comparison.valued[0]
    others = [name for name in ACCURACIES if name != metric and best.estimate(name)]
    lead, *more = (f"{number_text(best.estimate(name), name)} {name}" for name in (metric, *others))
    lead += f" ({', '.join(more)})" if more else ""
    if len(comparison.valued) == 1:
        lines = [f"{label(best, comparison)}: {lead}."]
    else:
        lines = [f"Best: {label(best, comparison)} with {lead}.{equal_settings(comparison)}"]
        lines += [*significance(comparison), *selection(comparison), *missing_runs(comparison)]
    settings = comparison.settings
    failed = [failures(setting, comparison) for setting in settings if comparison.failed(setting)]
    references = [reference_line(setting, setting.reference, comparison) for setting in settings if setting.reference]
    return [*lines, *several(failed, 3), *several(references, MOST)]


def equal_settings(comparison: Comparison) -> str:
    equals = [other for other, difference in comparison.differences.items() if difference.is_tied]
    return f" Tied with it in these runs: {listing(equals, comparison)}." if equals else ""


def significance(comparison: Comparison) -> list[str]:
    """State how many settings the best one significantly beats, and each setting's probability of being the best."""
    tested = [difference for difference in comparison.differences.values() if difference.p is not None]
    if not tested:
        probability = chances(comparison)
        return [f"It has one seed only, so it is not tested against the others.{probability}"] if probability else []
    n, significant = len(comparison.differences), sum(difference.is_significant for difference in tested)
    if significant == n:
        return [f"It is significantly better than {'the other' if n == 1 else 'all ' + count(n, 'other')}."]
    others = f"the {count(n, 'other')}" if n > 1 else "the other"
    beaten = f"significantly better than {significant} of {others}"
    unbeaten = f"not significantly better than {'any of ' if n > 1 else ''}{others}"
    lines = [f"It is {beaten if significant else unbeaten}.{chances(comparison)}"]
    if comparison.smallest is not None:
        alike = [other for other, difference in comparison.differences.items() if difference.is_negligible]
        below = f"less than {change_text(comparison.smallest, comparison.metric)[1:]}"
        lines.append(
            f"It differs by {below}, which does not matter, from {listing(alike, comparison)}."
            if alike
            else f"No other setting is shown to differ from it by {below}."
        )
    return lines


def chances(comparison: Comparison) -> str:
    """State how likely the best setting is the best and, if some are excluded, which others may be."""
    best = comparison.valued[0]
    others = [setting for setting in comparison.may_be_best if setting is not best]
    if (probability := comparison.probability_best(best)) is None:
        return ""
    text = f" It is the best with {100 * probability:.0f} % probability"
    if not others or len(others) + 1 == len(comparison.valued):
        return f"{text}."
    shares = [f"{100 * (comparison.probability_best(other) or 0):.0f} %" for other in others]
    named = [f"{label(other, comparison)} ({share})" for other, share in zip(others, shares, strict=True)]
    return f"{text}; other candidates: {', '.join(several(named, 3))}."


def selection(comparison: Comparison) -> list[str]:
    """State how much better the best setting looks because it was picked by the same results."""
    picked, metric = comparison.selection, comparison.metric
    on_test = " on the test set itself" if metric.startswith("test/") else ""
    best = f"Picked{on_test} as the best of {len(comparison.valued)}"
    if picked is None or picked.bias is None:
        return [f"{best}, it looks better than it is."] if on_test else []
    bias = change_text(abs(picked.bias), metric)[1:]
    if abs(picked.bias) < SLIGHT * picked.error or (metric in ACCURACIES and abs(picked.bias) < NOTABLE):
        return [f"{best}, it looks better than it is."] if on_test else []
    seeds = count(picked.fresh_seeds, "new seed")
    return [f"{best}, it looks about {bias} better than it is; the mean of {seeds} of it would be unbiased."]


def failures(setting: Setting, comparison: Comparison) -> str:
    """State how many runs of a setting failed, with an interval for the rate."""
    failed = comparison.failed(setting)
    runs = failed + len(setting.by_seed(comparison.metric))
    low, high = rate_bounds(failed, runs)
    others = "; its mean is that of its other runs" if failed < runs else ""
    return (
        f"{label(setting, comparison)}: {failed} of {count(runs, 'run')} failed, so {100 * low:.0f} to "
        f"{100 * high:.0f} % of further runs may fail (90 % interval){others}."
    )


def missing_runs(comparison: Comparison) -> list[str]:
    """State which runs are missing, with raw and adjusted means."""
    missing, analysis, metric = comparison.missing, comparison.analysis, comparison.metric
    if not missing:
        return []
    lacking = [
        f"{label(setting, comparison)} (seed {', '.join(map(str, seeds[:5]))}{' …' if len(seeds) > 5 else ''})"
        for setting, seeds in missing.items()
    ]
    runs = f"Runs are missing: {', '.join(several(lacking, 3))}."
    if not analysis.is_adjusted:
        return [f"{runs} Seeds matter too little, or too few are shared, to compare seed by seed."]
    means = [
        f"{label(setting, comparison)} {figure_text(setting.average(metric) or 0.0, metric)}, "
        f"adjusted {figure_text(comparison.mean(setting) or 0.0, metric)}"
        for setting in dict.fromkeys([comparison.valued[0], *list(missing)[:3]])
    ]
    return [f"{runs} Ranks and differences are adjusted for the seeds. Raw means: {'; '.join(means)}."]


def reference_line(setting: Setting, reference: Reference, comparison: Comparison) -> str:
    expected = {
        True: "as one more run of ours could be",
        False: "beyond what one more run of ours would be (95 %)",
        None: "one seed, no interval",
    }
    ours, theirs = number_text(reference.ours, reference.metric), figure_text(reference.value, reference.metric)
    difference = change_text(reference.difference, reference.metric)
    return (
        f"{label(setting, comparison)}: {ours} {reference.metric}, the reference {theirs}: {difference}, "
        f"{expected[reference.is_expected]}."
    )


def effect_lines(comparison: Comparison) -> list[str]:
    return [effect_line(effect, comparison) for effect in comparison.effects]


def interaction_lines(comparison: Comparison) -> list[str]:
    """State which effects depend on another factor."""
    tested = [interaction for interaction in comparison.interactions if interaction.difference.p is not None]
    significant = [interaction for interaction in tested if interaction.difference.is_significant]
    if tested and not significant:
        return [f"No effect depends significantly on another factor ({count(len(tested), 'interaction')} tested)."]
    corrected = f" after correction for {len(tested)} interactions" if len(tested) > 1 else ""
    return [interaction_line(interaction, comparison, corrected) for interaction in significant]


def interaction_line(interaction: Interaction, comparison: Comparison, corrected: str) -> str:
    """State an interaction, e.g. "depth 4 instead of 8: -2.1 points with norm=none, -0.3 points with norm=batch; …"."""
    other, metric = interaction.other, comparison.metric
    at_level, at_baseline = (
        f"{change_text(effect, metric)} with {printable(comparison.short(other.factor))}={level_text(level)}"
        for effect, level in ((interaction.at_level, other.level), (interaction.at_baseline, other.baseline))
    )
    p = p_text(interaction.difference.p or 0.0)
    effect = effect_name(interaction.effect, comparison)
    return f"{effect}: {at_level}, {at_baseline}; the two effects differ significantly ({p}{corrected})."


def effect_line(effect: Effect, comparison: Comparison) -> str:
    """State an effect, e.g. "kernel_size 9 instead of 5: +1.20 points [+0.40, +2.00]; significant (p = 0.012)."."""
    metric = comparison.metric
    text = f"{effect_name(effect, comparison)}: {change_text(effect.estimate, metric)}"
    if effect.low is not None and effect.high is not None:
        text += f" [{change_text(effect.low, metric, '')}, {change_text(effect.high, metric, '')}]"
    if len(effect.pairs) > 1:
        text += f", higher in {effect.n_higher} of {len(effect.pairs)} pairs of settings"
    return f"{text}; {verdict(effect, comparison)}."


def effect_name(effect: Effect, comparison: Comparison, width: int | None = None) -> str:
    """Name an effect, e.g. "kernel_size 9 instead of 5"."""
    level, baseline = level_text(effect.level, width), level_text(effect.baseline, width)
    name = f"{printable(comparison.short(effect.factor))} {level} instead of {baseline}"
    if effect.factor in GROUPS or effect.factor.endswith(".name"):  # an option sets several keys by nature
        return name
    changed = [key for key in comparison.changes_with(effect) if key.partition(".")[0] not in comparison.factors]
    with_it = " and ".join(comparison.short(key) for key in changed[:3])
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"{name} (together with {with_it}{more})" if with_it else name


def verdict(effect: Effect, comparison: Comparison) -> str:
    if effect.p is None:
        return "tied in these runs" if effect.is_tied else "not tested, with one seed"
    if effect.is_negligible:
        return "too small to matter"
    tests = sum(other.p is not None for other in comparison.effects)
    corrected = f" after correction for {tests} comparisons" if tests > 1 else ""
    return f"{'significant' if effect.is_significant else 'not significant'} ({p_text(effect.p)}{corrected})"


def is_race(comparison: Comparison) -> bool:
    """Return true if a race chose the seeds of some runs."""
    return any(run.folder.with_name(name).exists() for run in comparison.runs for name in ("race.json", "race.md"))


def caveats(comparison: Comparison) -> list[str]:
    """State the limits of the comparison: few seeds, few images, selected settings."""
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
        lines.append(f"One seed only, so not tested: {listing(single, comparison)}.")
    if len(settings) > 1 and not comparison.effects:
        lines.append("No setting differs from a baseline in one factor alone: no factor's own effect can be estimated.")
    if is_race(comparison):
        lines.append(
            "A race chose the seeds of each setting by its results. Its own tests (race.md) allow for that; the "
            "intervals and p values here do not."
        )
    if any(run.folder.with_name("search.db").exists() for run in comparison.runs):
        lines.append(
            "A search chose these settings, and the seeds of each, by their results: the best of them look better than "
            "they are, and the intervals and p values here do not allow for that. Fresh seeds of the best would tell."
        )
    images = count_images(settings, metric)
    if images and images < 2000:
        lines.append(f"{metric} rests on {images} images: one image is {100 / images:.2f} points.")
    empty = [setting for setting in comparison.settings if setting.completed and setting not in settings]
    if empty and settings:
        lines.append(f"Completed without {metric}: {listing(empty, comparison)}.")
    return lines


def method(comparison: Comparison) -> list[str]:
    """Describe how the numbers were computed, for the report."""
    lines = []
    if comparison.metric.startswith("val/"):
        lines.append(
            f"{comparison.metric} is the best epoch's: biased upward, as a maximum over epochs. "
            "test/accuracy was evaluated exactly once."
        )
    if any(difference.p is not None for difference in [*comparison.effects, *comparison.differences.values()]):
        lines.append(
            "Ranks, differences and effects come from one model, value ~ setting + seed. A setting's spread is "
            "estimated from its runs and, as they are few, from the others'. An effect is the mean difference between "
            "settings that differ in nothing else. Intervals are 95 %, over seeds, not images. Significant: p < 0.05 "
            "after Holm's correction."
        )
    chance = comparison.chance_of_best
    if len(comparison.valued) == 2 and chance and chance.low is not None and chance.high is not None:
        lines.append(
            f"A new run of the best beats one of the other with a probability of about {100 * chance.value:.0f} % "
            f"({100 * chance.low:.0f} to {100 * chance.high:.0f} %)."
        )
    seconds = sum(run.figure("seconds") or 0 for run in comparison.runs)
    if seconds:
        devices = sorted({str(run.summary["device"]) for run in comparison.runs if run.summary.get("device")})
        lines.append(f"Training took {duration(seconds)} in all, on {', '.join(devices) or 'an unknown device'}.")
    if source := next((run.config["study.source"] for run in comparison.runs if run.config.get("study.source")), None):
        lines.append(f"The reference values are from {source}.")
    return lines


def differed(comparison: Comparison) -> dict[str, str]:
    """Return the keys that differ, with their values as text."""
    values = {}
    for key in comparison.keys:
        levels = [level_text(level) for level in comparison.levels(key)]
        listed = ", ".join(levels) if len(levels) <= 12 else f"{len(levels)} values from {levels[0]} to {levels[-1]}"
        values[key] = listed + ("" if key in comparison.factors else " (follows from the others)")
    seeds = sorted({run.config["seed"] for run in comparison.runs if "seed" in run.config})
    if len(seeds) > 1:
        values["seed"] = ", ".join(map(str, seeds)) if len(seeds) <= 12 else count(len(seeds), "value")
    return values


def not_completed_lines(comparison: Comparison) -> dict[str, str]:
    """List runs without a result, as line → status; runs with the same reason share a line."""
    groups: dict[tuple[str, str], list[str]] = {}
    for run in comparison.not_completed:
        groups.setdefault((run.status, run.reason), []).append(run.folder.name)
    lines = {}
    for (status, reason), names in groups.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines[f"{status}: {', '.join(names[:NAMED])}{more}" + (f" ({reason})" if reason else "")] = status
    return lines
