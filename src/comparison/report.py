"""A comparison as people and programs read it: on the terminal, as Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from comparison.findings import (
    caveats,
    change_text,
    count,
    differed,
    effect_lines,
    figure_text,
    label,
    level_text,
    lost,
    method,
    not_completed_lines,
    number_text,
    result,
    several,
)
from comparison.results import ACCURACIES, COSTS, Comparison, Row
from runtime.console import print_table, say

HEADINGS = {
    "val/accuracy": "val %", "test/accuracy": "test %", "parameters": "params", "macs": "MACs",
    "seconds": "s", "images_per_second": "img/s", "peak_memory": "memory",
}  # fmt: skip
SHOWN = {"terminal": 20, "markdown": 100}  # rows of a table and of a list; comparison.csv holds all


def show(comparison: Comparison) -> None:
    """The comparison on the terminal."""
    limit = SHOWN["terminal"]
    if comparison.rows:
        header, rows = table(comparison)
        print_table(caption(comparison), header, rows[:limit])
        if len(rows) > limit:
            say(f"… and {len(rows) - limit} more settings in comparison.csv")
    for line in [*result(comparison), *several(effect_lines(comparison), limit), *caveats(comparison)]:
        say(line)
    for run, line in zip(comparison.not_completed[:limit], not_completed_lines(comparison), strict=False):
        say(line, style="yellow" if run.status == "interrupted" else "red")
    if len(comparison.not_completed) > limit:
        say(f"… and {len(comparison.not_completed) - limit} more without a result", style="red")


def markdown(comparison: Comparison, stem: str = "comparison") -> str:
    """comparison.md: what was asked, what differed, the result in words, tables, failures, the figure."""
    limit = SHOWN["markdown"]
    lines = [f"# {comparison.title}", ""]
    study = {key: value for run in comparison.runs for key, value in run.config.items() if key.startswith("study.")}
    if study.get("study.question"):
        lines += [f"**Question.** {study['study.question']}", ""]
    if comparison.keys:
        lines += ["**What differed.** " + "; ".join(differed(comparison)) + ".", ""]
    lines += ["## Result", "", *bullets(result(comparison))]
    if any(run.status == "completed" for run in comparison.runs):
        lines += [f"![The comparison as a figure]({stem}.png)", ""]
    if comparison.rows:
        header, rows = table(comparison)
        lines += [caption(comparison) + ".", "", *markdown_table(header, rows[:limit])]
        if len(rows) > limit:
            lines += [f"{len(rows) - limit} more settings are in comparison.csv.", ""]
    if comparison.effects:
        lines += ["## Effects, the other factors held fixed", "", *bullets(several(effect_lines(comparison), limit))]
    lines += ["## How sure", "", *bullets([*caveats(comparison), *method(comparison)])]
    if comparison.not_completed:
        lines += ["## Without a result", "", *bullets(several(not_completed_lines(comparison), limit))]
    return "\n".join(lines)


def bullets(lines: Sequence[str]) -> list[str]:
    return [*(f"- {line}" for line in lines), ""]


def caption(comparison: Comparison) -> str:
    rows, runs = len(comparison.rows), len(comparison.runs)
    by = f"by {comparison.sort}" if comparison.sort else f"best {comparison.metric} first"
    margin = (
        "; ± is the mean's 95 % interval"
        if any(len(row.by_seed(comparison.metric)) > 1 for row in comparison.rows)
        else ""
    )
    return f"{comparison.title}: {count(runs, 'run')}, {count(rows, 'setting')}, {by}{margin}"


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The header and the rows as people read them; the less a column matters, the more to the right it is."""
    rows, factors = comparison.rows, comparison.factors
    columns: dict[str, list[str]] = {}
    for key in factors:
        columns[comparison.short(key)] = [level_text(row.levels[key]) for row in rows]
    if not factors:
        columns["run"] = [label(row, comparison) for row in rows]
    if any(len(row.completed) != 1 for row in rows):
        columns["n"] = [str(len(row.by_seed(comparison.metric))) for row in rows]
    for name in dict.fromkeys([*ACCURACIES, comparison.metric, *COSTS]):
        if name == COSTS[0] and any(row.reference for row in rows):
            columns["reference %"] = [
                figure_text(row.reference.value, "accuracy", "") if row.reference else "" for row in rows
            ]
            columns["difference"] = [
                change_text(row.reference.ours.value - row.reference.value, "accuracy", "") if row.reference else ""
                for row in rows
            ]
        estimates = [row.estimate(name) for row in rows]
        if any(estimates):
            columns[HEADINGS.get(name, name)] = [number_text(estimate, name, unit="") for estimate in estimates]
    if any(len(row.completed) != len(row.runs) for row in rows):
        columns["without result"] = [lost(row) for row in rows]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---:"] * len(header), *rows]
    return [*(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines), ""]


def table_csv(comparison: Comparison) -> str:
    """comparison.csv: a line for every setting; accuracies as fractions, sizes in bytes, keys as in the config."""
    file = io.StringIO()
    records = [record(row, comparison) for row in comparison.rows]
    writer = csv.DictWriter(file, list(dict.fromkeys(key for line in records for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def record(row: Row, comparison: Comparison) -> dict[str, Any]:
    line = dict(row.levels) | {"n": len(row.by_seed(comparison.metric))}
    for name in dict.fromkeys([*ACCURACIES, comparison.metric]):
        estimate = row.estimate(name)
        line[name] = estimate and estimate.value
        for part in ("std", "low", "high"):
            line[f"{name}/{part}"] = estimate and getattr(estimate, part)
    for name in COSTS:
        line[name] = row.average(name)
    reference = row.reference
    line["reference"] = reference and reference.value
    line["difference"] = reference and reference.ours.value - reference.value
    line["reference_in_interval"] = reference and reference.ours.contains(reference.value)
    seeds = " ".join(map(str, row.by_seed(comparison.metric)))
    return line | {"seeds": seeds, "without_result": lost(row), "runs": " ".join(run.folder.name for run in row.runs)}


def as_json(comparison: Comparison) -> str:
    """The whole comparison for programs; what is unknown is null."""
    tree = {
        "title": comparison.title,
        "metric": comparison.metric,
        "keys": comparison.keys,
        "rows": [record(row, comparison) for row in comparison.rows],
        "effects": [asdict(effect) | {"is_clear": effect.is_clear} for effect in comparison.effects],
        "without_result": [
            {"folder": str(run.folder), "status": run.status, "reason": run.reason} for run in comparison.not_completed
        ],
        "words": [*result(comparison), *effect_lines(comparison), *caveats(comparison)],
    }
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False, default=str)
