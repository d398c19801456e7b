"""Interactions: how a factor's effect changes with another factor."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from stats.estimates import Difference, Effect, Setting
from stats.factors import levels_of
from stats.families import Contrast, test_family
from stats.seeds import SeedModel

Pairs = list[tuple[Setting, Setting]]


@dataclass(frozen=True)
class Interaction:
    """The difference of a factor's effect at another factor's level and at its baseline.

    Attributes:
        effect, other: The effect, and that of the other factor.
        at_level, at_baseline: The effect, averaged over settings that are alike but for the two factors.
        difference: Difference of these two, corrected for all interactions.
    """

    effect: Effect
    other: Effect
    at_level: float
    at_baseline: float
    difference: Difference


def interactions_of(
    effects: Sequence[Effect], settings: Sequence[Setting], model: SeedModel
) -> tuple[Interaction, ...]:
    """Estimate and test the interactions of every two effects.

    The mean difference of the pairs at the level and of the reversed pairs at the baseline is half an interaction.
    """
    place = {setting: i for i, setting in enumerate(settings)}
    crossed = list(crossed_effects(effects))
    signed = [[*at_level, *((b, a) for a, b in at_baseline)] for _, _, at_level, at_baseline in crossed]
    family = test_family(model, [Contrast.of([(place[a], place[b]) for a, b in pairs]) for pairs in signed])
    interactions = []
    for i, (effect, other, *both) in enumerate(crossed):
        at_level, at_baseline = (
            float(np.mean([model.means[place[a]] - model.means[place[b]] for a, b in pairs])) for pairs in both
        )
        half = family.difference(i)
        numbers = {name: getattr(half, name) for name in ("estimate", "low", "high", "error")}
        difference = replace(half, **{name: number and 2 * number for name, number in numbers.items()})
        interactions.append(Interaction(effect, other, at_level, at_baseline, difference))
    return tuple(interactions)


def crossed_effects(effects: Sequence[Effect]) -> Iterator[tuple[Effect, Effect, Pairs, Pairs]]:
    """Yield two effects with the first one's pairs of settings at the other factor's level and at its baseline.

    Both lists have the same order; their pairs are alike but for the two factors.
    """
    for effect, other in combinations(effects, 2):
        pairs: dict[Any, dict[tuple[Any, ...], tuple[Setting, Setting]]] = defaultdict(dict)
        for a, b in effect.pairs:
            of_a, of_b = levels_of(a) or {}, levels_of(b) or {}
            if of_a[other.factor] == of_b[other.factor]:
                further = tuple(of_a[factor] for factor in of_a if factor not in (effect.factor, other.factor))
                pairs[of_a[other.factor]][further] = a, b
        at_level, at_baseline = pairs[other.level], pairs[other.baseline]
        if common := [further for further in at_level if further in at_baseline]:
            yield effect, other, [at_level[further] for further in common], [at_baseline[further] for further in common]
