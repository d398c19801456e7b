"""Settings: runs that differ in the seed only, the keys in which settings differ, and their averages."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from comparison.options import options_of
from comparison.runs import Run, equal
from config.schema import GROUPS, NOT_IDENTITY, is_below
from stats import EVERY, Estimate, mean
from stats.factors import Levels
from stats.prediction import prediction_interval

LARGEST = 3.4e38  # of a float32


@dataclass(frozen=True)
class Reference:
    """A published value of a setting, and our estimate."""

    metric: str
    value: float
    ours: Estimate

    @property
    def difference(self) -> float:
        return self.ours.value - self.value

    @property
    def expected(self) -> tuple[float, float] | None:
        """The interval that contains one more run of ours with 95 % probability; None with one seed."""
        return None if not self.ours.std else prediction_interval(self.ours.value, self.ours.std, self.ours.n)

    @property
    def is_expected(self) -> bool | None:
        """True if the published value lies in that interval."""
        return None if self.expected is None else self.expected[0] <= self.value <= self.expected[1]


@dataclass(frozen=True, eq=False)
class Setting:
    """Runs that differ in the seed only.

    Attributes:
        levels: Values of the keys that differ between settings.
        runs: Runs of any status.
    """

    levels: Levels
    runs: list[Run]

    @property
    def completed(self) -> list[Run]:
        return [run for run in self.runs if run.status == "completed"]

    def by_seed(self, figure: str) -> dict[int, float]:
        """Return a metric of completed runs by seed. A seed that ran twice counts once, with its mean.

        Values beyond a float32, which no training measures, are left out: their squares would not be finite.
        """
        values_of = defaultdict(list)
        for run in self.completed:
            if (value := run.figure(figure)) is not None and abs(value) <= LARGEST:
                values_of[run.seed].append(value)
        return {seed: statistics.fmean(values) for seed, values in sorted(values_of.items())}

    def results(self, figure: str) -> dict[int, float | None]:
        """Return a metric by seed, and None for seeds whose training failed.

        Runs that failed for another reason, such as memory or a lost node, count as missing.
        """
        failed = [run for run in self.runs if run.status == "failed" and run.reason.startswith("NotFinite")]
        return {**dict.fromkeys(run.seed for run in failed), **self.by_seed(figure)}

    def key(self, factors: Sequence[str]) -> tuple[tuple[str, Any], ...]:
        """Make the setting's key for `stats`; at a rate of 0, the place of dropout does not matter."""
        is_dropless = self.levels.get("dropout") == "none" and self.levels.get("dropout.rate") == 0
        has_every_place = is_dropless and "dropout.rate" in factors
        return tuple((key, EVERY if has_every_place and key == "dropout" else self.levels[key]) for key in factors)

    @property
    def notes(self) -> str:
        """Notes of the runs, each once."""
        return "; ".join(dict.fromkeys(str(run.config["notes"]) for run in self.runs if run.config.get("notes")))

    def estimate(self, figure: str) -> Estimate | None:
        return mean(self.by_seed(figure).values())

    def average(self, figure: str) -> float | None:
        return estimate.value if (estimate := self.estimate(figure)) else None

    @cached_property
    def reference(self) -> Reference | None:
        """The study's published value that matches this setting; of several, the most specific one."""
        config = next((run.config for run in self.runs if run.config.get("study.reference")), {})
        shared = {key.removeprefix("study.where."): config[key] for key in config if key.startswith("study.where.")}

        def matches(where: dict[str, Any]) -> bool:
            return all(key in config and equal(config[key], value) for key, value in (shared | where).items())

        fitting = [entry for entry in config.get("study.reference", []) if matches(entry.get("where", {}))]
        metric = config.get("study.metric", "test/accuracy")
        ours = self.estimate(metric)
        if not fitting or ours is None:
            return None
        return Reference(metric, float(max(fitting, key=lambda entry: len(entry.get("where", {})))["value"]), ours)


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """Group readable runs into settings."""
    readable = [run for run in runs if run.status != "unreadable"]
    images = images_of(readable)
    keys = dict.fromkeys(key for run in readable for key in run.config if decides(key) or key == "data.root")

    def level(run: Run, key: str) -> Any:
        return images[run] if key == "data.root" else run.config.get(key)

    differing = [key for key in keys if len({level(run, key) for run in readable}) > 1 and not is_seed(key, readable)]
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in readable:
        groups[tuple(level(run, key) for key in differing)].append(run)
    return [Setting(dict(zip(differing, levels, strict=True)), group) for levels, group in groups.items()]


