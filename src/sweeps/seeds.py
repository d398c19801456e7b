"""Whether a trial of a search over seeds gets another one."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit


def is_hopeless(values: Sequence[float], others: Sequence[Sequence[float]], lower_is_better: bool) -> bool:
    """Whether a trial is significantly worse than the best of the others at 95 %.

    By Fisher's least significant difference (The Design of Experiments, 1935): a t test with the spread over seeds
    pooled over all trials. It does not correct for how often it looks, nor for the best being the best of many: it
    only has to spare seeds. Without a trial of two seeds there is no spread, and nothing is hopeless.

    Args:
        values: the trial's, a seed each.
        others: the values of the trials before.
    """
    freedom = sum(len(seeds) - 1 for seeds in (values, *others))
    if not freedom or not others:
        return False
    sign = -1 if lower_is_better else 1
    best = max(others, key=lambda seeds: sign * np.mean(seeds))
    variance = sum(len(seeds) * np.var(seeds) for seeds in (values, *others)) / freedom
    error = math.sqrt(variance * (1 / len(values) + 1 / len(best)))
    return bool(sign * (np.mean(best) - np.mean(values)) > stdtrit(freedom, 0.975) * error)
