"""Runs read from their folders or from W&B's server."""

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
    config: Mapping[str, Any]  # values by "section.key"
    summary: Mapping[str, Any]  # content of summary.json

    @property
    def status(self) -> str:
        """`completed`, `failed`, `interrupted`, `pruned`, `running`, `unreadable`."""
        return self.summary.get("status", "unreadable")

    @property
    def seed(self) -> int:
        return self.config.get("seed", 0)

    @property
    def run_id(self) -> str:
        """The run ID; that of an unreadable run is at the end of the folder's name only."""
        return self.summary.get("run_id") or self.folder.name.rpartition("-")[2]

    @property
    def reason(self) -> str:
        """The reason for a missing result, in one line."""
        if self.status in ("interrupted", "running", "pruned"):
            return f"after {self.summary.get('epochs', 0)} of {self.config.get('trainer.epochs', '?')} epochs"
        lines = str(self.summary.get("error") or "").splitlines()
        return lines[0] if lines else ""

    @property
    def overrides(self) -> Mapping[str, Any]:
        """The run's overrides by key or group."""
        return self.summary.get("overrides") or {}

    @property
    def varied(self) -> Sequence[str]:
        """The keys that vary in the run's sweep; all overrides of a single run."""
        return self.summary.get("varied") or list(self.overrides)

    def figure(self, name: str) -> float | None:
        """Look up a number in the summary; `val/…` and `train/…` are of the best epoch. None if it is not a number."""
        return number(self.entry(name))

    def entry(self, name: str) -> Any:
        """Look up a number or text in the summary."""
        return self.summary.get(f"best/{name}" if name.startswith(("val/", "train/")) else name)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """The rows of metrics.csv; none if the file cannot be read."""
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
    """A run, read from W&B's server.

    Attributes:
        folder: ENTITY/PROJECT/ID on the server.
        source: wandb.apis.public.Run.
    """

    source: Any

    @cached_property
    def epochs(self) -> pd.DataFrame:
        history = self.source.history(samples=10_000, pandas=False)
        rows = ({key: number(value) for key, value in row.items()} for row in history if isinstance(row, dict))
        of_epochs = (row for row in rows if row.get("epoch") is not None)  # not progress within an epoch
        return pd.DataFrame(of_epochs).astype(float)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read all runs in or below the folders, each once, in the folders' order."""
    run_folders: dict[Path, None] = {}
    for folder in folders:
        inside = []
        for path, below, files in os.walk(folder.resolve()):
            if {"config.yaml", "summary.json"} & set(files):
                inside.append(Path(path))
                below.clear()
            below[:] = [name for name in below if not name.startswith(".")]
        run_folders |= dict.fromkeys(sorted(inside))
    return [read_run(folder) for folder in run_folders]


def without_copies(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Run, Run]]]:
    """Drop copies of runs; return the other runs, and pairs of a copy and its original.

    Copies share their W&B ID. The original is a completed run if there is one, then the run with most epochs.
    """
    by_id: dict[Any, list[Run]] = {}
    for run in runs:
        by_id.setdefault(run.summary.get("wandb_id", run.folder), []).append(run)

    def rank(run: Run) -> tuple[Any, ...]:
        return run.status != "completed", -(run.figure("epochs") or 0), isinstance(run, WandbRun), len(str(run.folder))

    originals, copies = [], []
    for runs_of_id in by_id.values():
        best, *others = sorted(runs_of_id, key=rank)
        originals.append(best)
        copies += [(other, best) for other in others if not isinstance(other, WandbRun)]
    return originals, copies


def read_run(folder: Path) -> Run:
    """Read a run's folder; if a file cannot be read, the run has status unreadable and the error."""
    config: dict[str, Any] = {}
    file = folder / "config.yaml"
    try:
        values = parse_sections(read_text(file))
        config = comparable(values)
        file = folder / "summary.json"
        summary = check_type(Summary, json.loads(read_text(file)))
        if is_damaged(values, summary.get("data_fingerprint"), folder.name):
            file = folder / "config.yaml"
            raise ValueError("is damaged: its values do not give the ID at the end of the folder's name")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:
        return unreadable(folder, config, f"{file.name}: {problem}")
    if summary.get("status") == "interrupted" and is_locked(folder):
        summary["status"] = "running"
    return Run(folder, config, summary)