def decides(key: str) -> bool:
    """Check if runs that differ in this key have different settings."""
    return not is_below(key, (*NOT_IDENTITY, "seed", "trainer.channels_last"))  # channels_last changes only the speed


def is_seed(key: str, runs: Sequence[Run]) -> bool:
    """Check if a key equals the seed in all runs, as with data.split_seed=${seed}."""
    return key.endswith("seed") and all(run.config.get(key) == run.seed for run in runs)


def images_of(runs: Sequence[Run]) -> dict[Run, str | None]:
    """Identify each run's folder of images by its content, so that two paths to the same images are equal.

    If the images of a folder changed between runs, the name contains their fingerprint. Runs without a fingerprint are
    identified by the path.
    """
    folder_runs = [run for run in runs if run.config.get("data.name") == "image_folder"]
    of_folders = {run: str(run.config.get("data.root")) for run in folder_runs}
    fingerprints: dict[str, set[Any]] = defaultdict(set)  # by path
    for run, path in of_folders.items():
        fingerprints[path] |= {run.summary.get("data_fingerprint")} - {None}
    paths: dict[str, str] = {}  # by fingerprint
    names: dict[Run, str | None] = dict.fromkeys(runs)
    for run, path in of_folders.items():
        only = min(fingerprints[path]) if len(fingerprints[path]) == 1 else path
        fingerprint = run.summary.get("data_fingerprint") or only
        path = paths.setdefault(fingerprint, path)
        has_changed = len(fingerprints[path]) > 1 and fingerprint in fingerprints[path]
        names[run] = f"{path} ({fingerprint})" if has_changed else path
    return names


def with_factors(settings: list[Setting]) -> tuple[list[Setting], list[str]]:
    """Choose the factors: keys that varied within a sweep, and further keys until they distinguish all settings.

    A config group with several chosen options becomes a factor, because "augmentation light instead of none" is clearer
    than a list of keys. If its options set a single key, that key is the factor: kernel_size 5, not kernel k5.
    """
    if not settings:
        return [], []
    varied = {key for setting in settings for run in setting.runs for key in run.varied}
    overridden = {key for setting in settings for run in setting.runs for key in run.overrides}
    factors = [key for key in settings[0].levels if key in varied]
    for group in (group for group in GROUPS if group in varied):
        options = [{options_of(run)[group] for run in setting.runs} for setting in settings]
        if any(len(names) > 1 for names in options) or len(set.union(*options)) < 2:
            continue
        chosen = [option for (option,) in options]
        decided = [key for key in settings[0].levels if key not in overridden and follows(key, chosen, settings)]
        if len(decided) == 1 and len({setting.levels[decided[0]] for setting in settings}) == len(set(chosen)):
            factors += decided
            continue
        factors.append(group)
        settings = [replace(setting, levels={group: option, **setting.levels})
                    for option, setting in zip(chosen, settings, strict=True)]  # fmt: skip
    keys = sorted(settings[0].levels, key=lambda key: (key not in overridden, not key.endswith(".name")))
    while count_distinct(settings, factors) < len(settings):
        factors.append(max(keys, key=lambda key: count_distinct(settings, [*factors, key])))
    return settings, [key for key in settings[0].levels if key in factors]


def follows(key: str, chosen: Sequence[Any], settings: Sequence[Setting]) -> bool:
    """Check if the option determines the key's level."""
    pairs = {(option, setting.levels[key]) for option, setting in zip(chosen, settings, strict=True)}
    return len(pairs) == len(set(chosen))


def count_distinct(settings: Sequence[Setting], keys: Sequence[str]) -> int:
    return len({tuple(setting.levels[key] for key in keys) for setting in settings})
