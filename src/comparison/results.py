"""The result of a comparison: runs grouped into settings, ranked, with differences and effects."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from comparison.filters import filter_runs, find_key, value
from comparison.power_analysis import plans
from comparison.runs import Run, read_runs, read_wandb, without_copies
from comparison.settings import Setting, settings_of, with_factors
from config.errors import ConfigError
from stats import Difference, Effect, Estimate, analyse
from stats.factors import order
from stats.selection import SelectionBias, selection_bias

ACCURACIES = ("val/accuracy", "test/accuracy")
CLASS_AVERAGES = ("val/balanced_accuracy", "test/balanced_accuracy", "test/macro_f1")
COSTS = ("parameters", "macs", "seconds", "images_per_second", "peak_memory")
LOWER_IS_BETTER = ("loss", "parameters", "macs", "seconds", "memory")


class Comparison:
    """The comparison of some runs, with settings sorted from best to worst, and those without a result last.

    Args:
        metric: Metric to compare; None: the study's metric, otherwise the monitored one, otherwise test accuracy.
        sort: A config key or a metric to sort the settings by, instead of the metric.
        copies: Copies of runs, which are not compared, each with the run that is.
        smallest: Smallest difference of the metric that matters.

    Raises:
        ConfigError: No run has the metric or the sort key.
    """

    def __init__(
        self,
        title: str,
        runs: Sequence[Run],
        metric: str | None = None,
        sort: str | None = None,
        copies: Sequence[tuple[Run, Run]] = (),
        smallest: float | None = None,
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
        self.keys = list(settings[0].levels) if settings else []  # config keys that differ, except for the seed

        by_size = sorted(settings, key=preference)
        key_of = {setting: setting.key(self.factors) for setting in by_size}
        setting_of = {key: setting for setting, key in key_of.items()}
        values = {key: setting.results(self.metric) for key, setting in setting_of.items()}
        lower = is_lower_better(self.metric)
        if smallest is not None and self.metric.endswith("accuracy"):
            smallest /= 100
        images = count_images(settings, self.metric)
        self.analysis = analyse(values, not lower, 1 / images if images else None, smallest)
        self.smallest, self.key_of = smallest, key_of
        self.valued = [setting_of[key] for key in self.analysis.ranked]  # settings with the metric, best first
        self.settings = sorted(settings, key=self.table_order)
        self.effects, self.interactions = list(self.analysis.effects), self.analysis.interactions
        self.pairs_of = {effect: [(setting_of[a], setting_of[b]) for a, b in effect.pairs] for effect in self.effects}
        best = self.analysis.best
        self.differences: dict[Setting, Difference] = {  # from the best setting, best first
            other: self.analysis.differences[key_of[other], best] for other in self.valued[1:]
        }
        self.may_be_best = [setting_of[key] for key in self.analysis.may_be_best]
        self.plans = plans(self.analysis, key_of, self.valued, self.pairs_of)
        self.selection: SelectionBias | None = selection_bias(values, not lower)

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics in tables and files: accuracies, the compared metric, and averages over classes.

        The averages are there if balanced accuracy is a point or more from accuracy in any run.
        """
        pairs = ((run.figure("test/accuracy"), run.figure("test/balanced_accuracy")) for run in self.runs)
        differ = any(a is not None and b is not None and abs(a - b) >= 0.01 for a, b in pairs)
        return list(dict.fromkeys([*ACCURACIES, *(CLASS_AVERAGES if differ else ()), self.metric]))

    @property
    def figures(self) -> list[str]:
        """The metrics and the costs."""
        return list(dict.fromkeys([*self.metrics, *COSTS]))

    @cached_property
    def has_notes(self) -> bool:
        return any(setting.notes for setting in self.settings)

    def mean(self, setting: Setting) -> float | None:
        """Return a setting's mean of the metric, adjusted for missing runs."""
        return self.analysis.settings[self.key_of[setting]].mean

    def failed(self, setting: Setting) -> int:
        """Count the seeds whose training failed."""
        return self.analysis.settings[self.key_of[setting]].failed

    def probability_best(self, setting: Setting) -> float | None:
        return self.analysis.probability_best.get(self.key_of[setting])

    @property
    def chance_of_best(self) -> Estimate | None:
        """Probability that a new run of the best setting beats a new run of the next."""
        return self.analysis.beats(*self.analysis.ranked[:2]) if len(self.analysis.ranked) > 1 else None

    def changes_with(self, effect: Effect) -> tuple[str, ...]:
        """List the keys that follow from the factors and change along with an effect's level."""
        others = [key for key in self.keys if key not in self.factors]
        pairs = self.pairs_of[effect]
        return tuple(key for key in others if any(a.levels[key] != b.levels[key] for a, b in pairs))

    def table_order(self, setting: Setting) -> tuple[Any, ...]:
        """Return the key that sorts settings in the table: completed ones first, then by `sort`, then by rank."""
        by: tuple[Any, ...] = ()
        if self.sort and any(run.figure(self.sort) is not None for run in self.runs):
            average = setting.average(self.sort)
            by = (average is None, (average or 0) if is_lower_better(self.sort) else -(average or 0))
        elif self.sort:
            by = (min(order(value(run, self.sort)) for run in setting.completed or setting.runs),)
        rank = self.valued.index(setting) if setting in self.valued else len(self.valued)
        return (not setting.completed, *by, rank, *preference(setting))

    def levels(self, key: str) -> list[Any]:
        return sorted({setting.levels[key] for setting in self.settings}, key=order)

    def short(self, key: str) -> str:
        """Shorten a key to its last word if that is unique, and NAME.name to NAME."""
        if key.endswith(".name"):
            return key.removesuffix(".name")
        last = key.rpartition(".")[2]
        return last if sum(other.rpartition(".")[2] == last for other in self.keys) == 1 else key

    @cached_property
    def missing(self) -> dict[Setting, list[int]]:
        """The seeds that only other settings ran with, by setting; a failed run counts as a result."""
        seeds = {setting: set(setting.results(self.metric)) for setting in self.valued}
        every = set().union(*(setting.by_seed(self.metric) for setting in self.valued))
        return {setting: sorted(every - ran) for setting, ran in seeds.items() if every - ran}

    @cached_property
    def not_completed(self) -> list[Run]:
        return [run for run in self.runs if run.status != "completed"]


