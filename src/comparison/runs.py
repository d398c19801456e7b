"""Runs, read from their folders or from W&B's server."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from omegaconf import MISSING

from config.errors import ConfigError
from config.schema import GROUPS, Config, flatten, keys_of
from tracking.identity import is_damaged
from tracking.run_lock import is_locked


@dataclass(frozen=True, eq=False)
class Run:
    """A run as its folder tells it."""

    folder: Path
    config: Mapping[str, Any]  # "section.key" → value
    summary: Mapping[str, Any]

    @property
    def status(self) -> str:
        """`completed`, `failed`, `interrupted`, `pruned`, `running`, `unreadable`."""
        return self.summary.get("status", "unreadable")

    @property
    def run_id(self) -> str:
        """As it hashes its config; runs of older versions have it at the end of their folder's name."""
        return self.summary.get("run_id") or self.folder.name.rpartition("-")[2]

    @property
    def reason(self) -> str:
        """Why it has no result, in one line."""
        if self.status in ("interrupted", "running", "pruned"):
            return f"after {self.summary.get('epochs', 0)} of {self.config.get('trainer.epochs', '?')} epochs"
        lines = str(self.summary.get("error") or "").splitlines()
        return lines[0] if lines else ""

    @cached_property
    def overrides(self) -> dict[str, Any]:
        """The keys and groups that were set for this run alone; runs of older versions tell them by their name."""
        if isinstance(told := self.summary.get("overrides"), dict):
            return told
        found: dict[str, Any] = {}
        for word, _, value in (word.partition("=") for word in str(self.summary.get("name")).split()):
            keys = [key for key in self.config if key.rpartition(".")[2] == word]
            found |= {word: value} if word in GROUPS else {key: self.config[key] for key in keys}
        return found

    @property
    def varied(self) -> Sequence[str]:
        """The keys that vary in its sweep; of a run for itself, and of older versions, all that were set."""
        return self.summary.get("varied") or list(self.overrides)

    def figure(self, name: str) -> float | None:
        """A number of the summary; `val/…` and `train/…` are the best epoch's. None where it is no number."""
        value = self.told(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return value if is_number else None

    def told(self, name: str) -> Any:
        """A number or a word of the summary."""
        return self.summary.get(f"best/{name}" if name.startswith(("val/", "train/")) else name)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """metrics.csv; an unreadable file has no rows."""
        try:
            return pd.read_csv(self.folder / "metrics.csv")
        except (OSError, ValueError):
            return pd.DataFrame()


@dataclass(frozen=True, eq=False)
class WandbRun(Run):
    """A run as W&B's server tells it; `folder` is its ENTITY/PROJECT/ID there."""

    source: Any  # wandb.apis.public.Run

    @cached_property
    def epochs(self) -> pd.DataFrame:
        rows = self.source.history(samples=10_000, pandas=False)
        return pd.DataFrame(row for row in rows if row.get("epoch") is not None)  # and not how one of them went


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


def without_copies(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Run, Run]]]:
    """Each run once, and each copied folder with the one that is kept: the completed one, then the longest.

    A run is identified by its W&B id, which a copied folder shares.
    """
    by_id: dict[Any, list[Run]] = {}
    for run in runs:
        by_id.setdefault(run.summary.get("wandb_id", run.folder), []).append(run)

    def rank(run: Run) -> tuple[Any, ...]:
        on_disk = not isinstance(run, WandbRun)
        return run.status != "completed", -(run.figure("epochs") or 0), not on_disk, len(str(run.folder))

    kept, copies = [], []
    for same in by_id.values():
        best, *others = sorted(same, key=rank)
        kept.append(best)
        copies += [(other, best) for other in others if not isinstance(other, WandbRun)]
    return kept, copies


def read_run(folder: Path) -> Run:
    """A run's folder; what cannot be read becomes the run's error."""
    config: dict[str, Any] = {}
    file = folder / "config.yaml"
    try:
        config = read_config(text := file.read_text())
        file = folder / "summary.json"
        summary = {**json.loads(file.read_text())}
        if is_damaged(sections(text), summary.get("data_fingerprint"), folder.name):
            file = folder / "config.yaml"
            raise ValueError("is damaged: its values do not give the ID at the end of the folder's name")
    except (OSError, TypeError, ValueError, RecursionError, yaml.YAMLError) as problem:  # TypeError: no mapping
        error = " ".join(f"{file.name}: {problem}".split())
        return Run(folder, config, {"status": "unreadable", "error": error})
    if summary.get("status") == "interrupted" and is_locked(folder):
        summary["status"] = "running"
    return Run(folder, config, summary)


def read_config(text: str) -> dict[str, Any]:
    """config.yaml, section by section: runs of a sweep share most of them, and parsing takes most of the time."""
    return comparable(sections(text))


def sections(text: str) -> dict[str, Any]:
    return {key: value for section in re.split(r"(?m)^(?=\w)", text) for key, value in parsed(section)}


@lru_cache(maxsize=4096)
def parsed(section: str) -> tuple[tuple[str, Any], ...]:
    return tuple(flat({**(yaml.load(section, Loader=YamlLoader) or {})}).items())


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
        unfinished = "running" if run.state == "running" else "interrupted"
        summary = {"status": unfinished, **run.summary_metrics}
        found.append(WandbRun(Path(*run.path), comparable(config), summary, run))
    return found


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """A config with one spelling for one training: keys that are younger than the run have their default, and where
    dropout was given place by place, `dropout.rate` is what it would have been."""
    places = (config.get(f"dropout.{place}") for place in ("blocks", "head", "stochastic_depth"))
    rates = [rate for rate in places if isinstance(rate, (int, float))]
    rate = {"dropout.rate": max(rates)} if rates else {}
    mode = {"trainer.compile_mode": "auto"} if config.get("trainer.compile_mode") == "default" else {}  # one run ID
    return {**defaults(), **config, **rate, **mode}


@cache
def defaults() -> dict[str, Any]:
    return {key: frozen(value) for key, value, _ in keys_of(Config()) if value != MISSING and value != []}


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """A config as "section.key" → value; the values can be keys."""
    return {key: value if key == "study.reference" else frozen(value) for key, value in flatten(tree)}


def frozen(value: Any) -> Any:
    """A config's value as one that can be a key."""
    if isinstance(value, list):
        return tuple(frozen(part) for part in value)
    return json.dumps(value, default=str) if isinstance(value, dict) else value


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b)
    return frozen(a) == frozen(b)
