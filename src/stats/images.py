"""Differences of settings over training runs, over images and over both, and lists of images won and lost.

Other training runs would give another result, and so would other images. A difference has an error for each of three
kinds of sampling:

- these models, other images: the trained models are fixed, and the images are the sample;
- new training runs, these images: the images are fixed, and the runs are the sample;
- both: new training runs on other images. The two variances are added, and their common part is subtracted (Cameron,
  Gelbach and Miller, 2011, Journal of Business & Economic Statistics 29, 238-249; Owen, 2007, Annals of Applied
  Statistics 1, 386-411).

If a setting is compared with itself, the first kind finds differences, as the trained models differ. The second and
the third find one in about 5 % of comparisons: in at most 5.6 % in simulations (experiments/calibration).
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stats.estimates import ERROR, TIE, Setting, as_table, quantile
from stats.selection import residuals
from stats.variances import Array, Prior, fit_prior

SPLITS = 252  # divisions of runs into two groups: all for five runs each; a random sample for more runs
BORROWED = 0.25  # share of the prior's degrees of freedom that counts, because the prior is an estimate, too
BLOCK = 21  # divisions at once, to limit the memory

Singles = NDArray[np.float32]
Runs = Mapping[int, NDArray[np.bool_]]  # by seed: [images], True if classified correctly
Pair = tuple[Setting, Setting]


@dataclass(frozen=True)
class Sampled:
    """A difference with its error in one kind of sampling.

    Attributes:
        value: The difference.
        parts: Variances whose sum is the squared error, with degrees of freedom; None if no spread is known.
    """

    value: float
    parts: tuple[tuple[float, float], ...] | None

    @property
    def error(self) -> float | None:
        """Standard error."""
        return None if self.parts is None else math.sqrt(sum(variance for variance, _ in self.parts))

    @property
    def margin(self) -> float | None:
        """Half the width of the 95 % interval."""
        return None if self.parts is None else self.half_width(ERROR)

    @property
    def p(self) -> float | None:
        """Two-sided p value, uncorrected: the level at which the interval ends at 0."""
        if self.parts is None or not self.error or self.error < TIE:
            return None if self.parts is None else float(abs(self.value) < TIE)
        low, high = 0.0, 1.0
        for _ in range(40):
            level = (low + high) / 2
            low, high = (level, high) if self.half_width(level) > abs(self.value) else (low, level)
        return high

    def half_width(self, level: float) -> float:
        """Compute half the width of the interval at a level.

        Each part has a separate quantile. Common degrees of freedom would be too many if a variance from few runs is
        small by chance.
        """
        return math.sqrt(sum(variance * quantile(freedom, 1 - level) ** 2 for variance, freedom in self.parts or ()))


@dataclass(frozen=True)
class ImageGains:
    """The change of each image and of the accuracy between two settings, averaged over pairs of settings.

    Attributes:
        by_image: [images], change of the share of runs that are right.
        by_chance: Mean number of images won or lost if the settings were equal.
        rates: [images], false discovery rate of the list of all images with at least this gain.
        other_images, new_runs, both: Change of the accuracy with its error in each kind of sampling.
    """

    by_image: Array
    by_chance: float
    rates: Array
    other_images: Sampled
    new_runs: Sampled
    both: Sampled


def image_gains(correct: Mapping[Setting, Runs], pairs: Sequence[Pair]) -> ImageGains:
    """Compare the settings of each pair, first minus second, by their common seeds.

    If they have fewer than two common seeds, all runs count as independent samples.

    Args:
        correct: Runs of all settings; settings without a pair help to estimate the spread.
        pairs: The settings to compare.
    """
    seeds = [seeds_of(correct[a], correct[b]) for a, b in pairs]
    samples = [
        (stacked(correct[a], first), stacked(correct[b], second))
        for (a, b), (first, second) in zip(pairs, seeds, strict=True)
    ]
    gains = np.round(sum(first.mean(0) - second.mean(0) for first, second in samples) / len(pairs), 9)
    value, images = float(gains.mean()), len(gains)
    of_images = float(gains.var(ddof=1)) / images if images > 1 else 0.0
    other_images = Sampled(value, ((of_images, images - 1),))

    prior, most = prior_of(correct)
    of_pairs = [
        run_variance([first - second] if of_first == of_second else [first, second], prior, most)
        for (first, second), (of_first, of_second) in zip(samples, seeds, strict=True)
    ]
    new_runs = both = Sampled(value, None)
    if all(of_pairs):
        variances, freedoms, shared = (np.array(column) for column in zip(*filter(None, of_pairs), strict=True))
        of_runs = float(variances.sum()) / len(pairs) ** 2, min(satterthwaite(variances, freedoms), most)
        new_runs = Sampled(value, (of_runs,))
        of_other_images = max(0.0, of_images - float(shared.sum()) / len(pairs) ** 2, of_images - of_runs[0])
        both = Sampled(value, (of_runs, (of_other_images, images - 1)))
    weights: dict[tuple[Setting, int], float] = defaultdict(float)  # weight of each run in the gains
    for pair, seeds_of_pair in zip(pairs, seeds, strict=True):
        for setting, of_setting, sign in zip(pair, seeds_of_pair, (1, -1), strict=True):
            for seed in of_setting:
                weights[setting, seed] += sign / len(of_setting) / len(pairs)
    runs = np.array([correct[setting][seed] for setting, seed in weights], dtype=np.float32)
    deals = deal(np.array(list(weights.values()), dtype=np.float32), groups([a for a, _ in weights], pairs))
    return ImageGains(gains, *discoveries(gains, runs, deals), other_images, new_runs, both)


def seeds_of(first: Runs, second: Runs) -> tuple[list[int], list[int]]:
    """Choose the seeds to compare: the common ones if there are two or more, else all."""
    both = sorted(set(first) & set(second))
    return (both, both) if len(both) > 1 else (sorted(first), sorted(second))


def stacked(runs: Runs, seeds: Sequence[int]) -> Array:
    """Stack the predictions of seeds, [seeds, images]."""
    return np.array([runs[seed] for seed in seeds], dtype=np.float64)


def prior_of(correct: Mapping[Setting, Runs]) -> tuple[Prior, float]:
    """Fit the common distribution of settings' spreads; return it and the degrees of freedom of all runs."""
    accuracies = {a: {seed: float(run.mean()) for seed, run in runs.items()} for a, runs in correct.items()}
    table = as_table(accuracies, list(correct), sorted({seed for runs in correct.values() for seed in runs}))
    freedoms = (~np.isnan(table)).sum(1) - 1
    variances = np.nansum(residuals(table) ** 2, axis=1) / np.maximum(freedoms, 1)
    is_full = not np.isnan(table).any()
    return fit_prior(variances, freedoms), float(freedoms.sum() - (freedoms[0] if is_full else 0))


