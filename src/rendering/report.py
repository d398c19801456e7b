"""Text of a comparison: terminal, Markdown, tables and JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from comparison.results import COSTS, Comparison
from comparison.settings import Setting
from config.schema import is_below
from config.text import code, csv_text, markdown, markdown_table, printable
from rendering import findings
from rendering.formatting import (
    HEADINGS,
    change_text,
    figure_text,
    label,
    level_text,
    number_text,
    several,
    without_result,
)
from rendering.power_text import plan_record, power_lines
from runtime.console import count, print_table, say
from stats import Effect
from stats.interactions import Interaction

TWO_RUNS = ("key", "A", "B")  # header of the table of differing keys
ABOUT_THE_SWEEP = ("output_dir", "sweep", "varied", "trial", "study")  # keys that do not affect a run
SHOWN = {"terminal": 20, "markdown": 100, "plans": 1}  # most rows of a table or list; comparison.csv has all
STYLES = {"interrupted": "yellow", "pruned": "yellow", "running": "cyan"}  # other statuses are red


def print_comparison(comparison: Comparison) -> None:
    """Print the comparison on the terminal."""
    limit = SHOWN["terminal"]
    for line in findings.warnings(comparison):
        say(line, style="yellow")
    if differing := differing_keys(comparison):
        a, b = (run.folder for run in comparison.runs)
        say(f"A: {a}", style="bold")
        print_table(f"B: {b}", TWO_RUNS, differing, best_first=False)
    if comparison.settings:
        header, rows = table(comparison)
        print_table(table_title(comparison), header, rows[:limit])
        if len(rows) > limit:
            say(f"… and {len(rows) - limit} more settings in comparison.csv")
    effects = several(findings.effect_lines(comparison), limit)
    interactions = several(findings.interaction_lines(comparison), limit)
    for line in [*findings.result(comparison), *effects, *interactions, *findings.caveats(comparison)]:
        say(line)
    unfinished = findings.not_completed_lines(comparison)
    for line, status in list(unfinished.items())[:limit]:
        say(line, style=STYLES.get(status, "red"))
    if len(unfinished) > limit:
        say(f"… and {len(unfinished) - limit} more reasons", style="red")
    if power := power_lines(comparison, most=SHOWN["plans"]):
        say("Power analysis:", style="bold")
        for line in power:
            say(line)


def differing_keys(comparison: Comparison) -> list[list[str]]:
    """List the config keys in which two runs differ, with both values."""
    if len(comparison.runs) != 2:
        return []
    a, b = (run.config for run in comparison.runs)
    keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key) and not is_below(key, ABOUT_THE_SWEEP)]
    return [[key, level_text(a.get(key)), level_text(b.get(key))] for key in keys]


def page_of(comparison: Comparison, stem: str = "comparison") -> str:
    """Make comparison.md: question, factors, result, table, effects, caveats, power analysis, failures."""
    limit = SHOWN["markdown"]
    lines = [f"# {markdown(comparison.title)}", ""]
    if important := findings.warnings(comparison):
        lines += bullets(important)
    study = {key: value for run in comparison.runs for key, value in run.config.items() if key.startswith("study.")}
    if study.get("study.question"):
        lines += [f"**Question.** {markdown(str(study['study.question']))}", ""]
    if comparison.keys:
        levels_of = [f"{code(key)}: {markdown(levels)}" for key, levels in findings.differed(comparison).items()]
        lines += [f"**What differed.** {'; '.join(levels_of)}.", ""]
    if differing := differing_keys(comparison):
        lines += bullets([f"{name}: {run.folder}" for name, run in zip("AB", comparison.runs, strict=True)])
        lines += markdown_table(TWO_RUNS, differing)
    lines += ["## Result", "", *bullets(findings.result(comparison))]
    if comparison.valued:
        lines += [f"![The comparison as a figure]({stem}.png)", ""]
    if comparison.settings:
        header, rows = table(comparison)
        lines += [markdown(table_title(comparison)) + ".", "", *markdown_table(header, rows[:limit])]
        if len(rows) > limit:
            lines += [f"{len(rows) - limit} more settings are in comparison.csv.", ""]
    if comparison.effects:
        effects, interactions = findings.effect_lines(comparison), findings.interaction_lines(comparison)
        lines += ["## Effects, the other factors held fixed", ""]
        lines += bullets([*several(effects, limit), *several(interactions, limit)])
    lines += ["## How sure", "", *bullets([*findings.caveats(comparison), *findings.method(comparison)])]
    if power := power_lines(comparison, limit):
        lines += ["## Power analysis", ""]
        lines += [command_or_item(line) for line in power] + [""]
    if comparison.not_completed:
        lines += ["## Without a result", "", *bullets(several([*findings.not_completed_lines(comparison)], limit))]
    return "\n".join(lines)


def bullets(lines: Sequence[str]) -> list[str]:
    return [*(f"- {markdown(line)}" for line in lines), ""]


def command_or_item(line: str) -> str:
    """Return a line as an item of a list; an indented one is a command, code within the item before."""
    return f"      {printable(line.strip())}" if line.startswith(" ") else f"- {markdown(line)}\n"


def table_title(comparison: Comparison) -> str:
    by = f"by {comparison.sort}" if comparison.sort else f"best {comparison.metric} first"
    has_intervals = any(len(setting.by_seed(comparison.metric)) > 1 for setting in comparison.settings)
    margin = "; ± is the mean's 95 % interval" if has_intervals else ""
    runs, settings = count(len(comparison.runs), "run"), count(len(comparison.settings), "setting")
    return f"{comparison.title}: {runs}, {settings}, {by}{margin}"


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Make the header and the rows of the table, with the most important columns on the left."""
    settings, factors, metric = comparison.settings, comparison.factors, comparison.metric
    columns: dict[str, list[str]] = {}
    for key in factors:
        columns[comparison.short(key)] = [level_text(setting.levels[key]) for setting in settings]
    if not factors:
        columns["run"] = [label(setting, comparison) for setting in settings]
    if any(len(setting.completed) != 1 for setting in settings):
        columns["n"] = [str(len(setting.by_seed(metric))) for setting in settings]
    for name in comparison.figures:
        if name == COSTS[0] and any(setting.reference for setting in settings):
            references = [setting.reference for setting in settings]
            columns["reference %"] = [figure_text(ref.value, "accuracy", "") if ref else "" for ref in references]
            columns["difference"] = [change_text(ref.difference, "accuracy", "") if ref else "" for ref in references]
        estimates = [setting.estimate(name) for setting in settings]
        if any(estimates):
            columns[HEADINGS.get(name, name)] = [number_text(estimate, name, unit="") for estimate in estimates]
        if name == metric and comparison.analysis.is_adjusted:
            means = [comparison.mean(setting) for setting in settings]
            columns["adjusted"] = ["" if mean is None else figure_text(mean, name, "") for mean in means]
    if any(len(setting.completed) != len(setting.runs) for setting in settings):
        columns["without result"] = [without_result(setting) for setting in settings]
    if comparison.has_notes:
        columns["notes"] = [setting.notes for setting in settings]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def table_csv(comparison: Comparison) -> str:
    """Make comparison.csv: a row for every setting; accuracies as fractions, sizes in bytes, full keys."""
    lines = [setting_record(setting, comparison) for setting in comparison.settings]
    return csv_text(pd.DataFrame(lines, dtype=object), index=False)  # with object, 5 stays 5 in a column with None


