"""The panel of what it would take to tell: the difference that so many seeds show, beside the differences seen."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from comparison.panels import scaled
from comparison.power import MOST
from comparison.price import Price, prices
from comparison.results import Comparison
from tracking.plots import COLORS  # reversed here: the first ones are settings

DRAWN = 4


def unanswered(comparison: Comparison) -> list[Price]:
    """The differences that are not significant and need the fewest seeds."""
    found = [one for one in prices(comparison) if one.design and one.seeds_needed]
    return sorted(found, key=lambda one: one.seeds_needed or MOST)[:DRAWN]


def detectable_differences(axes: Axes, prices: Sequence[Price], metric: str) -> None:
    """For each question a curve, the smallest difference that is found with 80 % power; a hollow dot at the difference
    seen and the seeds at hand, a filled one where the curve reaches it."""
    most = max(10, *(1.5 * (one.seeds_needed or 0) for one in prices))
    seeds = np.geomspace(max(2, min(one.seeds for one in prices)), most, 100)
    for one, color in zip(prices, reversed(COLORS), strict=False):
        assert one.design and one.seeds_needed
        curve = [scaled(one.design.detectable(n), metric) for n in seeds]
        seen = scaled(abs(one.difference), metric)
        axes.plot(seeds, curve, color=color, label=in_lines(f"{one.question}: {one.seeds_needed} seeds"))
        axes.plot([one.seeds, one.seeds_needed], [seen, seen], ":", color=color, linewidth=1)
        axes.plot(one.seeds, seen, "o", color=color, markerfacecolor="white")
        axes.plot(one.seeds_needed, seen, "o", color=color)
    axes.set(xscale="log", yscale="log", xlabel="seeds", title="Differences that so many seeds show with 80 % power")
    unit = "points" if metric.endswith("accuracy") else "difference"
    axes.set_ylabel(f"{metric}, {unit}")
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(4))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.legend(
        loc="upper left", bbox_to_anchor=(1, 1), title="hollow: seen now; filled: seeds needed", alignment="left"
    )
    axes.grid(alpha=0.25, linewidth=0.5)


def in_lines(question: str) -> str:
    parts = question.replace(" against ", "\nagainst ").splitlines()
    return "\n".join(textwrap.fill(part, 44) for part in parts)