def preference(setting: Setting) -> tuple[Any, ...]:
    """Return the key that sorts settings with equal results: the smaller model first, then by levels."""
    return setting.average("parameters") or 0, [order(level) for level in setting.levels.values()]


def by_preference(runs: Sequence[Run]) -> list[Run]:
    """Sort runs as a comparison sorts them if their results are equal, then by seed."""
    settings, _ = with_factors(settings_of(runs))
    by_setting = (sorted(setting.runs, key=lambda run: run.seed) for setting in sorted(settings, key=preference))
    return [run for of_setting in by_setting for run in of_setting]


def read(
    folders: Sequence[Path],
    metric: str | None = None,
    sort: str | None = None,
    filters: Sequence[str] = (),
    wandb_paths: Sequence[str] = (),
    smallest: float | None = None,
    seeds: Sequence[int] = (),
) -> Comparison:
    """Read runs from disk and from W&B, and compare them.

    Args:
        folders: Folders of sweeps or runs.
        metric, sort: See Comparison.
        filters: Conditions that the compared runs meet, e.g. "kernel_size>3".
        wandb_paths: ENTITY/PROJECT or ENTITY/PROJECT/SWEEP on W&B's server.
        smallest: Smallest difference that matters; in points for accuracies.
        seeds: Compare only these seeds, and only settings that ran with all of them.

    Raises:
        ConfigError: A filter cannot be parsed, or fewer than two settings ran with the seeds.
    """
    runs, copies = without_copies([*read_runs(folders), *(run for path in wandb_paths for run in read_wandb(path))])
    for condition in filters:
        runs = filter_runs(runs, condition)
    title = " and ".join([*(folder.resolve().name for folder in folders), *wandb_paths])
    if seeds:
        runs = confirming(runs, seeds)
        title += f", seeds {seeds[0]} to {seeds[-1]} alone"
    if filters:
        title += f" where {' and '.join(filters)}"
    return Comparison(title, runs, metric, sort, copies, smallest)


def default_metric(runs: Sequence[Run]) -> str:
    """Choose the study's metric if it has published values, else the monitored one, else test accuracy."""
    for run in runs:
        if run.config.get("study.reference"):
            return run.config.get("study.metric", "test/accuracy")
    monitors = {str(run.config.get("trainer.monitor", ACCURACIES[0])) for run in runs}
    candidates = (*monitors, *ACCURACIES) if len(monitors) == 1 else ACCURACIES
    return next((name for name in candidates if any(run.figure(name) is not None for run in runs)), ACCURACIES[0])


def compared_runs(comparison: Comparison) -> list[str]:
    """List the IDs of the runs with a result, which images.json records, too."""
    return sorted(run.run_id for setting in comparison.valued for run in setting.completed)


def is_lower_better(figure: str) -> bool:
    return figure.endswith(LOWER_IS_BETTER)


def count_images(settings: Sequence[Setting], metric: str) -> int | None:
    """Count the images of an accuracy; None for other metrics, or if the number is unknown or differs between runs."""
    if metric not in ACCURACIES:
        return None
    part = metric.partition("/")[0]
    numbers = {(run.summary.get("images") or {}).get(part) for setting in settings for run in setting.completed}
    return numbers.pop() if len(numbers) == 1 else None


def parse_seeds(text: str) -> list[int]:
    """Read seeds such as 5-14 or 5,6,7.

    Raises:
        ConfigError: The text is not a list of seeds.
    """
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise ConfigError(f"--confirm {text}: expected seeds, e.g. 5-14 or 5,6,7")
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    seeds = sorted({seed for part in ends for seed in range(part[0], part[-1] + 1)})
    if not seeds:
        raise ConfigError(f"--confirm {text}: no seeds. Fix: the lower one first, e.g. 5-14")
    return seeds


def confirming(runs: Sequence[Run], seeds: Sequence[int]) -> list[Run]:
    """Select the runs with these seeds, of settings that ran with all of them.

    Raises:
        ConfigError: There are fewer than two such settings.
    """
    groups = [
        [run for run in setting.runs if run.seed in seeds]
        for setting in settings_of(runs)
        if {run.seed for run in setting.runs if run.status in ("completed", "failed")} >= set(seeds)
    ]
    if len(groups) < 2:
        raise ConfigError(
            f"--confirm {seeds[0]}-{seeds[-1]}: {len(groups)} settings ran with all of these seeds, expected two. "
            "Fix: the commands that the power analysis prints, and wait until all runs have ended"
        )
    return [run for group in groups for run in group]
