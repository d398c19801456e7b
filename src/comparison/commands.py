"""Commands that run more seeds of some settings."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from comparison.runs import Run
from comparison.settings import Setting
from config.command_line import as_text, command_line, override, seed_override
from config.schema import CONF, GROUPS, register
from stats.factors import order
from tracking.identity import is_safe, repeatable

UNNAMED = ("seed", "sweep", "varied", "notes")  # the command names these itself, or they are about one run


def commands(settings: Sequence[Setting], seeds: Sequence[int]) -> tuple[str, ...]:
    """Make the commands that run the settings with these seeds, and no other run.

    One command if the settings are a grid, else one for each; none if a run does not record its overrides, if these
    are not safe to repeat, or if its experiment no longer exists.
    """
    runs = [setting.runs[0] for setting in settings]
    named = [named_keys(run) for run in runs]
    if not seeds or any(keys is None for keys in named):
        return ()
    keys = dict.fromkeys([*(key for own in named for key in own or ()), "sweep"])
    rows = [{key: value_of(run, key) for key in keys if key in GROUPS or has_value(run, key)} for run in runs]
    if not all(is_safe(key, value) for row in rows for key, value in row.items()):
        return ()
    values = {key: distinct([row[key] for row in rows if key in row]) for key in keys}
    is_grid = (
        all(row.keys() == rows[0].keys() for row in rows)
        and math.prod(map(len, values.values())) == len({tuple(map(as_text, row.values())) for row in rows})
        and not any(None in values[key] and len(values[key]) > 1 for key in values if key in GROUPS)
        and len(values["sweep"]) == 1
    )
    if is_grid:
        grids = [values]
    else:  # each with the keys that it was started with
        grids = [
            {key: [value] for key, value in row.items() if key in (*(own or ()), "sweep")}
            for row, own in zip(rows, named, strict=True)
        ]
    return tuple(
        command_line("train", "-m", *(word(key, levels) for key, levels in grid.items()), seed_override(seeds))
        for grid in grids
    )


def word(key: str, levels: Sequence[Any]) -> str:
    """Format a key with its values; if nothing is chosen from a group, remove the experiment's choice."""
    is_nothing = key in GROUPS and list(levels) == [None]
    return f"~hydra.sweeper.params.{key}" if is_nothing else override(key, *levels)


def named_keys(run: Run) -> list[str] | None:
    """List the keys that a command must name: the run's overrides, and the keys that its experiment sweeps over.

    None if they are not known.
    """
    overrides = repeatable(run.summary.get("overrides"))
    if overrides is None:
        return None
    experiment = value_of(run, "experiment")
    swept = swept_by(experiment) if experiment else ()
    if swept is None:
        return None
    typed = [key for key, value in overrides.items() if key not in GROUPS or value is not None]  # without ~GROUP
    return [key for key in dict.fromkeys([*typed, *swept]) if key not in UNNAMED]


@cache
def swept_by(experiment: str) -> tuple[str, ...] | None:
    """List the keys that `-m experiment=…` sweeps over by itself; None if there is no such experiment."""
    register()
    is_sweep = GlobalHydra.instance().is_initialized()  # at the end of one, and not for compare.py
    try:
        with nullcontext() if is_sweep else initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("train", [override("experiment", experiment)], return_hydra_config=True)
    except HydraException:
        return None
    return tuple(composed.hydra.sweeper.params or ())


def has_value(run: Run, key: str) -> bool:
    return any(key in source for source in sources(run))


def value_of(run: Run, key: str) -> Any:
    """Return a key's value or a group's option; None for a group without a choice."""
    return next((source[key] for source in sources(run) if key in source), None)


def sources(run: Run) -> list[Any]:
    return [run.overrides, run.summary.get("choices") or {}, run.config]


def distinct(values: Sequence[Any]) -> list[Any]:
    """Sort values, each once."""
    return list({as_text(value): value for value in sorted(values, key=order)}.values())