def runs_csv(comparison: Comparison) -> str:
    """Make comparison-runs.csv: a row for every run, with its levels and metrics, for other statistics programs."""
    rows = [
        {**setting.levels, "seed": run.seed, "status": run.status}
        | {name: run.figure(name) for name in comparison.figures}
        | {"run": run.folder.name}
        for setting in comparison.settings
        for run in setting.runs
    ]
    return csv_text(pd.DataFrame(rows, dtype=object), index=False)


def setting_record(setting: Setting, comparison: Comparison) -> dict[str, Any]:
    by_seed = setting.by_seed(comparison.metric)
    line = {**setting.levels, "n": len(by_seed)}
    for name in comparison.metrics:
        estimate = setting.estimate(name)
        line[name] = estimate and estimate.value
        for part in ("std", "low", "high"):
            line[f"{name}/{part}"] = estimate and getattr(estimate, part)
    if comparison.analysis.is_adjusted:
        line[f"{comparison.metric}/adjusted"] = comparison.mean(setting)
    for name in COSTS:
        line[name] = setting.average(name)
    reference = setting.reference
    line["reference"] = reference and reference.value
    line["difference"] = reference and reference.difference
    line["reference_in_interval"] = reference and reference.is_expected
    seeds, runs = " ".join(map(str, by_seed)), " ".join(run.folder.name for run in setting.runs)
    with_notes = {"notes": setting.notes} if comparison.has_notes else {}
    return line | {"seeds": seeds, "without_result": without_result(setting), **with_notes, "runs": runs}


def as_json(comparison: Comparison) -> str:
    """Make the comparison as JSON; unknown values are null."""

    def effect_record(effect: Effect) -> dict[str, Any]:
        values = {name: value for name, value in vars(effect).items() if name not in ("plan", "sample_size")}
        return values | {"pairs": len(effect.pairs), "changes_with": comparison.changes_with(effect)}

    def interaction_record(interaction: Interaction) -> dict[str, Any]:
        names = {name: findings.effect_name(getattr(interaction, name), comparison) for name in ("effect", "other")}
        effects = {"at_level": interaction.at_level, "at_baseline": interaction.at_baseline}
        return names | effects | asdict(interaction.difference)

    tree = {
        "title": comparison.title,
        "metric": comparison.metric,
        "keys": comparison.keys,
        "two_runs": differing_keys(comparison),
        "rows": [setting_record(setting, comparison) for setting in comparison.settings],
        "effects": [effect_record(effect) for effect in comparison.effects],
        "interactions": [interaction_record(interaction) for interaction in comparison.interactions],
        "differences_from_best": [
            {"setting": label(setting, comparison)} | asdict(difference)
            for setting, difference in comparison.differences.items()
        ],
        "may_be_best": [
            {"setting": label(setting, comparison), "probability": comparison.probability_best(setting)}
            for setting in comparison.may_be_best
        ],
        "new_run_of_best_beats_next": (chance := comparison.chance_of_best) and asdict(chance),
        "selection": (picked := comparison.selection) and {"bias": picked.bias, "fresh_seeds": picked.fresh_seeds},
        "sample_sizes": [plan_record(plan, comparison) for plan in comparison.plans],
        "without_result": [
            {"folder": str(run.folder), "status": run.status, "reason": run.reason} for run in comparison.not_completed
        ],
        "words": [
            *findings.warnings(comparison),
            *findings.result(comparison),
            *findings.effect_lines(comparison),
            *findings.interaction_lines(comparison),
            *findings.caveats(comparison),
        ],
    }
    return json.dumps(finite(tree), indent=2, allow_nan=False, default=str)


def finite(tree: Any) -> Any:
    """Replace infinite numbers and NaN, which JSON does not have, with null."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
