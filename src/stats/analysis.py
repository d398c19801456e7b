"""The analysis of a table of runs: means, differences, effects, the settings that may be best, sample sizes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from stats import factors
from stats.chances import Draws, draw
from stats.estimates import ERROR, TIE, Difference, Effect, Estimate, Setting, Values, as_table
from stats.failures import beats, worst_rank
from stats.families import ByPair, Contrast, Family, may_be_best, test_family
from stats.interactions import Interaction, interactions_of
from stats.sample_size import SampleSize
from stats.seeds import SeedModel, fit
from stats.variances import Array

ALL_PAIRS = 300  # most settings of which all pairs are tested; beyond it, only pairs with the best one are
CHECKED = 200  # most pairs tested again with failed runs as the worst; beyond it, all of these are vetoed


@dataclass(frozen=True)
class SettingResult:
    """One setting's runs.

    Attributes:
        mean: The mean, adjusted for missing seeds if seeds are shared; None if no run completed.
        failed: Number of failed runs.
    """

    mean: float | None
    failed: int


@dataclass(frozen=True)
class Analysis:
    """The result of an analysis.

    Attributes:
        settings: Means and number of failed runs by setting.
        ranked: Settings with a result, best first.
        differences: Differences of all pairs, first minus second; with more than 300 settings, of pairs with the best.
        best: The first of `ranked`; None if no run completed.
        may_be_best: Settings that may be the best, with 95 % confidence, in the order of their ranks.
        sample_sizes: Sample size of each difference.
        is_adjusted: True if means are adjusted for missing runs.
    """

    settings: Mapping[Setting, SettingResult]
    ranked: tuple[Setting, ...]
    differences: Mapping[tuple[Setting, Setting], Difference]
    best: Setting | None
    may_be_best: tuple[Setting, ...]
    sample_sizes: Mapping[tuple[Setting, Setting], SampleSize | None]
    is_adjusted: bool
    estimate_effects: Callable[[], tuple[Effect, ...]] = field(repr=False)
    estimate_interactions: Callable[[Sequence[Effect]], tuple[Interaction, ...]] = field(repr=False)
    draw: Callable[[], Draws | None] = field(repr=False)

    @cached_property
    def effects(self) -> tuple[Effect, ...]:
        """The effects of every level of every factor; none if settings are not tuples of (factor, level)."""
        return self.estimate_effects()

    @cached_property
    def interactions(self) -> tuple[Interaction, ...]:
        """The change of each effect with each other factor."""
        return self.estimate_interactions(self.effects)

    @cached_property
    def probability_best(self) -> Mapping[Setting, float]:
        """Probability of each setting to be the best; empty if no spread is known."""
        return self.draws.probability_best() if self.draws else {}

    @cached_property
    def draws(self) -> Draws | None:
        """Draws from the posterior distribution, made when first used; None if no spread is known."""
        return self.draw()

    def beats(self, first: Setting, second: Setting) -> Estimate | None:
        """Estimate the probability that a new run of one setting is better than a new run of another.

        Source: Bouthillier et al., 2021, Proceedings of Machine Learning and Systems 3, 747-769.
        """
        return self.draws.beats(first, second) if self.draws else None


def analyse(
    values: Values, higher_is_better: bool = True, resolution: float | None = None, smallest: float | None = None
) -> Analysis:
    """Analyse a table of runs.

    Args:
        values: {setting: {seed: value}}, with None for a failed run; a missing run has no entry. Settings that are
            tuples of (factor, level) pairs, or of levels, have effects of factors.
        resolution: Step between two possible values, 1 / images of an accuracy; None: the smallest step in `values`.
        smallest: Smallest difference that matters.
    """
    completed = {
        setting: {seed: value for seed, value in runs.items() if value is not None and math.isfinite(value)}
        for setting, runs in values.items()
    }
    failed = {setting: len(runs) - len(completed[setting]) for setting, runs in values.items()}
    valued = [setting for setting in values if completed[setting]]
    table = as_table(completed, valued, sorted({seed for runs in completed.values() for seed in runs}))
    model = fit(table, floor(table, resolution))
    sign = 1 if higher_is_better else -1
    samples = [sign * np.array(list(completed[setting].values())) for setting in valued]
    failures = [failed[setting] for setting in valued]
    order = ranking(sign * model.means, samples, failures)

    # Every pair is written with the better one first.
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :] if i == 0 or len(order) <= ALL_PAIRS]
    family = test_family(model, [Contrast.of([pair]) for pair in pairs], smallest, math.comb(len(valued), 2))
    family = replace(family, is_vetoed=vetoes(family, sign, samples, failures))
    candidates = may_be_best(family, sign, len(valued))
    pair_of = {(valued[a], valued[b]): i for i, (a, b) in enumerate(pairs)}
    means = dict(zip(valued, model.means.tolist(), strict=True))
    return Analysis(
        settings={setting: SettingResult(means.get(setting), failed[setting]) for setting in values},
        ranked=tuple(valued[i] for i in order),
        differences=ByPair(pair_of, family.difference),
        best=valued[order[0]] if order else None,
        may_be_best=tuple(valued[i] for i in order if candidates[i]),
        sample_sizes=ByPair(pair_of, family.sample_size),
        is_adjusted=model.is_adjusted,
        estimate_effects=partial(effects_of, list(values), valued, model, smallest),
        estimate_interactions=partial(interactions_of, settings=valued, model=model),
        draw=partial(draw, model, valued, np.array(failures), sign),
    )


def floor(table: Array, resolution: float | None) -> float:
    """Compute the smallest variance that a run's value can have: that of rounding to the resolution."""
    if resolution is None:
        gaps = np.diff(np.unique(table[~np.isnan(table)]))
        resolution = float(gaps[gaps > TIE].min(initial=math.inf))
    square = resolution * resolution / 12
    return square if math.isfinite(square) else 0.0


