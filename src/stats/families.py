"""Tests of many contrasts at once: significance, the settings that may be best, negligible differences."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stats.estimates import ERROR, TIE, Difference, Setting
from stats.sample_size import SampleSize, sample_size
from stats.seeds import SeedModel
from stats.variances import Array, Errors

BLOCK = 500  # contrasts whose intervals are computed at once
T = TypeVar("T")


def holm(p: Array, comparisons: int | None = None) -> Array:
    """Correct p values for multiple comparisons; NaN stays.

    Args:
        p: The p values.
        comparisons: Number of comparisons from which these were picked; None: these are all. The correction never
            rejects more than Holm's method with all p values would, as a rank among some is at most the rank among all.

    Source: Holm, 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.sum(~np.isnan(p))]
    factors = (comparisons or len(order)) - np.arange(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return corrected


@dataclass(frozen=True)
class Contrast:
    """The mean difference of some pairs of settings, first minus second; settings are given by their indices."""

    pairs: tuple[tuple[int, int], ...]
    weights: Mapping[int, float]

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, int]]) -> "Contrast":
        weights: dict[int, float] = defaultdict(float)
        for first, second in pairs:
            weights[first] += 1 / len(pairs)
            weights[second] -= 1 / len(pairs)
        return cls(tuple(pairs), weights)


