"""The figure of a comparison: learning curves, a heat map, costs, effects, and the reference beside ours."""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from comparison.effects import TIE, Effect
from comparison.findings import effect_name, label, level_text, shorten
from comparison.results import LOWER_IS_BETTER, Comparison, Row
from tracking.plots import COLORS, GREY, PAGE, STYLE

MARKERS = "os^DvPX"  # say what the colors say
LEVEL = 20  # characters of a level's name
MOST = 18  # lines of an effect plot, or beside the reference
COSTS = {"parameters": "parameters", "macs": "multiply-accumulates", "seconds": "training time, s"}

Draw = Callable[[Axes], None]
History = Sequence[dict[str, float | None]]  # the rows of metrics.csv


@dataclass(frozen=True)
class Look:
    """One setting as it is drawn in every panel."""

    row: Row
    label: str
    color: str
    marker: str


def comparison_figure(comparison: Comparison) -> Figure | None:
    """All panels that make sense for these runs; None if no run has a result.

    The best seven settings have a color and a marker of their own, all others are grey.
    """
    rows, metric = comparison.valued, comparison.metric
    if not rows:
        return None
    looks = [
        Look(row, label(row, comparison, LEVEL), color, marker)
        for row, color, marker in zip(rows, COLORS, MARKERS, strict=False)
    ]
    bands: list[tuple[float, list[Draw]]] = []  # height in inches, panels from left to right

    histories = [(look, [run.epochs() for run in look.row.completed]) for look in looks]
    above: list[Draw] = [lambda axes: learning_curves(axes, histories)]
    if pair := crossed_factors(comparison):
        above.append(lambda axes: heat_map(axes, comparison, *pair))
    bands.append((2.5, above))
    if len(rows) > 1:
        handles, columns = legend(looks, len(rows))
        bands.append(
            (0.1 + 0.16 * math.ceil(len(handles) / columns), [lambda axes: draw_legend(axes, handles, columns)])
        )
    if costs := [cost for cost in COSTS if varies(rows, cost)]:
        bands.append(
            (
                2.1,
                [
                    partial(tradeoff, rows=rows, looks=looks, metric=metric, cost=cost, is_first=cost == costs[0])
                    for cost in costs
                ],
            )
        )
    below: list[Draw] = []
    lines = 0.0
    if comparison.effects:
        lines = 0.4 + sum(1.4 + name.count("\n") for name in effect_names(comparison.effects, comparison)[:MOST])
        below.append(lambda axes: effect_plot(axes, comparison.effects, comparison))
    if referenced := [row for row in comparison.rows if row.reference]:
        lines = max(lines, 1.4 * min(MOST, len(referenced)))
        below.append(lambda axes: beside_reference(axes, referenced, comparison))
    if below:
        bands.append((0.7 + 0.13 * max(lines, 3), below))

    heights = [height for height, _ in bands]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, sum(heights)), layout="constrained")
        areas = figure.subfigures(len(bands), 1, height_ratios=heights, squeeze=False)[:, 0]
        for area, (_, draws) in zip(areas, bands, strict=True):
            for axes, draw in zip(area.subplots(1, len(draws), squeeze=False)[0], draws, strict=True):
                draw(axes)
    return figure


