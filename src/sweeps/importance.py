"""Importance of each key of a search, compared with its importance by chance."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from stats.estimates import ERROR
from stats.variances import Array


@dataclass(frozen=True)
class Importance:
    """The importance of a key.

    Attributes:
        share: Share of the objective's variance.
        by_chance: Highest share of the key with permuted objectives.
    """

    share: float
    by_chance: float

    @property
    def stands_out(self) -> bool:
        """True if the key matters more than by chance. If no key matters, one stands out in at most 5 % of searches."""
        return self.share > self.by_chance


def importances(shares_of: Callable[[Array], Mapping[str, float]], objectives: Array) -> dict[str, Importance]:
    """Compare the keys' shares with those of permuted objectives, which depend on no key.

    The number of permutations is such that one of n keys exceeds its highest share by chance in 5 % / n of cases.

    Args:
        shares_of: Function that returns the share of each key, given objectives of the trials.
        objectives: [trials].

    Returns:
        The keys, most important first.

    Source: Altmann et al., 2010, Bioinformatics 26, 1340-1347.
    """
    shares = shares_of(objectives)
    generator, chance = np.random.default_rng(0), dict.fromkeys(shares, 0.0)
    for _ in range(math.ceil(len(shares) / ERROR - 1e-9) - 1):
        permuted = shares_of(generator.permutation(objectives))
        chance = {key: max(highest, permuted[key]) for key, highest in chance.items()}
    order = sorted(shares, key=lambda key: -shares[key])
    return {key: Importance(float(shares[key]), float(chance[key])) for key in order}
