"""Filters of runs: KEY=VALUE, also with !=, >, <, >= and <=.

They are applied run by run, as a table's columns would force the values of a key into one type.
"""

import difflib
import operator
import re
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import yaml

from comparison.options import has_option, options_of
from comparison.runs import Run, equal
from config.errors import ConfigError
from config.schema import GROUPS
from config.typed import load_yaml

ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


def keep(runs: Sequence[Run], condition: str) -> list[Run]:
    """Select the runs that meet a condition such as "kernel_size>3", "dropout!=none", "status!=failed" or "device=cpu".

    Raises:
        ConfigError: it cannot be understood, or no run has the key.
    """
    parts = re.fullmatch(r"\s*([\w./]+)\s*(!=|>=|<=|=|>|<)\s*(.*?)\s*", condition, re.DOTALL)
    if not parts:
        raise ConfigError(f"--filter {condition}: expected KEY=VALUE, or !=, >, <, >=, <= in place of =")
    key, sign, text = find_key(parts[1], runs), parts[2], parts[3]
    wanted = value_of(text, condition)

    def meets(run: Run) -> bool:
        own = value(run, key)
        if sign in ("=", "!="):
            # A word may look like a number, e.g. sweep=123.
            fits = equal(own, wanted) or (isinstance(own, str) and own == text)
            if key in GROUPS:
                fits = has_option(run, key, wanted if wanted is None else text)
            return fits == (sign == "=")
        try:
            return own is not None and ORDERS[sign](own, wanted)
        except TypeError:
            return False

    return [run for run in runs if meets(run)]


def value_of(text: str, condition: str) -> Any:
    try:
        return float(text)  # YAML takes 1e-2 for a word
    except ValueError:
        pass
    try:
        parsed = load_yaml(text)
        return text if isinstance(parsed, date) else parsed  # sweeps may be named by their day
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--filter {condition}: {text} is no YAML value; quote it, e.g. KEY='\"a: b\"'") from error


def value(run: Run, key: str) -> Any:
    """Return a run's value of a config key, a group, a figure, `status` or another key of the summary."""
    if key in GROUPS:
        return options_of(run)[key]
    if key == "status" or key not in run.config:
        return {"status": run.status}.get(key, run.told(key))
    return run.config[key]


def find_key(name: str, runs: Sequence[Run]) -> str:
    """Find the full name of a config key, a group or a figure.

    Raises:
        ConfigError: no run has it, or the short name fits several.
    """
    keys = dict.fromkeys([*(key for run in runs for key in run.config), *GROUPS])
    figures = {key.removeprefix("best/") for run in runs for key in run.summary if run.summary[key] is not None}
    if name in keys or name in figures or not runs:
        return name
    fitting = [key for key in keys if key.endswith(f".{name}")]
    if len(fitting) == 1:
        return fitting[0]
    close = fitting or difflib.get_close_matches(name, [*keys, *figures, *(key.rpartition(".")[2] for key in keys)])
    raise ConfigError(
        f"{name}: {'fits several keys' if fitting else 'no run has such a key or figure'}"
        + (f"; did you mean {' or '.join(close)}?" if close else "")
    )