def run_variance(samples: Sequence[Array], prior: Prior, most: float) -> tuple[float, float, float] | None:
    """Compute the variance of a difference over new runs, its degrees of freedom, and the part due to images.

    Args:
        samples: [runs, images], either the differences by seed, or the runs of both settings.
        prior: Common distribution of settings' spreads.
        most: Degrees of freedom of all runs.

    Returns:
        The variance, its degrees of freedom, and the part due to images; None if no spread is known.
    """
    variances, freedoms, shared = [], [], 0.0
    for sample in samples:
        runs, images = sample.shape
        sides, freedom = 3 - len(samples), runs - 1
        borrowed = BORROWED * max(0.0, min(prior.freedom, most - freedom))
        if not freedom + borrowed:
            return None
        rounding = sides / images**2 / 12
        variance = max(float(sample.mean(1).var(ddof=1)), rounding) if freedom else 0.0
        moderated = (freedom * variance + borrowed * sides * prior.variance) / (freedom + borrowed)
        variances.append(moderated / runs)
        freedoms.append(freedom + borrowed)
        shared += float(sample.var(0, ddof=1).mean()) / runs / images if freedom else 0.0
    return sum(variances), satterthwaite(variances, freedoms), shared


def satterthwaite(variances: ArrayLike, freedoms: ArrayLike) -> float:
    """Compute the degrees of freedom of a sum of variances (Satterthwaite, 1946, Biometrics Bulletin 2, 110-114)."""
    parts = np.asarray(variances, float)
    return float(parts.sum() ** 2 / np.sum(parts**2 / np.asarray(freedoms))) if parts.any() else float(np.sum(freedoms))


def discoveries(gains: Array, runs: Singles, deals: Singles) -> tuple[float, Array]:
    """Estimate the false discovery rate of images won or lost, by a permutation test.

    If the settings are equal, each run could have been any setting's. So runs are dealt to the settings at random. The
    rate at a gain is the mean number of images with at least this gain over all deals, divided by the observed number.
    If nothing differs, a list with a rate of 10 % appears in at most one of ten cases, even if images depend on each
    other (Markov's inequality). Source: Tusher, Tibshirani and Chu, 2001, PNAS 98, 5116-5121.

    Args:
        gains: [images].
        runs: [runs, images], 1 if right.
        deals: [deals, runs], weights of the runs.

    Returns:
        The mean number of images won or lost by chance, and the rate of each image.
    """
    sizes = np.unique(np.abs(gains[gains != 0]))
    if not len(sizes):
        return 0.0, np.ones(len(gains))
    counts = np.zeros(len(sizes) + 1)
    for start in range(0, len(deals), BLOCK):
        drawn = np.abs(deals[start : start + BLOCK] @ runs)
        counts += np.bincount(np.searchsorted(sizes - 1e-6, drawn, side="right").ravel(), minlength=len(counts))
    expected = counts[::-1].cumsum()[::-1][1:] / len(deals)  # images with a gain of this size or more
    observed = np.array([np.sum(np.abs(gains) >= size) for size in sizes])
    rates = np.minimum.accumulate(np.minimum(1.0, expected / observed))
    places = np.searchsorted(sizes, np.abs(gains)).clip(max=len(sizes) - 1)
    return float(expected[0]), np.where(gains != 0, rates[places], 1.0)


def groups(settings: Sequence[Setting], pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """Assign each run to a group of settings that pairs connect; runs are dealt within a group."""
    number = {setting: i for i, setting in enumerate(settings)}
    for a, b in pairs:
        old, new = number[b], number[a]
        number = {setting: new if place == old else place for setting, place in number.items()}
    return np.array([number[setting] for setting in settings])


def deal(weights: Singles, group: NDArray[np.int64]) -> Singles:
    """Permute the weights within each group, in all ways or in SPLITS random ones, [deals, runs]."""
    n, first = len(weights), int(np.sum(weights > 0))
    if len(set(group.tolist())) == 1 and len(set(weights.tolist())) == 2 and math.comb(n, first) <= SPLITS:
        deals = np.full((math.comb(n, first), n), weights.min(), dtype=np.float32)
        for dealt, chosen in zip(deals, combinations(range(n), first), strict=True):
            dealt[list(chosen)] = weights.max()
        return deals
    generator, deals = np.random.default_rng(0), np.tile(weights, (SPLITS, 1))
    for number in set(group.tolist()):
        members = group == number
        deals[1:, members] = generator.permuted(deals[1:, members], axis=1)
    return deals