def ranking(means: Array, samples: Sequence[Array], failures: Sequence[int]) -> list[int]:
    """Rank the settings by their means, where higher is better and equal settings keep their order.

    A setting with failed runs is ranked first only if it wins more than half of all pairs of runs against every setting
    that fails less often. A failed run loses each pair.
    """
    order = sorted(range(len(means)), key=lambda i: -round(float(means[i]), 10))
    rates = [failed / (failed + len(sample)) for failed, sample in zip(failures, samples, strict=True)]

    def may_lead(i: int) -> bool:
        steadier = (j for j in order if rates[j] < rates[i])
        return all(beats(samples[i], failures[i], samples[j], failures[j]) > 0.5 for j in steadier)

    best = next((i for i in order if may_lead(i)), None)
    return order if best is None else [best, *(i for i in order if i != best)]


def vetoes(family: Family, sign: int, samples: Sequence[Array], failures: Sequence[int]) -> NDArray[np.bool_]:
    """Find pairs whose better setting fails more often and, with failed runs as the worst, is not better, [pairs]."""
    is_vetoed = np.zeros(len(family.contrasts), bool)
    rates = [failed / (failed + len(sample)) for failed, sample in zip(failures, samples, strict=True)]
    doubtful = []
    for i, contrast in enumerate(family.contrasts if any(failures) else ()):
        (pair,) = contrast.pairs
        winner, loser = pair if sign * family.estimates[i] > 0 else pair[::-1]
        if family.p_alone[i] < ERROR and rates[winner] > rates[loser]:
            doubtful.append((i, winner, loser))
    for i, winner, loser in doubtful:
        p = 1.0
        if len(doubtful) <= CHECKED:
            p = worst_rank(samples[winner], failures[winner], samples[loser], failures[loser])
        is_vetoed[i] = p * len(doubtful) >= ERROR
    return is_vetoed


def effects_of(
    planned: Sequence[Setting], valued: Sequence[Setting], model: SeedModel, smallest: float | None
) -> tuple[Effect, ...]:
    """Estimate the effects of all factors, if all settings have levels of the same factors."""
    levels = [of_setting for setting in planned if (of_setting := factors.levels_of(setting)) is not None]
    if len(levels) < len(planned) or len({tuple(of_setting) for of_setting in levels}) != 1:
        return ()
    changes = factors.changes(levels, [planned.index(setting) for setting in valued])
    family = test_family(model, [Contrast.of(change.pairs) for change in changes], smallest)
    effects = []
    for i, change in enumerate(changes):
        pairs = tuple((valued[a], valued[b]) for a, b in change.pairs)
        higher = sum(bool(model.means[a] - model.means[b] > TIE) for a, b in change.pairs)
        effects.append(
            Effect(**vars(family.difference(i)), factor=change.factor, level=change.level, baseline=change.baseline,
                   pairs=pairs, n_higher=higher, plan=partial(family.sample_size, i))
        )  # fmt: skip
    return tuple(effects)