def unreadable(folder: Path, config: Mapping[str, Any], problem: str) -> Run:
    return Run(folder, config, {"status": "unreadable", "error": " ".join(problem.split())})


def parse_sections(text: str) -> dict[str, Any]:
    """Parse config.yaml by section with a cache, because runs of a sweep share most sections."""
    return {key: value for section in re.split(r"(?m)^(?=\w)", text) for key, value in parse_section(section)}


@lru_cache(maxsize=4096)
def parse_section(section: str) -> tuple[tuple[str, Any], ...]:
    values = dict(flatten(check_type(dict[str, Any], load_yaml(section) or {})))
    check_config_types(values)
    return tuple(frozen_values(values).items())


def read_wandb(path: str) -> list[Run]:
    """Read the runs of ENTITY/PROJECT or ENTITY/PROJECT/SWEEP, where SWEEP is `sweep` or the ID of a W&B sweep.

    Raises:
        ConfigError: The project is unknown, there is no login, or the server cannot be reached.
    """
    import wandb  # takes seconds

    entity, project, sweep = [*path.split("/"), "", ""][:3]
    if not entity or not project or path.count("/") > 2:
        raise ConfigError(f"--wandb {path}: expected ENTITY/PROJECT or ENTITY/PROJECT/SWEEP")
    filters = {"$or": [{"sweep": sweep}, {"group": sweep}]} if sweep else {}
    try:
        sources = list(wandb.Api().runs(f"{entity}/{project}", filters=filters, lazy=False))
    except Exception as error:  # the client documents no list
        raise ConfigError(f"--wandb {path}: {str(error).splitlines()[0]}") from error
    order = {key: place for place, (key, *_) in enumerate(keys_of(Config()))}  # the server keeps no order
    runs: list[Run] = []
    for run in sources:
        folder = Path(*run.path)
        unfinished = "running" if run.state == "running" else "interrupted"
        try:
            tree = check_type(dict[str, Any], run.config)
            config = {key: value for key, value in flatten(tree) if key not in GROUPS}  # W&B sweeps add groups
            check_config_types(config)
            figures = of_wandb(check_type(dict[str, Any], run.summary_metrics))
            summary = check_type(Summary, {"status": unfinished, **figures})
        except (ValueError, RecursionError) as problem:
            runs.append(unreadable(folder, {}, f"{run.url}: {problem}"))
            continue
        config = dict(sorted(config.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))
        runs.append(WandbRun(folder, comparable(frozen_values(config)), summary, run))
    return runs


def of_wandb(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Convert W&B's summary to that of summary.json: NaN is text there, and `images` a number until the run ends."""
    values = {key: math.nan if value == "NaN" else value for key, value in summary.items()}
    return {key: value for key, value in values.items() if key != "images" or isinstance(value, dict)}


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """Normalize a config, so that equal trainings have equal configs.

    Keys that are newer than the run get their default. If dropout was set by place, `dropout.rate` follows from it.
    """
    places = (config.get(f"dropout.{place}") for place in ("blocks", "head", "stochastic_depth"))
    rates = [rate for rate in places if isinstance(rate, (int, float))]
    rate = {"dropout.rate": max(rates)} if rates else {}
    # Both compile modes have one run ID.
    mode = {"trainer.compile_mode": "auto"} if config.get("trainer.compile_mode") == "default" else {}
    return {**defaults(), **config, **rate, **mode}


@cache
def defaults() -> dict[str, Any]:
    return {key: frozen(value) for key, value, _ in keys_of(Config()) if value != MISSING and value != []}


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Flatten a config to hashable values by "section.key"."""
    return frozen_values(dict(flatten(tree)))


def frozen_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if key == "study.reference" else frozen(value) for key, value in values.items()}


def frozen(value: Any) -> Any:
    """Convert a config's value to a hashable one."""
    if isinstance(value, list):
        return tuple(frozen(part) for part in value)
    return json.dumps(value, default=str) if isinstance(value, dict) else value


def equal(a: Any, b: Any) -> bool:
    if number(a) is not None and number(b) is not None:
        return math.isclose(a, b)
    return frozen(a) == frozen(b)