def legend(looks: Sequence[Look], settings: int) -> tuple[list[Line2D], int]:
    """The handles, and how many fit side by side."""
    handles = [Line2D([], [], color=look.color, marker=look.marker, label=shorten(look.label, 95)) for look in looks]
    if settings > len(looks):
        label = f"{settings - len(looks)} others"
        handles.append(Line2D([], [], color=GREY, marker=".", linestyle="none", label=label))
    widest = max(len(str(handle.get_label())) for handle in handles)
    lines = math.ceil(len(handles) / max(1, 105 // (widest + 9)))
    return handles, math.ceil(len(handles) / lines)


def draw_legend(axes: Axes, handles: list[Line2D], columns: int) -> None:
    axes.set_axis_off()
    axes.legend(handles=handles, loc="center", ncols=columns, handlelength=2, columnspacing=1.5, borderpad=0)


def learning_curves(axes: Axes, histories: Sequence[tuple[Look, Sequence[History]]]) -> None:
    """Accuracy by epoch: the mean over seeds, with a band of one standard deviation.

    Validation, or training where there was none; a single setting shows both.
    """
    validated = any(
        epoch.get("val/accuracy") is not None for _, runs in histories for epochs in runs for epoch in epochs
    )
    parts = [("val/accuracy", "-")] if validated else [("train/accuracy", "-")]
    if validated and len(histories) == 1:
        parts.append(("train/accuracy", "--"))
    seeds = max(len(runs) for _, runs in histories)
    late: list[float] = []  # accuracies after the first third: what the axis must show
    for look, runs in histories:
        for metric, line in parts:
            curves = [100 * curve for epochs in runs if len(curve := column(epochs, metric))]
            if not curves:
                continue
            shortest = min(map(len, curves))
            values = np.stack([curve[:shortest] for curve in curves])
            epochs = np.arange(1, shortest + 1)
            center, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(shortest)
            color = look.color if metric == parts[0][0] else GREY
            axes.fill_between(epochs, center - spread, center + spread, color=color, alpha=0.18, linewidth=0)
            axes.plot(epochs, center, line, color=color, marker=look.marker, markevery=max(1, shortest // 6),
                      markersize=3.5, label=metric)  # fmt: skip
            for edge in (center - spread, center + spread):
                late += edge[shortest // 3 :].tolist()
    if late and (margin := 0.05 * (max(late) - min(late))):
        axes.set_ylim(min(late) - margin, min(max(late) + margin, 100.5))
    if len(parts) > 1:
        axes.legend()
    band = ", mean ± std of the seeds" if seeds > 1 else ""
    axes.set(
        title=f"Learning curves{band}", xlabel="epoch", ylabel=f"{parts[0][0]}, %" if len(parts) == 1 else "accuracy, %"
    )
    if axes.dataLim.width:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    else:
        axes.set_xticks([1])
    axes.grid(alpha=0.25, linewidth=0.5)


def column(epochs: History, metric: str) -> NDArray[np.float64]:
    """A metric of all epochs; empty where it is not complete."""
    values = [epoch.get(metric) for epoch in epochs]
    return np.array([] if None in values else values, dtype=float)


def crossed_factors(comparison: Comparison) -> tuple[str, str] | None:
    """The two factors with the most levels, where most of their combinations have a result."""
    levels = {key: comparison.levels(key) for key in comparison.factors}
    chosen = sorted((key for key in levels if len(levels[key]) > 1), key=lambda key: -len(levels[key]))[:2]
    if len(chosen) < 2 or max(len(levels[key]) for key in chosen) > 20:
        return None
    met = {tuple(row.levels[key] for key in chosen) for row in comparison.valued}
    wide, high = sorted(chosen, key=lambda key: max(len(level_text(level)) for level in levels[key]))
    return (wide, high) if 2 * len(met) > math.prod(len(levels[key]) for key in chosen) else None


def heat_map(axes: Axes, comparison: Comparison, across: str, down: str) -> None:
    """The metric for every combination of two factors, the mean over all others; the best is framed."""
    metric = comparison.metric
    columns, rows = comparison.levels(across), comparison.levels(down)
    means = np.full((len(rows), len(columns)), np.nan)
    for i, j in np.ndindex(means.shape):
        found = [value for row in comparison.valued if (row.levels[down], row.levels[across]) == (rows[i], columns[j])
                 if (value := row.average(metric)) is not None]  # fmt: skip
        means[i, j] = scaled(float(np.mean(found)), metric) if found else np.nan
    lower = metric.endswith(LOWER_IS_BETTER)
    image = axes.imshow(means, cmap="cividis_r" if lower else "cividis", aspect="auto")
    middle = (np.nanmin(means) + np.nanmax(means)) / 2
    for i, j in np.ndindex(means.shape):
        if np.isnan(means[i, j]):
            axes.text(j, i, "–", ha="center", va="center", color=GREY)
        elif means.size <= 48:
            bright = (means[i, j] > middle) != lower
            axes.text(j, i, f"{means[i, j]:.2f}" if metric.endswith("accuracy") else f"{means[i, j]:.3g}",
                      ha="center", va="center", fontsize=7, color="black" if bright else "white")  # fmt: skip
    best = np.nanmin(means) if lower else np.nanmax(means)
    for i, j in np.argwhere(np.isclose(means, best, rtol=1e-9)):
        axes.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, fill=False, edgecolor=COLORS[1], linewidth=1.5))
    axes.set_xticks(range(len(columns)), [level_text(level, 14) for level in columns])
    axes.set_yticks(range(len(rows)), [level_text(level, LEVEL) for level in rows])
    if sum(min(14, len(level_text(level))) for level in columns) > 34:
        axes.tick_params("x", rotation=30)
    others = [comparison.short(key) for key in comparison.factors if key not in (across, down)]
    over = " and ".join(others) if len(" and ".join(others)) < 26 else "the other factors"
    title = axis_label(metric) + (f", mean over {over}" if others else "")
    axes.set(xlabel=comparison.short(across), ylabel=comparison.short(down), title=title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05).outline.set_visible(False)


def varies(rows: Sequence[Row], cost: str) -> bool:
    values = [value for row in rows if (value := row.average(cost)) is not None]
    return len(values) > 1 and max(values) > 1.02 * min(values)


def tradeoff(axes: Axes, rows: Sequence[Row], looks: Sequence[Look], metric: str, cost: str, is_first: bool) -> None:
    """The metric against a cost; a line joins the Pareto front, what nothing beats in both."""
    lower = metric.endswith(LOWER_IS_BETTER)
    points = [
        (x, scaled(y, metric), i)
        for i, row in enumerate(rows)
        if (x := row.average(cost)) is not None and (y := row.average(metric)) is not None
    ]
    front: list[tuple[float, float]] = []
    for x, y, _ in sorted(points, key=lambda point: (point[0], point[1] if lower else -point[1])):
        if not front or (y < front[-1][1] if lower else y > front[-1][1]):
            front.append((x, y))
    axes.step(*zip(*front, strict=True), where="post", color=GREY, linewidth=1, zorder=1)
    margins = [0.0]
    for x, y, i in reversed(points):
        if i >= len(looks):
            axes.plot(x, y, ".", color=GREY, markersize=3.5, zorder=2)
            continue
        estimate = rows[i].estimate(metric)
        margin = scaled(estimate.margin or 0.0, metric) if estimate else 0.0
        margins.append(margin)
        axes.errorbar(x, y, margin, color=looks[i].color, marker=looks[i].marker, elinewidth=0.8, zorder=3)
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    if max(xs) > 5 * min(xs) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if max(xs) < 100 * min(xs) else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}") if cost == "seconds" else EngFormatter(sep=" "))
    axes.margins(0.12)
    low, high = axes.get_ylim()  # a few intervals can be so wide that nothing else is to be seen
    room = max(0.8 * (max(ys) - min(ys)), 1.2 * float(np.median(margins)), 0.02 * abs(max(ys)))
    axes.set_ylim(max(low, min(ys) - room), min(high, max(ys) + room))
    axes.set_xlabel(COSTS[cost])
    if is_first:
        axes.set(title="Against cost (line: Pareto front)", ylabel=axis_label(metric))
    axes.grid(alpha=0.25, linewidth=0.5)


def effect_plot(axes: Axes, effects: Sequence[Effect], comparison: Comparison) -> None:
    """Each effect with its 95 % interval; filled where it is clear of noise, hollow where it is not."""
    metric = comparison.metric
    largest = sorted(range(len(effects)), key=lambda i: -abs(effects[i].change.value))[:MOST]
    shown = [effects[i] for i in sorted(largest)]
    for i, effect in enumerate(shown):
        change, color = effect.change, COLORS[0] if effect.is_clear else GREY
        if change.low is not None and change.high is not None:
            axes.plot([scaled(change.low, metric), scaled(change.high, metric)], [i, i], color=color)
        axes.plot(
            scaled(change.value, metric), i, "o", color=color, markerfacecolor=color if effect.is_clear else "white"
        )
    axes.axvline(0, color="black", linewidth=0.7, zorder=0)
    if all(abs(effect.change.value) < TIE for effect in shown) and not any(effect.p for effect in shown):
        axes.set_xlim(-1, 1)  # no effect at all: no range to see
    axes.set_yticks(range(len(shown)), effect_names(shown, comparison))
    axes.set_ylim(len(shown) - 0.4, -0.6)
    sure = any(effect.p is not None for effect in shown)
    which = f"{MOST} largest of {len(effects)} effects" if len(effects) > len(shown) else "Effects"
    one_seed = all(effect.change.n <= 2 * effect.pairs for effect in shown)
    interval = "95 % interval" if sure else "no interval" + (" with one seed" if one_seed else "")
    axes.set_title(f"{which}, {interval}")
    unit = "points" if metric.endswith("accuracy") else "change"
    axes.set_xlabel(f"{metric}, {unit}" + (" (filled: clear of noise)" if sure else ""))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x", alpha=0.25, linewidth=0.5)


def effect_names(effects: Sequence[Effect], comparison: Comparison) -> list[str]:
    return [textwrap.fill(effect_name(effect, comparison, LEVEL), 36) for effect in effects]


def beside_reference(axes: Axes, rows: Sequence[Row], comparison: Comparison) -> None:
    """Our mean and its 95 % interval, and the reference's value, for every setting that has one."""
    rows = rows[:MOST]
    for i, row in enumerate(rows):
        assert row.reference is not None
        metric = row.reference.metric
        ours, margin = row.reference.ours.value, row.reference.ours.margin or 0.0
        axes.errorbar(scaled(ours, metric), i, xerr=scaled(margin, metric), fmt="o", color=COLORS[0])
        axes.plot(scaled(row.reference.value, metric), i, "D", color=COLORS[1], markerfacecolor="none")
    axes.set_yticks(range(len(rows)), [textwrap.fill(label(row, comparison, LEVEL), 36) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    handles = [
        Line2D([], [], color=COLORS[0], marker="o", label="ours"),
        Line2D([], [], color=COLORS[1], marker="D", markerfacecolor="none", linestyle="none", label="reference"),
    ]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, columnspacing=1, borderpad=0.2)
    axes.set_xlabel(axis_label(metric))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x", alpha=0.25, linewidth=0.5)


def axis_label(metric: str) -> str:
    return f"{metric}, %" if metric.endswith("accuracy") else metric


def scaled(value: float, metric: str) -> float:
    """Accuracies in percent."""
    return float(100 * value if metric.endswith("accuracy") else value)
