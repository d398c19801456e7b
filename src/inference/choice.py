"""The choice of a sweep's run: the best one by default, or outputs/SWEEP#3, outputs/SWEEP#depth=8, #depth=8#2."""

import logging
from pathlib import Path

from comparison.filters import filter_runs
from comparison.results import by_preference, is_lower_better
from comparison.runs import Run, read_runs
from config.errors import ConfigError
from rendering.formatting import figure_text
from runtime.console import count

log = logging.getLogger(__name__)


def choose_run(checkpoint: str) -> str:
    """Replace a sweep's folder by the folder of its best completed run; return other values unchanged.

    Args:
        checkpoint: Path that may end in #NUMBER, a place in the ranking, and in #KEY=VALUE, a filter.

    Raises:
        ConfigError: No run fits, or the runs cannot be ranked.
    """
    path, *parts = [checkpoint] if Path(checkpoint).exists() else checkpoint.split("#")
    folder = Path(path)
    if not folder.is_dir() or (folder / "config.yaml").exists():
        return checkpoint
    runs = [run for run in read_runs([folder]) if run.status == "completed"]
    if not runs or (len(runs) == 1 and not parts):
        return path
    key = f"checkpoint={checkpoint}"
    places = [int(part) for part in parts if part.isdecimal()]
    try:
        for condition in (part for part in parts if not part.isdecimal()):
            runs = filter_runs(runs, condition)
    except ConfigError as error:
        raise ConfigError(f"{key}: {str(error).removeprefix('--filter ')}") from error
    place = places[0] if places else 1
    if len(places) > 1 or not 1 <= place <= len(runs):
        raise ConfigError(f"{key}: {count(len(runs), 'completed run')}; expected #1 to #{len(runs)}, or another filter")
    run = runs[0] if len(runs) == 1 else rank(runs, key)[place - 1]
    metric = monitor(run)
    value = run.figure("objective")
    reached = "" if value is None else f", {figure_text(value, metric)} {metric}"
    log.info(f"{key}: number {place} of {count(len(runs), 'completed run')}{reached} → {run.folder}")
    return str(run.folder)


def rank(runs: list[Run], key: str) -> list[Run]:
    """Sort by the monitored metric, the best first, and equal runs as a comparison does.

    Raises:
        ConfigError: The runs have no metric in common.
    """
    if len({(monitor(run), run.config.get("data.name")) for run in runs}) > 1:
        raise ConfigError(f"{key}: the runs differ in trainer.monitor or data.name. Fix: add a filter, #KEY=VALUE")
    if any(run.figure("objective") is None for run in runs):
        raise ConfigError(f"{key}: runs without validation cannot be ranked. Fix: a run's folder, or #KEY=VALUE")
    sign = 1 if is_lower_better(monitor(runs[0])) else -1
    return sorted(by_preference(runs), key=lambda run: sign * (run.figure("objective") or 0))


def monitor(run: Run) -> str:
    return str(run.config.get("trainer.monitor"))
