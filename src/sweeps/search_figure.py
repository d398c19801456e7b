"""A search as a figure: the objective over the values of each searched key, a point for each trial."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from comparison.formatting import count, shorten
from sweeps.outcome import completed, objective, sign, was_spared
from sweeps.trials import seed_values
from tracking.plots import COLORS, GREY, PAGE, STYLE

LOOKS: dict[str, dict[str, Any]] = {  # of the points, by what became of the trial
    "pruned, its best epoch until then": {"color": GREY, "marker": "x"},
    "completed": {"color": COLORS[0], "marker": "o"},
    "completed, the rest of its seeds given up": {"color": COLORS[0], "marker": "o", "markerfacecolor": "white"},
    "completed, though the pruner chose it": {"color": COLORS[1], "marker": "D", "markersize": 4},
    "best": {"color": "black", "marker": "o", "markerfacecolor": "none", "markersize": 8},
}
FAR = 4  # times the median distance from the best: what is farther away is drawn on the panel's edge


@dataclass(frozen=True)
class Point:
    """A trial as it is drawn; percent where the objective is an accuracy."""

    trial: FrozenTrial
    look: str
    objective: float
    seeds: list[float] = field(default_factory=list)


def search_figure(study: optuna.Study, monitor: str, n_seeds: int, shares: Mapping[str, float]) -> Figure | None:
    """A panel for each key, the most important first; a line spans a trial's seeds. None if no trial completed."""
    if not completed(study):
        return None
    unit = 100 if monitor.endswith("accuracy") else 1
    points = points_of(study, n_seeds, unit)
    space = study.best_trial.distributions
    keys = sorted(space, key=lambda key: -shares.get(key, 0.0))
    columns = 2 if len(keys) == 4 else min(3, len(keys))
    rows = math.ceil(len(keys) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 0.5 + 2.1 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        low, high = limits(points, sign(study))
        panels[0, 0].set_ylim(low, high)
        for axes, key in zip(panels.flat, keys, strict=False):
            draw_points(axes, points, key, space[key])
            axes.set_title(key + (f": importance {shares[key]:.0%}" if key in shares else ""))
        for axes in panels[:, 0]:
            axes.set_ylabel(f"{monitor}, %" if unit == 100 else monitor)
        for axes in panels.flat[len(keys) :]:
            axes.set_axis_off()
        far = sum(not low <= point.objective <= high for point in points)
        title = count(len(points) - 1, "trial") + (f", {far} of them far worse: on the edge" if far else "")
        figure.suptitle(title, fontsize=8, x=0.01, ha="left")
        present = {point.look for point in points}
        handles = [Line2D([], [], linestyle="none", label=look, **LOOKS[look]) for look in LOOKS if look in present]
        figure.legend(handles=handles, loc="outside lower left", ncols=3, handletextpad=0.2, borderpad=0)
    return figure


def points_of(study: optuna.Study, n_seeds: int, unit: float) -> list[Point]:
    """Of the trials that have an objective; the best one twice."""
    seeds = seed_values(study)
    points = []
    for trial in study.trials:
        if trial.state == TrialState.PRUNED and trial.intermediate_values:
            reached = max(trial.intermediate_values.values(), key=lambda value: sign(study) * value)
            points.append(Point(trial, "pruned, its best epoch until then", unit * reached))
        elif trial.state == TrialState.COMPLETE:
            values = [unit * value for value in seeds.get(trial.number, [])]
            look = "completed"
            if len(values) in range(1, n_seeds):
                look = "completed, the rest of its seeds given up"
            if was_spared(trial):
                look = "completed, though the pruner chose it"
            points.append(Point(trial, look, unit * objective(trial), values))
    return [*points, Point(study.best_trial, "best", unit * study.best_value)]


def draw_points(axes: Axes, points: Sequence[Point], key: str, values: BaseDistribution) -> None:
    """The objective over a key; the trials of one choice side by side."""

    def place(point: Point) -> float:
        value = point.trial.params[key]
        if isinstance(values, CategoricalDistribution):
            return values.choices.index(value) + 0.5 * ((0.618 * point.trial.number) % 1 - 0.5)
        return float(value)

    low, high = axes.get_ylim()
    edge = 0.025 * (high - low)
    for look, style in LOOKS.items():
        drawn = [point for point in points if point.look == look]
        places = [place(point) for point in drawn]
        for x, point in zip(places, drawn, strict=True):
            if len(point.seeds) > 1:
                axes.vlines(x, min(point.seeds), max(point.seeds), color=style["color"], linewidth=0.7)
        shown = np.clip([point.objective for point in drawn], low + edge, high - edge)
        axes.plot(places, shown, linestyle="none", **style)
    if isinstance(values, CategoricalDistribution):
        names = [shorten(str(choice), 16) for choice in values.choices]
        axes.set_xticks(range(len(names)), names, rotation=30 if sum(map(len, names)) > 30 else 0)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif getattr(values, "log", False):
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=isinstance(values, IntDistribution)))
    axes.grid(axis="y", alpha=0.3, linewidth=0.5)
    axes.set_axisbelow(True)


def limits(points: Sequence[Point], sign: int) -> tuple[float, float]:
    """What the panels show: trials at chance level would press all others together."""
    values = np.array([value for point in points for value in (point.objective, *point.seeds)])
    best = sign * (sign * values).max()
    distances = np.abs(values - best)
    far = FAR * np.median(distances[distances > 0]) if distances.any() else 0.0
    farthest = distances[distances <= far].max()
    margin = 0.07 * farthest or 0.01 * abs(best) or 1.0
    low, high = sorted((best + sign * margin, best - sign * (farthest + 2 * margin)))
    return low, high
