"""Runs, read from their folders or from W&B's server."""

import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from omegaconf import MISSING

from config.errors import ConfigError
from config.schema import GROUPS, Config, flatten, keys_of
from config.typed import check_config_types, check_type, load_yaml
from runtime.files import read_text
from tracking.identity import is_damaged
from tracking.records import Summary, number
from tracking.run_lock import is_locked

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Run:
    """A run, read from its folder."""

    folder: Path
    config: Mapping[str, Any]  # "section.key" → value
    summary: Mapping[str, Any]

    @property
    def status(self) -> str:
        """`completed`, `failed`, `interrupted`, `pruned`, `running`, `unreadable`."""
        return self.summary.get("status", "unreadable")

    @property
    def run_id(self) -> str:
        """Hash of the config; runs of older versions have it at the end of their folder's name only."""
        return self.summary.get("run_id") or self.folder.name.rpartition("-")[2]

    @property
    def reason(self) -> str:
        """Reason for a missing result, in one line."""
        if self.status in ("interrupted", "running", "pruned"):
            return f"after {self.summary.get('epochs', 0)} of {self.config.get('trainer.epochs', '?')} epochs"
        lines = str(self.summary.get("error") or "").splitlines()
        return lines[0] if lines else ""

    @cached_property
    def overrides(self) -> dict[str, Any]:
        """Keys and groups that were set for this run; runs of older versions have them in their name only."""
        if "overrides" in self.summary:
            return self.summary["overrides"]
        found: dict[str, Any] = {}
        for word, _, value in (word.partition("=") for word in str(self.summary.get("name")).split()):
            keys = [key for key in self.config if key.rpartition(".")[2] == word]
            found |= {word: value} if word in GROUPS else {key: self.config[key] for key in keys}
        return found

    @property
    def varied(self) -> Sequence[str]:
        """Keys that vary in the sweep; of single runs and of older versions, all that were set."""
        return self.summary.get("varied") or list(self.overrides)

    def figure(self, name: str) -> float | None:
        """Return a number of the summary, or None; `val/…` and `train/…` are the best epoch's."""
        return number(self.told(name))

    def told(self, name: str) -> Any:
        """Return a number or a word of the summary."""
        return self.summary.get(f"best/{name}" if name.startswith(("val/", "train/")) else name)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """metrics.csv; an unreadable file has no rows."""
        file = self.folder / "metrics.csv"
        try:
            text = read_text(file)
            table = pd.read_csv(StringIO(text), dtype=float)
            if not text.endswith("\n") or len(table) < (self.figure("epochs") or 0):
                raise ValueError("is cut off")
        except FileNotFoundError:
            return pd.DataFrame()
        except (OSError, ValueError) as problem:
            log.warning(" ".join(f"{file}: {problem}; its curve is left out".split()))
            return pd.DataFrame()
        return table


@dataclass(frozen=True, eq=False)
class WandbRun(Run):
    """A run, read from W&B's server; `folder` is its ENTITY/PROJECT/ID."""

    source: Any  # wandb.apis.public.Run

    @cached_property
    def epochs(self) -> pd.DataFrame:
        rows = self.source.history(samples=10_000, pandas=False)
        tables = ({key: number(value) for key, value in row.items()} for row in rows if isinstance(row, dict))
        return pd.DataFrame(row for row in tables if row.get("epoch") is not None).astype(float)  # and no progress


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read all runs in or below the folders, each once, in the folders' order."""
    found: dict[Path, None] = {}
    for folder in folders:
        inside = []
        for path, below, files in os.walk(folder.resolve()):
            if {"config.yaml", "summary.json"} & set(files):
                inside.append(Path(path))
                below.clear()
            below[:] = [name for name in below if not name.startswith(".")]
        found |= dict.fromkeys(sorted(inside))
    return [read_run(folder) for folder in found]


