"""Statistics of runs: from numbers by setting and seed to a frozen result, without files or words.

from stats import analyse
result = analyse({"k5": {0: 0.91, 1: 0.92}, "k9": {0: 0.94, 1: None}})  # None: the run failed
"""

from stats.analysis import Analysis, analyse
from stats.estimates import Difference, Effect, Estimate, mean
from stats.factors import EVERY
from stats.sample_size import SampleSize

__all__ = ["EVERY", "Analysis", "Difference", "Effect", "Estimate", "SampleSize", "analyse", "mean"]
