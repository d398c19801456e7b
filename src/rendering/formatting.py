"""Formats of numbers and settings in sentences, tables and figures."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from comparison.results import COSTS, Comparison
from comparison.settings import Setting
from config.errors import format_value
from config.text import printable
from runtime.console import si
from stats import Estimate

Values = TypeVar("Values", float, NDArray[np.float64])

HEADINGS = {  # short column names
    "val/accuracy": "val %", "test/accuracy": "test %", "val/balanced_accuracy": "val balanced %",
    "test/balanced_accuracy": "test balanced %", "parameters": "params", "macs": "MACs",
    "seconds": "s", "images_per_second": "img/s", "peak_memory": "memory",
}  # fmt: skip

# Settings.


def label(setting: Setting, comparison: Comparison, width: int | None = None) -> str:
    """Name a setting by its factors, e.g. "kernel_size=9 depth=8"."""
    named = [f"{comparison.short(key)}={level_text(setting.levels[key], width)}" for key in comparison.factors]
    name = str(setting.runs[0].summary.get("name") or setting.runs[0].folder.name)
    words = named or [word for word in name.split() if not word.startswith("seed=")]
    return printable(" ".join(words)) or "baseline"


def listing(settings: Sequence[Setting], comparison: Comparison) -> str:
    named = ", ".join(label(setting, comparison) for setting in settings[:3])
    return f"{named} and {len(settings) - 3} more" if len(settings) > 3 else named


def without_result(setting: Setting) -> str:
    """Count the runs that are not completed, e.g. "1 failed, 2 running"."""
    counts = Counter(run.status for run in setting.runs if run.status != "completed")
    return ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))


def level_text(level: Any, width: int | None = None) -> str:
    """Write a config value as YAML does."""
    if isinstance(level, tuple):
        level = f"[{', '.join(level_text(part) for part in level)}]"
    return shorten(f"{level:g}" if isinstance(level, float) else printable(format_value(level)), width)


def shorten(text: str, width: int | None) -> str:
    """Leave out the middle of a long name, because names tend to differ at their ends."""
    if width is None or len(text) <= width:
        return text
    return f"{text[: width // 2]}…{text[len(text) - (width - width // 2 - 1) :]}"


# Numbers.


def number_text(estimate: Estimate | None, name: str, unit: str = " %") -> str:
    """Write a mean with half of its interval, e.g. "98.61 ± 0.43", and a cost without."""
    if estimate is None:
        return ""
    if name in COSTS or estimate.margin is None:
        return figure_text(estimate.value, name, unit)
    return f"{figure_text(estimate.value, name, '')} ± {figure_text(estimate.margin, name, unit)}"


def figure_text(number: float, name: str, unit: str = " %") -> str:
    if name.endswith("accuracy"):
        return f"{100 * number:.2f}{unit}"
    if name in ("seconds", "images_per_second"):
        return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"
    if name in ("parameters", "macs"):
        return si(number)
    return f"{si(number)}B" if name == "peak_memory" else f"{number:.4g}"


def change_text(change: float, name: str, unit: str = " points") -> str:
    if not name.endswith("accuracy"):
        return f"{change:+.4g}"
    return f"{round(100 * change, 2) + 0.0:+.2f}{unit}"  # + 0.0 turns -0.0 into 0.0


def p_text(p: float) -> str:
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def several(lines: Sequence[str], limit: int) -> list[str]:
    return list(lines) if len(lines) <= limit else [*lines[:limit], f"… and {len(lines) - limit} more"]


def scaled(value: Values, metric: str) -> Values:
    """Convert accuracies to percent."""
    return 100 * value if metric.endswith("accuracy") else value