def without_copies(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Run, Run]]]:
    """Drop copies of runs; return the runs kept, and pairs of a dropped folder and the run kept in its place.

    Copies share their W&B ID. A completed run is kept first, then the one with most epochs.
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
    """Read a run's folder; a file that cannot be read becomes the run's error."""
    config: dict[str, Any] = {}
    file = folder / "config.yaml"
    try:
        config = read_config(text := read_text(file))
        file = folder / "summary.json"
        summary = check_type(Summary, json.loads(read_text(file)))
        if is_damaged(sections(text), summary.get("data_fingerprint"), folder.name):
            file = folder / "config.yaml"
            raise ValueError("is damaged: its values do not give the ID at the end of the folder's name")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:
        return unreadable(folder, config, f"{file.name}: {problem}")
    if summary.get("status") == "interrupted" and is_locked(folder):
        summary["status"] = "running"
    return Run(folder, config, summary)


def unreadable(folder: Path, config: Mapping[str, Any], problem: str) -> Run:
    return Run(folder, config, {"status": "unreadable", "error": " ".join(problem.split())})


def read_config(text: str) -> dict[str, Any]:
    """Read config.yaml by sections: runs of a sweep share most of them, and parsing takes most of the time."""
    return comparable(sections(text))


def sections(text: str) -> dict[str, Any]:
    return {key: value for section in re.split(r"(?m)^(?=\w)", text) for key, value in parsed(section)}


@lru_cache(maxsize=4096)
def parsed(section: str) -> tuple[tuple[str, Any], ...]:
    values = dict(flatten(check_type(dict[str, Any], load_yaml(section) or {})))
    check_config_types(values)
    return tuple(frozen_values(values).items())


def read_wandb(path: str) -> list[Run]:
    """Read the runs of ENTITY/PROJECT, or of ENTITY/PROJECT/SWEEP: a W&B sweep by its ID, or our `sweep`.

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
    found: list[Run] = []
    for run in sources:
        folder = Path(*run.path)
        unfinished = "running" if run.state == "running" else "interrupted"
        try:
            tree = check_type(dict[str, Any], run.config)
            config = {key: value for key, value in flatten(tree) if key not in GROUPS}  # as W&B sweeps add
            check_config_types(config)
            summary = check_type(
                Summary, {"status": unfinished, **of_wandb(check_type(dict[str, Any], run.summary_metrics))}
            )
        except (ValueError, RecursionError) as problem:
            found.append(unreadable(folder, {}, f"{run.url}: {problem}"))
            continue
        config = dict(sorted(config.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))
        found.append(WandbRun(folder, comparable(frozen_values(config)), summary, run))
    return found


def of_wandb(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a summary of W&B to summary.json's form: NaN is a word there, and `images` a number until the end."""
    values = {key: math.nan if value == "NaN" else value for key, value in summary.items()}
    return {key: value for key, value in values.items() if key != "images" or isinstance(value, dict)}


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """Write equivalent configs alike.

    Keys that are younger than the run get their defaults. If dropout was set place by place, `dropout.rate` is the
    highest of these.
    """
    places = (config.get(f"dropout.{place}") for place in ("blocks", "head", "stochastic_depth"))
    rates = [rate for rate in places if isinstance(rate, (int, float))]
    rate = {"dropout.rate": max(rates)} if rates else {}
    mode = {"trainer.compile_mode": "auto"} if config.get("trainer.compile_mode") == "default" else {}  # one run ID
    return {**defaults(), **config, **rate, **mode}


@cache
def defaults() -> dict[str, Any]:
    return {key: frozen(value) for key, value, _ in keys_of(Config()) if value != MISSING and value != []}


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Flatten a config to "section.key" → hashable value."""
    return frozen_values(dict(flatten(tree)))


def frozen_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if key == "study.reference" else frozen(value) for key, value in values.items()}


def frozen(value: Any) -> Any:
    """Make a config's value hashable."""
    if isinstance(value, list):
        return tuple(frozen(part) for part in value)
    return json.dumps(value, default=str) if isinstance(value, dict) else value


def equal(a: Any, b: Any) -> bool:
    if number(a) is not None and number(b) is not None:
        return math.isclose(a, b)
    return frozen(a) == frozen(b)
