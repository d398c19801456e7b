"""Runs, read from their folders or from W&B's server."""

import csv
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from config.errors import ConfigError
from config.schema import GROUPS, Config, flatten, keys_of


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it."""

    folder: Path
    config: dict[str, Any]  # "section.key" → value
    summary: dict[str, Any]

    @property
    def status(self) -> str:
        """`completed`, `failed`, `interrupted` (or still going), `unreadable`."""
        return self.summary.get("status", "unreadable")

    @property
    def reason(self) -> str:
        """Why it has no result, in one line."""
        if self.status == "interrupted":
            return f"after {self.summary.get('epochs', 0)} of {self.config.get('trainer.epochs', '?')} epochs"
        lines = str(self.summary.get("error") or "").splitlines()
        return lines[0] if lines else ""

    @property
    def overrides(self) -> list[str]:
        """What its name tells of them: the last words of keys, e.g. "kernel_size=9", and groups' options."""
        return str(self.summary.get("name")).split()

    @property
    def choices(self) -> dict[str, str]:
        """The options of config groups that its name tells, e.g. {"augmentation": "light"}."""
        overrides = [override.partition("=") for override in self.overrides]
        return {group: option for group, _, option in overrides if group in GROUPS}

    def figure(self, name: str) -> float | None:
        """A number of the summary; `val/…` and `train/…` are the best epoch's. None where it is no number."""
        value = self.summary.get(f"best/{name}" if name.startswith(("val/", "train/")) else name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return value if is_number else None

    def value(self, key: str) -> Any:
        """What a config key or group, a figure, `status` or `name` says of this run."""
        words = {"status": self.status, "name": self.summary.get("name")}
        return {**words, **self.choices, **self.config}.get(key, self.figure(key))

    def epochs(self) -> list[dict[str, float | None]]:
        """metrics.csv; a cell without a finite number is None, an unreadable file no rows."""
        try:
            with (self.folder / "metrics.csv").open(newline="") as file:
                return [{column: number(text) for column, text in row.items()} for row in csv.DictReader(file)]
        except (OSError, ValueError, csv.Error):
            return []


@dataclass(frozen=True)
class WandbRun(Run):
    """A run as W&B's server tells it; `folder` is its ENTITY/PROJECT/ID there."""

    source: Any  # wandb.apis.public.Run

    def epochs(self) -> list[dict[str, float | None]]:
        rows = self.source.history(samples=10_000, pandas=False)
        return [{column: number(value) for column, value in row.items()} for row in rows]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """All runs in or below the folders, each once."""
    found = set()
    for folder in folders:
        for path, below, files in os.walk(folder.resolve()):
            if {"config.yaml", "summary.json"} & set(files):
                found.add(Path(path))
                below.clear()
            below[:] = [name for name in below if not name.startswith(".")]
    return [read_run(folder) for folder in sorted(found)]


def read_run(folder: Path) -> Run:
    """A run's folder; what cannot be read becomes the run's error."""
    config, summary, error = {}, {}, None
    try:
        tree = yaml.load((folder / "config.yaml").read_text(), Loader=YamlLoader)
        if not isinstance(tree, dict):
            raise ValueError("it holds no mapping")
        config = flat(tree)
    except (OSError, ValueError, yaml.YAMLError) as problem:
        error = f"config.yaml: {problem}"
    try:
        summary = json.loads((folder / "summary.json").read_text())
        if not isinstance(summary, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as problem:
        error = error or f"summary.json: {problem}"
    return Run(folder, config, {"status": "unreadable", "error": " ".join(error.split())} if error else summary)


YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it


def read_wandb(path: str) -> list[WandbRun]:
    """The runs of ENTITY/PROJECT, or those of ENTITY/PROJECT/SWEEP: a W&B sweep by its id, or our `sweep`.

    Raises:
        ConfigError: there is no such project, no login, or the server is out of reach.
    """
    import wandb  # takes long

    entity, project, sweep = [*path.split("/"), "", ""][:3]
    if not entity or not project or path.count("/") > 2:
        raise ConfigError(f"--wandb {path}: expected ENTITY/PROJECT or ENTITY/PROJECT/SWEEP")
    filters = {"$or": [{"sweep": sweep}, {"group": sweep}]} if sweep else {}
    try:
        sources = list(wandb.Api().runs(f"{entity}/{project}", filters=filters, lazy=False))
    except Exception as error:  # of more kinds than the client documents
        raise ConfigError(f"--wandb {path}: {str(error).splitlines()[0]}") from error
    order = {key: place for place, (key, *_) in enumerate(keys_of(Config()))}  # the server keeps none
    found = []
    for run in sources:
        config = {key: value for key, value in flat(run.config).items() if key not in GROUPS}  # as W&B sweeps add
        config = dict(sorted(config.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))
        summary = {"status": "interrupted", **run.summary_metrics}  # or still going, where it has not told its end
        found.append(WandbRun(Path(*run.path), config, summary, run))
    return found


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """A config as "section.key" → value; the values can be keys."""
    return {key: value if key == "study.reference" else frozen(value) for key, value in flatten(tree)}


def frozen(value: Any) -> Any:
    """A config's value as one that can be a key."""
    if isinstance(value, list):
        return tuple(frozen(part) for part in value)
    return json.dumps(value, default=str) if isinstance(value, dict) else value


def number(text: Any) -> float | None:
    try:
        return value if math.isfinite(value := float(text)) else None
    except (TypeError, ValueError):
        return None
