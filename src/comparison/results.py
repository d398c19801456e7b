"""The results of runs: filtered, gathered by setting and ranked."""

import difflib
import math
import operator
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from comparison.effects import Cell, Effect, Estimate, against_best, effects, factors, mean, order
from comparison.runs import Run, frozen, read_runs, read_wandb
from config.errors import ConfigError
from config.schema import GROUPS, NOT_IDENTITY

ACCURACIES = ("val/accuracy", "test/accuracy")
COSTS = ("parameters", "macs", "seconds", "images_per_second", "peak_memory")
LOWER_IS_BETTER = ("loss", "parameters", "macs", "seconds", "peak_memory")


@dataclass(frozen=True)
class Reference:
    """What others measured at a row's setting, beside ours."""

    metric: str
    value: float
    ours: Estimate


@dataclass(frozen=True)
class Row:
    """The runs of one setting: they differ in nothing but the seed."""

    levels: dict[str, Any]  # of the keys that differ between rows
    runs: list[Run]

    @property
    def completed(self) -> list[Run]:
        return [run for run in self.runs if run.status == "completed"]

    def by_seed(self, figure: str) -> dict[int, float]:
        """A figure of every completed run. A seed that was run twice is no second sample: it counts with its mean."""
        found = defaultdict(list)
        for run in self.completed:
            if (value := run.figure(figure)) is not None:
                found[run.config.get("seed", 0)].append(value)
        return {seed: statistics.fmean(values) for seed, values in sorted(found.items())}

    def estimate(self, figure: str) -> Estimate | None:
        return mean(self.by_seed(figure).values())

    def average(self, figure: str) -> float | None:
        return estimate.value if (estimate := self.estimate(figure)) else None

    def cell(self, metric: str) -> Cell:
        return Cell(self.levels, self.by_seed(metric))

    @cached_property
    def reference(self) -> Reference | None:
        """The study's value whose `where`, and the study's own, fit this row; the most specific one."""
        config = self.runs[0].config
        shared = {key.removeprefix("study.where."): config[key] for key in config if key.startswith("study.where.")}
        fitting = [
            entry
            for entry in config.get("study.reference") or []
            if all(
                key in config and equal(config[key], wanted)
                for key, wanted in {**shared, **entry.get("where", {})}.items()
            )
        ]
        metric = config.get("study.metric", "test/accuracy")
        ours = self.estimate(metric)
        if not fitting or ours is None:
            return None
        return Reference(metric, float(max(fitting, key=lambda entry: len(entry.get("where", {})))["value"]), ours)


class Comparison:
    """All that can be said of some runs; its rows are sorted, those with a result first and the best on top.

    Args:
        title: the sweep's name.
        runs: wherever they were read from.
        metric: the figure to compare; None: the study's, else validation accuracy, else test accuracy.
        sort: a config key or a figure to sort the rows by, in place of the metric.

    Raises:
        ConfigError: no run has the metric or the key to sort by.
    """

    def __init__(self, title: str, runs: Sequence[Run], metric: str | None = None, sort: str | None = None) -> None:
        self.title, self.runs = title, list(runs)
        self.metric = find_key(metric, runs) if metric else default_metric(runs)
        if metric and all(run.figure(self.metric) is None for run in runs):
            raise ConfigError(f"--metric {metric}: no run has such a figure")
        self.sort = find_key(sort, runs) if sort else None
        self.rows = sorted(with_choices(rows_of(runs)), key=self.rank)

    def rank(self, row: Row) -> tuple[Any, ...]:
        """Equals in the metric: the smaller model first."""
        goal = self.goodness(row, self.metric)
        keyed: tuple[Any, ...] = ()
        if self.sort:
            values = [value for run in row.completed or row.runs if (value := run.value(self.sort)) is not None]
            is_figure = row.runs[0].figure(self.sort) is not None
            keyed = (-self.goodness(row, self.sort),) if is_figure else order(min(values, key=order, default=None))
        size = row.runs[0].figure("parameters") or 0
        return (not row.completed, *keyed, -goal, size, [order(level) for level in row.levels.values()])

    @staticmethod
    def goodness(row: Row, figure: str) -> float:
        average = row.average(figure)
        if average is None:
            return -math.inf
        return -average if figure.endswith(LOWER_IS_BETTER) else average

    @cached_property
    def keys(self) -> list[str]:
        """The config keys that differ, but for the seed."""
        return list(self.rows[0].levels) if self.rows else []

    @cached_property
    def factors(self) -> list[str]:
        """Those of them that set the rows apart; the others follow from these."""
        return factors([Cell(row.levels, {}) for row in self.rows], given(self.rows))

    def short(self, key: str) -> str:
        """The last word of a key, where that is clear; the section of a name."""
        if key.endswith(".name"):
            return key.removesuffix(".name")
        last = key.rpartition(".")[2]
        return last if sum(other.rpartition(".")[2] == last for other in self.keys) == 1 else key

    def levels(self, key: str) -> list[Any]:
        return sorted({row.levels[key] for row in self.rows}, key=order)

    @cached_property
    def valued(self) -> list[Row]:
        """The rows that have the metric, best first."""
        valued = [row for row in self.rows if row.by_seed(self.metric)]
        return sorted(valued, key=lambda row: -self.goodness(row, self.metric)) if self.sort else valued

    @cached_property
    def effects(self) -> list[Effect]:
        return effects([row.cell(self.metric) for row in self.rows], given(self.rows))

    @cached_property
    def gaps(self) -> list[Effect]:
        """The distance of every other valued row from the best one, in their order."""
        cells = [row.cell(self.metric) for row in self.valued]
        return against_best(cells[0], cells[1:]) if cells else []

    @cached_property
    def not_completed(self) -> list[Run]:
        return [run for run in self.runs if run.status != "completed"]


