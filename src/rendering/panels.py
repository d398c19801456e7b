"""Panels of a comparison's figure, each drawn by a function of its axes."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from comparison.crossing import Crossing
from comparison.power_analysis import Plan
from comparison.results import Comparison, is_lower_better
from comparison.runs import Run
from comparison.settings import Setting
from config.schema import is_below
from rendering.findings import effect_name
from rendering.formatting import label, level_text, scaled
from rendering.power_text import question
from stats import Effect
from tracking.plots import COLORS, GREY

LEVEL = 20  # most characters of a level
MOST = 18  # most rows of a panel of effects or published values
DRAWN = 4  # most curves of the power analysis
WORK = (  # keys that change the training time of the same model
    "trainer.epochs", "trainer.precision", "trainer.compile", "trainer.accumulation_steps", "trainer.freeze",
    "trainer.checkpoint_activations", "trainer.early_stopping", "data.batch_size", "data.pipeline",
    "data.train_fraction", "augmentation", "optimizer.name",
)  # fmt: skip
COSTS = {"parameters": "parameters", "macs": "multiply-accumulates", "seconds": "training time, s"}


@dataclass(frozen=True)
class Look:
    """The label, color and marker of a setting in all panels."""

    setting: Setting
    label: str
    color: str
    marker: str


def learning_curves(axes: Axes, looks: Sequence[Look]) -> None:
    """Draw validation accuracy by epoch, or else training accuracy: mean and standard deviation over seeds."""
    histories = [[run.epochs for run in look.setting.completed] for look in looks]
    tables = [epochs for history in histories for epochs in history]
    is_validated = any("val/accuracy" in epochs and epochs["val/accuracy"].notna().any() for epochs in tables)
    metric = "val/accuracy" if is_validated else "train/accuracy"
    late: list[float] = []  # accuracies after the first third, which the axis must show
    for place, (look, history) in enumerate(zip(looks, histories, strict=True)):
        curves = [100 * epochs[metric] for epochs in history if metric in epochs and epochs[metric].notna().all()]
        if not (shortest := min(map(len, curves), default=0)):
            continue
        values = np.stack([curve[:shortest] for curve in curves])
        epochs = np.arange(1, shortest + 1)
        center, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(shortest)
        axes.fill_between(epochs, center - spread, center + spread, color=look.color, alpha=0.18, linewidth=0)
        axes.plot(epochs, center, color=look.color, marker=look.marker, markevery=max(1, shortest // 6), markersize=3.5,
                  zorder=3 - place / len(looks))  # fmt: skip  # the best on top
        late += [*(center - spread)[shortest // 3 :], *(center + spread)[shortest // 3 :]]
    if late and (margin := 0.05 * (max(late) - min(late))):
        axes.set_ylim(min(late) - margin, min(max(late) + margin, 100.5))
    band = ", mean ± std of the seeds" if max(map(len, histories)) > 1 else ""
    axes.set(title=f"Learning curves{band}", xlabel="epoch", ylabel=f"{metric}, %")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.grid()


def curves_of_two(axes: Axes, runs: Sequence[Run], quantity: str) -> None:
    """Draw loss or accuracy of two runs by epoch, in training (dotted) and validation."""
    for name, run, color in zip("AB", runs, COLORS, strict=False):
        for part, line in (("val", "-"), ("train", ":")):
            values = run.epochs.get(f"{part}/{quantity}", pd.Series(dtype=float)).dropna()
            axes.plot(range(1, len(values) + 1), [scaled(value, quantity) for value in values], line, color=color,
                      marker="." if len(values) == 1 else "", label=f"{name} {part}")  # fmt: skip
    axes.set(xlabel="epoch", ylabel=axis_label(quantity), title=f"Learning curves: {quantity}")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.legend()
    axes.grid()


def heat_map(axes: Axes, comparison: Comparison, crossing: Crossing) -> None:
    """Draw the metric for every combination of two factors, averaged over the others; frame the best."""
    metric = comparison.metric
    means = scaled(crossing.means, metric)
    texts = {key: [level_text(level) for level in comparison.levels(key)] for key in crossing.factors}
    across, down = sorted(crossing.factors, key=lambda key: max(map(len, texts[key])))  # long names need rows
    if (down, across) != crossing.factors:
        means = means.T
    columns, rows = comparison.levels(across), comparison.levels(down)
    lower = is_lower_better(metric)
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
    title += "" if crossing.is_fair else " where it ran"
    axes.set(xlabel=comparison.short(across), ylabel=comparison.short(down), title=title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05).outline.set_visible(False)


def varies(comparison: Comparison, cost: str) -> bool:
    """Return true if a cost differs for a reason: not the training time of models that take the same work."""
    settings = comparison.valued
    if cost == "seconds" and not (varies(comparison, "macs") or any(is_below(key, WORK) for key in comparison.keys)):
        return False
    values = [value for setting in settings if (value := setting.average(cost)) is not None]
    return len(values) > 1 and max(values) > 1.02 * min(values)


def tradeoff(axes: Axes, comparison: Comparison, looks: Sequence[Look], cost: str, first: str) -> None:
    """Draw the metric against a cost, with a line through the Pareto front."""
    metric = comparison.metric
    lower = is_lower_better(metric)
    points = [
        (x, scaled(mean, metric), i)
        for i, setting in enumerate(comparison.valued)
        if (x := setting.average(cost)) is not None and (mean := comparison.mean(setting)) is not None
    ]
    front: list[tuple[float, float]] = []
    for x, y, _ in sorted(points, key=lambda point: (point[0], point[1] if lower else -point[1])):
        if not front or (y < front[-1][1] if lower else y > front[-1][1]):
            front.append((x, y))
    if cost != "seconds":  # a busy machine would decide which of equal models is on it
        axes.step(*zip(*front, strict=True), where="post", color=GREY, linewidth=1, zorder=1)
    margins = [0.0]
    for x, y, i in reversed(points):
        if i >= len(looks):
            axes.plot(x, y, ".", color=GREY, markersize=3.5, zorder=2)
            continue
        estimate = looks[i].setting.estimate(metric)
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
    low, high = axes.get_ylim()  # a few wide intervals must not hide all else
    room = max(0.8 * (max(ys) - min(ys)), 1.2 * float(np.median(margins)), 0.02 * abs(max(ys)))
    if metric.endswith("accuracy"):  # an interval may exceed 0 to 100 %
        low, high = max(low, -2), min(high, 102)
    axes.set_ylim(max(low, min(ys) - room), min(high, max(ys) + room))
    axes.set_xlabel(COSTS[cost])
    if cost == first:
        axes.set(title="Against cost (line: Pareto front)", ylabel=axis_label(metric))
    axes.grid()


def effect_plot(axes: Axes, comparison: Comparison) -> None:
    """Draw each effect with its 95 % interval; filled if it is significant, hollow otherwise."""
    metric, effects = comparison.metric, comparison.effects
    largest = sorted(range(len(effects)), key=lambda i: -abs(effects[i].estimate))[:MOST]
    shown = [effects[i] for i in sorted(largest)]
    for i, effect in enumerate(shown):
        color = COLORS[0] if effect.is_significant else GREY
        if effect.low is not None and effect.high is not None:
            axes.plot([scaled(effect.low, metric), scaled(effect.high, metric)], [i, i], color=color)
        face = color if effect.is_significant else "white"
        axes.plot(scaled(effect.estimate, metric), i, "o", color=color, markerfacecolor=face)
    axes.axvline(0, color="black", linewidth=0.7, zorder=0)
    sure = any(effect.p is not None for effect in shown)
    if not sure and all(effect.is_tied for effect in shown):
        axes.set_xlim(-1, 1)  # all effects are 0
    subject = f"{MOST} largest of {len(effects)} effects" if len(effects) > len(shown) else "Effects"
    axes.set_title(f"{subject}, {'95 % interval' if sure else 'no interval with one seed'}")
    unit = "points" if metric.endswith("accuracy") else "change"
    xlabel = f"{metric}, {unit}" + (" (filled: significant)" if sure else "")
    name_rows(axes, effect_names(shown, comparison), xlabel)


def effect_names(effects: Sequence[Effect], comparison: Comparison) -> list[str]:
    return [textwrap.fill(effect_name(effect, comparison, LEVEL), 36) for effect in effects]


def beside_reference(axes: Axes, settings: Sequence[Setting], comparison: Comparison) -> None:
    """Draw our mean with its 95 % interval, and the published value, of every setting that has one."""
    settings = settings[:MOST]
    for i, reference in enumerate(setting.reference for setting in settings):
        assert reference is not None
        metric = reference.metric
        ours, margin = scaled(reference.ours.value, metric), scaled(reference.ours.margin or 0.0, metric)
        axes.errorbar(ours, i, xerr=margin, fmt="o", color=COLORS[0])
        axes.plot(scaled(reference.value, metric), i, "D", color=COLORS[1], markerfacecolor="none")
    handles = [
        Line2D([], [], color=COLORS[0], marker="o", label="ours"),
        Line2D([], [], color=COLORS[1], marker="D", markerfacecolor="none", linestyle="none", label="reference"),
    ]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, columnspacing=1, borderpad=0.2)
    names = [textwrap.fill(label(setting, comparison, LEVEL), 36) for setting in settings]
    name_rows(axes, names, axis_label(metric))


def name_rows(axes: Axes, names: Sequence[str], xlabel: str) -> None:
    """Label the rows from top to bottom, at heights 0, 1, 2 and so on."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x")


