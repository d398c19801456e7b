"""Commands that run more seeds of some settings."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from comparison.runs import Run, WandbRun
from comparison.settings import Setting
from config.command_line import as_text, command_line, override, seed_override
from config.schema import CONF, GROUPS, register
from stats.factors import order
from tracking.identity import is_safe, repeatable

UNNAMED = ("seed", "sweep", "varied", "notes")  # the command sets these itself, or they belong to one run
PLACE = ("output_dir", "sweep")  # the folder of a command's runs


def train_commands(settings: Sequence[Setting], seeds: Sequence[int]) -> tuple[str, ...]:
    """Make the commands that run these settings with these seeds, and no other runs.

    A grid of settings gets one command, other settings one each. There is none if a run has no record of its overrides,
    if these are not safe to repeat, or if its experiment no longer exists.
    """
    runs = [setting.runs[0] for setting in settings]
    keys_of_runs = [named_keys(run) for run in runs]
    if not seeds or any(keys is None for keys in keys_of_runs):
        return ()
    named = (key for keys in keys_of_runs for key in keys or ())
    keys = dict.fromkeys([*named, *(key for run in runs for key in folder_overrides(run)), "sweep"])
    values_of_runs = [recorded_values(run) for run in runs]
    rows = [{key: of_run.get(key) for key in keys if key in GROUPS or key in of_run} for of_run in values_of_runs]
    if not all(is_safe(key, value) for row in rows for key, value in row.items()):
        return ()
    values = {key: distinct_values([row[key] for row in rows if key in row]) for key in keys}
    is_grid = (
        all(row.keys() == rows[0].keys() for row in rows)
        and math.prod(map(len, values.values())) == len({tuple(map(as_text, row.values())) for row in rows})
        and not any(None in values[key] and len(values[key]) > 1 for key in values if key in GROUPS)
        and all(len(values[key]) == 1 for key in PLACE if key in values)
    )
    if is_grid:
        grids = [values]
    else:  # a command with its own keys for each run
        grids = [
            {key: [value] for key, value in row.items() if key in (*(run_keys or ()), *PLACE)}
            for row, run_keys in zip(rows, keys_of_runs, strict=True)
        ]
    return tuple(
        command_line("train", "-m", *(word(key, levels) for key, levels in grid.items()), seed_override(seeds))
        for grid in grids
    )


def word(key: str, levels: Sequence[Any]) -> str:
    """Write a key with its values as an override; no option of a group means removing the experiment's choice."""
    is_nothing = key in GROUPS and list(levels) == [None]
    return f"~hydra.sweeper.params.{key}" if is_nothing else override(key, *levels)


def named_keys(run: Run) -> list[str] | None:
    """List the keys that a command must set: the run's overrides, and the keys that its experiment sweeps over.

    The result is None if these are unknown.
    """
    overrides = repeatable(run.summary.get("overrides"))
    if overrides is None:
        return None
    experiment = recorded_values(run).get("experiment")
    swept = swept_by(experiment) if experiment else ()
    if swept is None:
        return None
    set_keys = [key for key, value in overrides.items() if key not in GROUPS or value is not None]  # without ~GROUP
    return [key for key in dict.fromkeys([*set_keys, *swept]) if key not in UNNAMED]


@cache
def swept_by(experiment: str) -> tuple[str, ...] | None:
    """List the keys that `-m experiment=…` sweeps over by default; None if the experiment is unknown."""
    register()
    is_sweep = GlobalHydra.instance().is_initialized()  # at the end of a sweep, but not in compare.py
    try:
        with nullcontext() if is_sweep else initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("train", [override("experiment", experiment)], return_hydra_config=True)
    except HydraException:
        return None
    return tuple(composed.hydra.sweeper.params or ())


def folder_overrides(run: Run) -> dict[str, str]:
    """Return the overrides of a run's folder: `sweep`, and `output_dir` if the folder was moved.

    A run on W&B's server has none.
    """
    if isinstance(run, WandbRun):
        return {}
    sweep = run.folder.parent
    recorded = {"output_dir": "outputs", **run.config, **run.overrides}["output_dir"]
    is_there = Path(str(recorded)).resolve() == sweep.parent
    return ({} if is_there else {"output_dir": short_path(sweep.parent)}) | {"sweep": sweep.name}


def short_path(path: Path) -> str:
    """Write a path relative to the working directory if it is below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def recorded_values(run: Run) -> dict[str, Any]:
    """Collect the values of keys and the options of groups, for the folder in which the run lies now."""
    return {**run.config, **(run.summary.get("choices") or {}), **run.overrides, **folder_overrides(run)}


def distinct_values(values: Sequence[Any]) -> list[Any]:
    """Sort the values, each once."""
    return list({as_text(value): value for value in sorted(values, key=order)}.values())
