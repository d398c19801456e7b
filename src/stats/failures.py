"""Failed runs, each of which counts as worse than every completed run."""

import math
from itertools import combinations

import numpy as np
from scipy.special import ndtr

from stats.estimates import TIE
from stats.variances import Array


def worst_rank(values: Array, failed: int, others: Array, others_failed: int) -> float:
    """Test if runs are better than others, with failed runs as the worst; return the one-sided p of permuted ranks.

    Source: Lachin, 1999, Controlled Clinical Trials 20, 408-422.
    """
    n = len(values) + failed
    scores = np.concatenate([values, np.full(failed, -np.inf), others, np.full(others_failed, -np.inf)])
    ranks = np.array([np.sum(scores < score) + np.sum(scores == score) / 2 for score in scores])
    total = len(scores)
    if math.comb(total, n) <= 20_000:
        sums = ranks[list(combinations(range(total), n))].sum(1)
        return float(np.mean(sums >= ranks[:n].sum() - TIE))
    spread = math.sqrt(n * (total - n) / (total - 1) * ranks.var())
    return float(ndtr((n * ranks.mean() - ranks[:n].sum()) / spread)) if spread else 1.0


def beats(values: Array, failed: int, others: Array, others_failed: int) -> float:
    """Compute the share of pairs of runs in which the first is better, with failed runs as the worst."""
    wins = float(np.sum(values[:, None] > others) + np.sum(values[:, None] == others) / 2)
    wins += len(values) * others_failed + failed * others_failed / 2
    return wins / ((len(values) + failed) * (len(others) + others_failed))
