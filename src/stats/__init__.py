"""Statistics of runs: numbers by setting and seed in, a frozen result out. Knows neither files nor words.

from stats import analyse
result = analyse({"k5": {0: 0.91, 1: 0.92}, "k9": {0: 0.94, 1: None}})  # None: the run failed
"""

from stats.estimates import CONFIDENCE, ERROR, TIE, Difference, Effect, Estimate, Setting, Values, mean, quantile

__all__ = [
    "CONFIDENCE", "ERROR", "TIE", "Difference", "Effect", "Estimate", "Setting", "Values", "mean", "quantile",
]  # fmt: skip
