"""The figure of a comparison: learning curves, heat map, costs, effects, published values, power analysis."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from comparison.crossing import cross
from comparison.results import Comparison
from rendering import panels
from rendering.formatting import label, shorten
from rendering.panels import COSTS, LEVEL, MOST, Look
from runtime.console import count
from tracking.plots import COLORS, GREY, PAGE, STYLE

MARKERS = "os^DvPX"  # repeat the colors for readers who cannot distinguish them

Draw = Callable[[Axes], object]
Band = tuple[float, list[Draw]]  # height in inches, panels from left to right


def comparison_figure(comparison: Comparison) -> Figure | None:
    """Draw all panels that fit these runs; None if no run has a result.

    The best seven settings have distinct colors and markers; all others are grey.
    """
    if not comparison.valued:
        return None
    looks = [
        Look(setting, label(setting, comparison, LEVEL), color, marker)
        for setting, color, marker in zip(comparison.valued, COLORS, MARKERS, strict=False)
    ]
    bands = bands_of(comparison, looks)
    heights = [height for height, _ in bands]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, sum(heights)), layout="constrained")
        areas = figure.subfigures(len(bands), 1, height_ratios=heights, squeeze=False)[:, 0]
        for area, (_, draws) in zip(areas, bands, strict=True):
            for axes, draw in zip(area.subplots(1, len(draws), squeeze=False)[0], draws, strict=True):
                draw(axes)
    return figure


def bands_of(comparison: Comparison, looks: Sequence[Look]) -> list[Band]:
    """Choose the bands of the figure, from top to bottom; without any other, draw the learning curves."""
    bands: list[Band] = []
    if len(comparison.runs) == 2 and all(len(run.epochs) > 1 for run in comparison.runs):
        two = partial(panels.curves_of_two, runs=comparison.runs)
        bands.append((2.5, [partial(two, quantity=quantity) for quantity in ("loss", "accuracy")]))
    curves = partial(panels.learning_curves, looks=looks)
    above: list[Draw] = []
    if not bands and any(len(run.epochs) > 1 for look in looks for run in look.setting.completed):
        above.append(curves)
    if crossing := cross(comparison):
        above.append(partial(panels.heat_map, comparison=comparison, crossing=crossing))
    if above:
        bands.append((2.5, above))

    costs = [cost for cost in COSTS if panels.varies(comparison, cost)]
    if len(looks) > 1 and (curves in above or costs):
        handles, columns = legend(looks, len(comparison.valued))
        height = 0.1 + 0.16 * math.ceil(len(handles) / columns)
        bands.append((height, [partial(draw_legend, handles=handles, columns=columns)]))
    if costs:
        tradeoff = partial(panels.tradeoff, comparison=comparison, looks=looks, first=costs[0])
        bands.append((2.1, [partial(tradeoff, cost=cost) for cost in costs]))

    below: list[Draw] = []
    lines = 0.0
    if comparison.effects:
        names = panels.effect_names(comparison.effects, comparison)[:MOST]
        lines = 0.4 + sum(1.4 + name.count("\n") for name in names)
        below.append(partial(panels.effect_plot, comparison=comparison))
    if referenced := [setting for setting in comparison.settings if setting.reference]:
        lines = max(lines, 1.4 * min(MOST, len(referenced)))
        below.append(partial(panels.beside_reference, settings=referenced, comparison=comparison))
    if below:
        bands.append((0.7 + 0.13 * max(lines, 3), below))
    if panels.unanswered(comparison):
        bands.append((2.3, [partial(panels.detectable_differences, comparison=comparison)]))
    return bands or [(2.5, [curves])]


def legend(looks: Sequence[Look], settings: int) -> tuple[list[Line2D], int]:
    """Make the legend's handles, and count its columns.

    Args:
        settings: Number of settings with a result; those without a look share one handle, "N others".
    """
    handles = [Line2D([], [], color=look.color, marker=look.marker, label=shorten(look.label, 95)) for look in looks]
    if settings > len(looks):
        others = count(settings - len(looks), "other")
        handles.append(Line2D([], [], color=GREY, marker=".", linestyle="none", label=others))
    widest = max(len(str(handle.get_label())) for handle in handles)
    lines = math.ceil(len(handles) / max(1, 105 // (widest + 9)))
    return handles, math.ceil(len(handles) / lines)


def draw_legend(axes: Axes, handles: list[Line2D], columns: int) -> None:
    axes.set_axis_off()
    axes.legend(handles=handles, loc="center", ncols=columns, handlelength=2, columnspacing=1.5, borderpad=0)