@dataclass(frozen=True)
class Family:
    """The tests of some contrasts, corrected for each other.

    Attributes:
        estimates, p_alone, p, p_negligible: [contrasts]; p is NaN if nothing can be tested.
        errors: Standard errors; None if no spread is known.
        runs, settings: [contrasts], number of runs and of settings of each contrast.
        comparisons: Number of comparisons made, or from which these contrasts were picked.
        is_vetoed: [contrasts], True if failed runs, counted as the worst, take away its significance.
    """

    contrasts: Sequence[Contrast]
    estimates: Array
    p_alone: Array
    p: Array
    p_negligible: Array | None
    errors: Errors | None
    runs: Array
    settings: Array
    comparisons: int
    is_vetoed: NDArray[np.bool_]

    @cached_property
    def significant(self) -> NDArray[np.bool_]:
        return (self.p < ERROR) & ~self.is_vetoed  # comparing NaN gives False

    @cached_property
    def margins(self) -> Callable[[int], Array]:
        """Half the widths of the 95 % intervals, uncorrected; computed in blocks when first used."""
        assert self.errors is not None
        errors = self.errors
        return cache(lambda block: errors[block * BLOCK : (block + 1) * BLOCK].within(ERROR))

    def difference(self, i: int, sign: int = 1) -> Difference:
        """Return the difference of a contrast, or of its reverse."""
        is_tied, runs = abs(float(self.estimates[i])) < TIE, int(self.runs[i])
        estimate = 0.0 if is_tied else sign * float(self.estimates[i])
        negligible = None if self.p_negligible is None else bool(self.p_negligible[i] < ERROR)
        if self.errors is None or np.isnan(self.p[i]):
            return Difference(estimate, n=runs, is_tied=is_tied, is_negligible=negligible)
        margin, errors = float(self.margins(i // BLOCK)[i % BLOCK]), self.errors
        return Difference(
            estimate, estimate - margin, estimate + margin, float(self.p[i]), bool(self.significant[i]),
            float(self.p_alone[i]), float(errors.error[i]), float(errors.freedom[i]), runs, is_tied, negligible,
        )  # fmt: skip

    def sample_size(self, i: int, sign: int = 1) -> SampleSize | None:
        """Compute the sample size for a contrast; None if no spread is known.

        The level is Holm's for the next test: 5 % divided by the number of comparisons that are not significant yet.
        """
        if self.errors is None or np.isnan(self.p[i]):
            return None
        errors, level = self.errors[i : i + 1], ERROR / max(1, self.comparisons - int(self.significant.sum()))
        error, freedom = float(errors.error[0]), float(errors.freedom[0])
        critical = float(errors.within(level)[0]) / error
        estimate, settings = sign * float(self.estimates[i]), int(self.settings[i])
        return sample_size(estimate, error, freedom, critical, float(self.runs[i]) / settings, settings, level)


def test_family(
    model: SeedModel, contrasts: Sequence[Contrast], smallest: float | None = None, comparisons: int | None = None
) -> Family:
    """Test contrasts against zero, and against the smallest difference that matters.

    A difference is negligible if two one-sided tests (Schuirmann, 1987, Journal of Pharmacokinetics and
    Biopharmaceutics 15, 657-680), corrected like all others, show that it is below `smallest`. A single run does not
    show its setting's spread, so its difference from another setting cannot be tested. A mean over several pairs can.
    """
    places = [list(contrast.weights) for contrast in contrasts]
    estimates = np.array(
        [model.means[parts] @ list(c.weights.values()) for parts, c in zip(places, contrasts, strict=True)]
    )
    runs_of = model.runs_of
    runs = np.array([runs_of[parts].sum() for parts in places])
    testable = np.array([len(parts) > 2 or bool((runs_of[parts] > 1).all()) for parts in places], dtype=bool)
    errors = model.errors(*matrices(contrasts, len(model.means))) if contrasts and testable.any() else None
    p_alone = np.full(len(contrasts), np.nan)
    negligible = None if smallest is None else p_alone
    if errors is not None:
        p_alone = np.where(testable, np.minimum(1, 2 * errors.above(np.abs(estimates))), np.nan)
        if smallest is not None:
            negligible = holm(np.where(testable, errors.above(smallest - np.abs(estimates)), np.nan), comparisons)
    return Family(
        contrasts, estimates, p_alone, holm(p_alone, comparisons), negligible, errors, runs,
        np.array([len(parts) for parts in places]), comparisons or int(np.sum(~np.isnan(p_alone))),
        np.zeros(len(contrasts), bool),
    )  # fmt: skip


def matrices(contrasts: Sequence[Contrast], settings: int) -> tuple[Array, NDArray[np.int64]]:
    """Return the weights, [contrasts, settings], and the compared settings, [contrasts, parts], padded with -1."""
    weights = np.zeros((len(contrasts), settings))
    parts = np.full((len(contrasts), max(len(contrast.weights) for contrast in contrasts)), -1)
    for i, contrast in enumerate(contrasts):
        weights[i, list(contrast.weights)] = list(contrast.weights.values())
        parts[i, : len(contrast.weights)] = list(contrast.weights)
    return weights, parts


class ByPair(Mapping[tuple[Setting, Setting], T]):
    """The results of a family for each pair of settings, in either order.

    Args:
        place: Index of each pair in the family.
        get: Returns the result for an index and a sign, which is -1 if the pair is reversed.
    """

    def __init__(self, place: Mapping[tuple[Setting, Setting], int], get: Callable[[int, int], T]) -> None:
        self.place, self.get_at = place, get

    def __getitem__(self, pair: tuple[Setting, Setting]) -> T:
        if pair in self.place:
            return self.get_at(self.place[pair], 1)
        return self.get_at(self.place[pair[1], pair[0]], -1)

    def __iter__(self) -> Iterator[tuple[Setting, Setting]]:
        return iter(self.place)

    def __len__(self) -> int:
        return len(self.place)


def may_be_best(family: Family, sign: int, settings: int) -> NDArray[np.bool_]:
    """Select the settings that no other setting is significantly better than, [settings].

    Each setting is compared with all others as if it were the best (Hsu, 1984, Annals of Statistics 12, 1136-1144), but
    with two-sided tests. So the set contains the true best with 95 %, even if spreads are far from equal.
    """
    candidates = np.ones(settings, bool)
    beaten = (family.p_alone * (settings - 1) < ERROR) | (family.p < ERROR)
    for i in np.flatnonzero(beaten & ~family.is_vetoed).tolist():
        (pair,) = family.contrasts[i].pairs
        candidates[pair[1] if sign * family.estimates[i] > 0 else pair[0]] = False
    return candidates