def unanswered(comparison: Comparison) -> list[Plan]:
    """Select the open questions that need the fewest seeds."""
    plans = [plan for plan in comparison.plans if plan.curve]
    return sorted(plans, key=lambda plan: len(plan.seeds))[:DRAWN]


def detectable_differences(axes: Axes, comparison: Comparison) -> None:
    """Draw, for each open question, the difference that a number of new seeds finds with 80 % power.

    A dot marks the difference seen so far.
    """
    metric = comparison.metric
    for plan, color in zip(unanswered(comparison), reversed(COLORS), strict=False):  # settings have the first colors
        seeds, differences = zip(*plan.curve, strict=True)
        name = in_lines(f"{question(plan, comparison)}: {len(plan.seeds)} seeds")
        axes.plot(seeds, [scaled(difference, metric) for difference in differences], color=color, label=name)
        axes.plot(len(plan.seeds), scaled(abs(plan.difference), metric), "o", color=color)
    axes.set(xscale="log", yscale="log", title="Differences that so many new seeds find with 80 % power")
    unit = "points" if metric.endswith("accuracy") else "difference"
    axes.set(xlabel="new seeds", ylabel=f"{metric}, {unit}")
    if metric.endswith("accuracy"):
        axes.set_ylim(top=min(100, axes.get_ylim()[1]))
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(4))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), title="dot: the difference seen now", alignment="left")
    axes.grid()


def in_lines(question: str) -> str:
    parts = question.replace(" against ", "\nagainst ").splitlines()
    return "\n".join(textwrap.fill(part, 44) for part in parts)


def axis_label(metric: str) -> str:
    return f"{metric}, %" if metric.endswith("accuracy") else metric
