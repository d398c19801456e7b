"""Filters of runs: KEY=VALUE, also with !=, >, <, >= and <=.

pandas' query would not do: a key's values can be of several types, which a column forces into one.
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


def filter_runs(runs: Sequence[Run], condition: str) -> list[Run]:
    """Keep the runs that meet a condition such as "kernel_size>3", "dropout!=none", "status!=failed" or "device=cpu".

    Raises:
        ConfigError: The condition cannot be parsed, or no run has the key.
    """
    parts = re.fullmatch(r"\s*([\w./]+)\s*(!=|>=|<=|=|>|<)\s*(.*?)\s*", condition, re.DOTALL)
    if not parts:
        raise ConfigError(f"--filter {condition}: expected KEY=VALUE, or !=, >, <, >=, <= in place of =")
    key, sign, text = find_key(parts[1], runs), parts[2], parts[3]
    expected = parse_value(text, condition)

    def meets(run: Run) -> bool:
        level = value(run, key)
        if sign in ("=", "!="):
            # A string may look like a number, e.g. sweep=123.
            fits = equal(level, expected) or (isinstance(level, str) and level == text)
            if key in GROUPS:
                fits = has_option(run, key, expected if expected is None else text)
            return fits == (sign == "=")
        try:
            return level is not None and ORDERS[sign](level, expected)
        except TypeError:
            return False

    return [run for run in runs if meets(run)]


def parse_value(text: str, condition: str) -> Any:
    try:
        return float(text)  # YAML parses 1e-2 as a string
    except ValueError:
        pass
    try:
        parsed = load_yaml(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--filter {condition}: {text} is not a YAML value; quote it, e.g. KEY='\"a: b\"'") from error
    return text if isinstance(parsed, date) else parsed  # a sweep's name may be a date


def value(run: Run, key: str) -> Any:
    """Look up a config key, a group, a metric, `status` or another entry of the summary."""
    if key in GROUPS:
        return options_of(run)[key]
    if key == "status":
        return run.status
    return run.config[key] if key in run.config else run.entry(key)


def find_key(name: str, runs: Sequence[Run]) -> str:
    """Complete the name of a config key, a group or a metric.

    Raises:
        ConfigError: No run has the key, or several keys end in this name.
    """
    keys = dict.fromkeys([*(key for run in runs for key in run.config), *GROUPS])
    figures = {key.removeprefix("best/") for run in runs for key in run.summary if run.summary[key] is not None}
    if name in keys or name in figures or not runs:
        return name
    fitting = [key for key in keys if key.endswith(f".{name}")]
    if len(fitting) == 1:
        return fitting[0]
    names = dict.fromkeys([*keys, *figures, *(key.rpartition(".")[2] for key in keys)])
    close = fitting or difflib.get_close_matches(name, list(names))
    raise ConfigError(
        f"{name}: {'fits several keys' if fitting else 'no run has such a key or figure'}"
        + (f"; did you mean {' or '.join(close)}?" if close else "")
    )