def read(
    folders: Sequence[Path],
    metric: str | None = None,
    sort: str | None = None,
    filters: Sequence[str] = (),
    wandb_paths: Sequence[str] = (),
) -> Comparison:
    found = [*(run for path in wandb_paths for run in read_wandb(path)), *read_runs(folders)]
    runs = list({run.summary.get("wandb_id", run.folder): run for run in found}.values())  # each once
    for condition in filters:
        runs = keep(runs, condition)
    title = " and ".join([*(folder.resolve().name for folder in folders), *wandb_paths])
    return Comparison(f"{title} where {' and '.join(filters)}" if filters else title, runs, metric, sort)


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """The runs by setting; unreadable ones have none."""
    readable = [run for run in runs if run.status != "unreadable"]
    keys = dict.fromkeys(key for run in readable for key in run.config)
    folders = any(run.config.get("data.name") == "image_folder" for run in readable)  # then the place tells the images
    distinct = {
        key: {run.config.get(key) for run in readable}
        for key in keys
        if decides(key) or (folders and key == "data.root")
    }
    differing = [key for key, values in distinct.items() if len(values) > 1]
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in readable:
        groups[tuple(run.config.get(key) for key in differing)].append(run)
    return [Row(dict(zip(differing, levels, strict=True)), group) for levels, group in groups.items()]


def with_choices(rows: Sequence[Row]) -> list[Row]:
    """The rows with a level for each config group whose option sets several differing keys at once.

    It then stands for them: "augmentation light instead of none" says more than a list of keys.
    """
    levels, by_name = [dict(row.levels) for row in rows], given(rows)
    for group in GROUPS:
        options = [{run.choices.get(group) for run in row.runs} for row in rows]
        if any(len(found) != 1 or None in found for found in options):
            continue
        chosen = [next(iter(found)) for found in options]
        together = [
            key
            for key in (rows[0].levels if rows else ())
            if key not in by_name
            and len({(option, level[key]) for option, level in zip(chosen, levels, strict=True)}) == len(set(chosen))
        ]
        if len(together) > 1 and len({tuple(level[key] for key in together) for level in levels}) == len(set(chosen)):
            levels = [{group: option, **level} for option, level in zip(chosen, levels, strict=True)]
    return [replace(row, levels=level) for row, level in zip(rows, levels, strict=True)]


def given(rows: Sequence[Row]) -> set[str]:
    """The differing keys that runs were given one by one, as their names tell, e.g. "kernel_size=9"."""
    words = {override.partition("=")[0] for row in rows for run in row.runs for override in run.overrides}
    return {key for row in rows for key in row.levels if key.rpartition(".")[2] in words}


def decides(key: str) -> bool:
    return key != "seed" and not any(key == other or key.startswith(f"{other}.") for other in NOT_IDENTITY)


def default_metric(runs: Sequence[Run]) -> str:
    """The study's where it has values to stand beside, else validation, else test."""
    for run in runs:
        if run.config.get("study.reference"):
            return run.config.get("study.metric", "test/accuracy")
    return next((name for name in ACCURACIES if any(run.figure(name) is not None for run in runs)), ACCURACIES[0])


CONDITIONS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": lambda a, b: not equal(a, b), ">=": operator.ge, "<=": operator.le,
    "=": lambda a, b: equal(a, b), ">": operator.gt, "<": operator.lt,
}  # fmt: skip


def keep(runs: Sequence[Run], condition: str) -> list[Run]:
    """The runs that meet a condition such as "kernel_size>3", "status!=failed" or "seed=0".

    Raises:
        ConfigError: it cannot be understood, or no run has the key.
    """
    parts = re.fullmatch(r"\s*([\w./]+)\s*(!=|>=|<=|=|>|<)\s*(.*?)\s*", condition)
    if not parts:
        raise ConfigError(f"--filter {condition}: expected KEY=VALUE, or !=, >, <, >=, <= in place of =")
    key, sign = find_key(parts[1], runs), parts[2]
    try:
        wanted: Any = float(parts[3])  # YAML takes 1e-2 for a word
    except ValueError:
        wanted = yaml.safe_load(parts[3])

    def meets(run: Run) -> bool:
        value = run.value(key)
        if sign in ("=", "!="):
            return CONDITIONS[sign](value, wanted)
        try:
            return value is not None and CONDITIONS[sign](value, wanted)
        except TypeError:
            return False

    return [run for run in runs if meets(run)]


def find_key(name: str, runs: Sequence[Run]) -> str:
    """The full name of a config key or figure.

    Raises:
        ConfigError: no run has it, or the short name fits several.
    """
    keys = dict.fromkeys(key for run in runs for key in (*run.config, *run.choices))
    figures = {key.removeprefix("best/") for run in runs for key in run.summary if run.summary[key] is not None}
    if name in keys or name in figures or not runs:
        return name
    fitting = [key for key in keys if key.endswith(f".{name}")]
    if len(fitting) == 1:
        return fitting[0]
    close = fitting or difflib.get_close_matches(name, [*keys, *figures, *(key.rpartition(".")[2] for key in keys)])
    raise ConfigError(
        f"{name}: {'fits several keys' if fitting else 'no run has such a key or figure'}"
        + (f"; did you mean {' or '.join(close)}?" if close else "")
    )


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b)
    return frozen(a) == frozen(b)
