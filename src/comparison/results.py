"""All that is known of some runs: their settings, ranked, and the differences between them."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from comparison.effects import Effect, differences_from_best, effects, order
from comparison.filters import find_key, keep, value
from comparison.least_squares import SeedModel
from comparison.runs import Run, read_runs, read_wandb, without_copies
from comparison.settings import Setting, settings_of, with_factors
from config.errors import ConfigError

ACCURACIES = ("val/accuracy", "test/accuracy")
COSTS = ("parameters", "macs", "seconds", "images_per_second", "peak_memory")
LOWER_IS_BETTER = ("loss", "parameters", "macs", "seconds", "memory")


class Comparison:
    """All that can be said of some runs; its settings are sorted, those with a result first and the best on top.

    Args:
        title: the sweep's name.
        runs: wherever they were read from.
        metric: the figure to compare; None: the study's, else validation accuracy, else test accuracy.
        sort: a config key or a figure to sort the settings by, in place of the metric.
        copies: of these runs, which are not compared, each with the one that is.

    Raises:
        ConfigError: no run has the metric or the key to sort by.
    """

    def __init__(
        self,
        title: str,
        runs: Sequence[Run],
        metric: str | None = None,
        sort: str | None = None,
        copies: Sequence[tuple[Run, Run]] = (),
    ) -> None:
        self.title, self.runs, self.copies = title, list(runs), copies
        self.metric = find_key(metric, runs) if metric else default_metric(runs)
        monitors = {str(run.config.get("trainer.monitor")) for run in runs}
        if self.metric == "objective" and len(monitors) == 1:  # of a loss, lower is better
            self.metric = monitors.pop()
        if metric and all(run.figure(self.metric) is None for run in runs):
            raise ConfigError(f"--metric {metric}: no run has such a figure")
        self.sort = find_key(sort, runs) if sort else None
        settings, self.factors = with_factors(settings_of(runs))
        self.keys = list(settings[0].levels) if settings else []  # the config keys that differ, but for the seed

        valued = [setting for setting in settings if setting.by_seed(self.metric)]
        self.model = SeedModel(pd.DataFrame([setting.by_seed(self.metric) for setting in valued]))
        self.position = {setting: i for i, setting in enumerate(valued)}  # in the model
        self.valued = sorted(valued, key=self.rank)  # those that have the metric, the best first
        self.settings = sorted(settings, key=self.place)

    def mean(self, setting: Setting) -> float | None:
        """Of the metric, adjusted for missing runs where seeds matter."""
        return float(self.model.means[self.position[setting]]) if setting in self.position else None

    def rank(self, setting: Setting) -> tuple[Any, ...]:
        """The best mean first; of equals the smaller model."""
        mean, size = self.mean(setting), setting.average("parameters") or 0
        goal = (mean or 0.0) if is_lower_better(self.metric) else -(mean or 0.0)
        return (mean is None, goal, size, [order(level) for level in setting.levels.values()])

    def place(self, setting: Setting) -> tuple[Any, ...]:
        """Of the setting in the table: those that completed first, then as `sort` says, then by rank."""
        by: tuple[Any, ...] = ()
        if self.sort and any(run.figure(self.sort) is not None for run in self.runs):
            average = setting.average(self.sort)
            by = (average is None, (average or 0) if is_lower_better(self.sort) else -(average or 0))
        elif self.sort:
            by = (min(order(value(run, self.sort)) for run in setting.completed or setting.runs),)
        return (not setting.completed, *by, *self.rank(setting))

    def levels(self, key: str) -> list[Any]:
        return sorted({setting.levels[key] for setting in self.settings}, key=order)

    def short(self, key: str) -> str:
        """The last word of a key, where that is clear; the section of a name."""
        if key.endswith(".name"):
            return key.removesuffix(".name")
        last = key.rpartition(".")[2]
        return last if sum(other.rpartition(".")[2] == last for other in self.keys) == 1 else key

    @cached_property
    def effects(self) -> list[Effect]:
        """Of every factor."""
        levels = [setting.levels for setting in self.position]
        return effects(self.model, levels, self.factors, [setting.levels for setting in self.settings])

    @cached_property
    def differences(self) -> dict[Setting, Effect]:
        """From the best setting, of every other one that has the metric, in their order."""
        found = differences_from_best(self.model, [self.position[setting] for setting in self.valued])
        return dict(zip(self.valued[1:], found, strict=True))

    @cached_property
    def missing(self) -> dict[Setting, list[int]]:
        """The seeds that other settings have a value for, by the setting that lacks them."""
        seeds = {setting: set(setting.by_seed(self.metric)) for setting in self.valued}
        every = set().union(*seeds.values())
        return {setting: sorted(every - own) for setting, own in seeds.items() if every - own}

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
    runs, copies = without_copies([*read_runs(folders), *(run for path in wandb_paths for run in read_wandb(path))])
    for condition in filters:
        runs = keep(runs, condition)
    title = " and ".join([*(folder.resolve().name for folder in folders), *wandb_paths])
    return Comparison(f"{title} where {' and '.join(filters)}" if filters else title, runs, metric, sort, copies)


def default_metric(runs: Sequence[Run]) -> str:
    """The study's where it has values to stand beside, else validation, else test."""
    for run in runs:
        if run.config.get("study.reference"):
            return run.config.get("study.metric", "test/accuracy")
    return next((name for name in ACCURACIES if any(run.figure(name) is not None for run in runs)), ACCURACIES[0])


def is_lower_better(figure: str) -> bool:
    return figure.endswith(LOWER_IS_BETTER)
