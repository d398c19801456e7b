"""The figure of a search: the objective over the values of each searched key, a point for each trial."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import optuna
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from comparison.formatting import count, shorten
from stats.importance import Importance
from sweeps.search_findings import importance_text
from sweeps.trials import completed, seed_values, sign
from tracking.plots import COLORS, GREY, PAGE, STYLE

LOOKS: dict[str, dict[str, Any]] = {  # of the points, by what became of the trial
    "pruned, its best epoch until then": {"color": GREY, "marker": "x"},
    "completed": {"color": COLORS[0], "marker": "o"},
    "best": {"color": "black", "marker": "o", "markerfacecolor": "none", "markersize": 8},
}
FAR = 4  # times the median distance from the best: what is farther away is drawn on the panel's edge


def search_figure(study: optuna.Study, monitor: str, found: Mapping[str, Importance]) -> Figure | None:
    """Draw a panel for each key, the most important first; a line spans a trial's seeds. None if no trial completed.

    Args:
        found: the importance of each key; see importance().
    """
    if not completed(study):
        return None
    unit = 100 if monitor.endswith("accuracy") else 1
    points = points_of(study, unit)
    space = study.best_trial.distributions
    keys = sorted(space, key=lambda key: -found[key].share if key in found else 0.0)
    columns = 2 if len(keys) == 4 else min(3, len(keys))
    rows = math.ceil(len(keys) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 0.5 + 2.1 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        low, high = limits(points, sign(study))
        panels[0, 0].set_ylim(low, high)
        for axes, key in zip(panels.flat, keys, strict=False):
            draw_points(axes, points, key, space[key])
            axes.set_title(key + (f": {importance_text(found[key])}" if key in found else ""))
        for axes in panels[:, 0]:
            axes.set_ylabel(f"{monitor}, %" if unit == 100 else monitor)
        for axes in panels.flat[len(keys) :]:
            axes.set_axis_off()
        far = (~points.objective.between(low, high)).sum()
        title = count(len(points) - 1, "trial") + (f", {far} of them far worse: on the edge" if far else "")
        figure.suptitle(title, fontsize=8, x=0.01, ha="left")
        present = set(points.look)
        handles = [Line2D([], [], linestyle="none", label=look, **LOOKS[look]) for look in LOOKS if look in present]
        figure.legend(handles=handles, loc="outside lower left", ncols=3, handletextpad=0.2, borderpad=0)
    return figure


def points_of(study: optuna.Study, unit: float) -> pd.DataFrame:
    """Collect the trials that have an objective, the best one twice.

    Columns are the values by key, `number`, `look`, `objective`, and `low` and `high`, the range over the seeds.
    """
    seeds, rows = seed_values(study), []
    for trial in study.trials:
        if trial.state == TrialState.PRUNED and trial.intermediate_values:
            found = [max(trial.intermediate_values.values(), key=lambda value: sign(study) * value)]
            look = "pruned, its best epoch until then"
        elif trial.state == TrialState.COMPLETE:
            found, look = seeds[trial.number], "completed"
        else:
            continue
        figures = {"objective": float(np.mean(found)), "low": min(found), "high": max(found)}
        own = {key: unit * value for key, value in figures.items()}
        rows.append({**trial.params, **own, "number": trial.number, "look": look})
    (best,) = [row for row in rows if row["number"] == study.best_trial.number]
    return pd.DataFrame([*rows, {**best, "look": "best"}])


def draw_points(axes: Axes, points: pd.DataFrame, key: str, values: BaseDistribution) -> None:
    """Draw the objective over a key, each trial at its value."""
    low, high = axes.get_ylim()
    edge = 0.025 * (high - low)
    if isinstance(values, CategoricalDistribution):
        places = points[key].map(values.choices.index)
        names = [shorten(str(choice), 16) for choice in values.choices]
        axes.set_xticks(range(len(names)), names, rotation=30 if sum(map(len, names)) > 30 else 0)
        axes.set_xlim(-0.5, len(names) - 0.5)
    else:
        places = points[key]
        if getattr(values, "log", False):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if places.max() < 100 * places.min() else (1,)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=isinstance(values, IntDistribution)))
    for look, style in LOOKS.items():
        drawn = points[points.look == look]
        axes.vlines(places[drawn.index], drawn.low, drawn.high, style["color"], linewidth=0.7)
        axes.plot(places[drawn.index], drawn.objective.clip(low + edge, high - edge), linestyle="none", **style)
    axes.grid(axis="y", alpha=0.3, linewidth=0.5)
    axes.set_axisbelow(True)


def limits(points: pd.DataFrame, sign: int) -> tuple[float, float]:
    """Choose the range of the panels; trials at chance level would compress all others."""
    values = points[["objective", "low", "high"]].to_numpy()
    best = sign * (sign * values).max()
    distances = np.abs(values - best)
    far = FAR * np.median(distances[distances > 0]) if distances.any() else 0.0
    farthest = distances[distances <= far].max()
    margin = 0.07 * farthest or 0.01 * abs(best) or 1.0
    low, high = sorted((best + sign * margin, best - sign * (farthest + 2 * margin)))
    return low, high
