"""Two factors of a comparison crossed: the mean of the metric for every combination of their levels."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comparison.results import Comparison


@dataclass(frozen=True)
class Crossing:
    """Means for every combination of the levels of two factors.

    Attributes:
        factors: The two factors.
        means: [levels of the first, levels of the second], NaN without a run.
        is_fair: True if all are means over the same settings of the other factors.
    """

    factors: tuple[str, str]
    means: NDArray[np.float64]
    is_fair: bool


def cross(comparison: Comparison) -> Crossing | None:
    """Cross the two factors with the most levels; None if most of their combinations have no result."""
    levels = {key: comparison.levels(key) for key in comparison.factors}
    chosen = sorted((key for key in levels if len(levels[key]) > 1), key=lambda key: -len(levels[key]))[:2]
    if len(chosen) < 2 or max(len(levels[key]) for key in chosen) > 20:
        return None
    first, second = chosen
    combinations = {(setting.levels[first], setting.levels[second]) for setting in comparison.valued}
    if 2 * len(combinations) <= len(levels[first]) * len(levels[second]):
        return None
    return Crossing((first, second), *means_by_levels(comparison, first, second))


def means_by_levels(comparison: Comparison, first: str, second: str) -> tuple[NDArray[np.float64], bool]:
    """Compute the mean of each cell, [levels of the first, levels of the second], NaN without a result.

    A cell is the mean over the settings of all other factors that every cell has. If there are none, it is the mean
    over the cell's own settings.

    Returns:
        The cells, and whether they are means over common settings.
    """
    others = [key for key in comparison.factors if key not in (first, second)]
    cells: dict[tuple[Any, Any], dict[tuple[Any, ...], float]] = defaultdict(dict)
    for setting in comparison.valued:
        of_others = tuple(setting.levels[key] for key in others)
        cells[setting.levels[first], setting.levels[second]][of_others] = comparison.mean(setting) or 0.0
    common = set.intersection(*(set(cell) for cell in cells.values()))
    rows, columns = comparison.levels(first), comparison.levels(second)
    means = np.full((len(rows), len(columns)), np.nan)
    for (row, column), cell in cells.items():
        values = [mean for of_others, mean in cell.items() if of_others in common or not common]
        means[rows.index(row), columns.index(column)] = np.mean(values)
    return means, bool(common)
