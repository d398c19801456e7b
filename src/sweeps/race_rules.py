"""The decisions of a race: who is dropped after which round, who runs next, and when it is over.

Every setting gets the first few seeds; each later round adds half of the seeds so far, to the settings still in
question. After a round each of them is compared with the leader by the paired t-test, seed by seed, and dropped where
it is significantly worse. These are the races of Maron and Moore (1994, NIPS 6, 59-66), which test after every round
at a level that a union bound shares among all tests, with Student's t in place of Hoeffding's inequality.

With k settings and R rounds each test is two-sided at 0.05 / (k - 1) / R. To drop a setting that is truly the best, one
of k - 1 others must look significantly better in one of R rounds: at most 2.5 %. To name a winner where two settings
are equally good, one of these two must be dropped so: at most 5 %. The tests assume that the differences between two
settings' runs with the same seed are normal, and nothing about equal variances: a setting whose runs scatter more than
others' does not mislead the comparison of the rest. Where all differences are the same there is no spread to judge by,
and nothing is dropped.

Decisions depend on the results of completed runs and on nothing else, so a race that was stopped resumes as if it had
not been.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit

from comparison.least_squares import CONFIDENCE, TIE, Estimate, mean

GROWTH = 1.5  # of the seeds from one round to the next

Run = tuple[int, int]  # setting, seed, both counted from 0


@dataclass(frozen=True)
class Result:
    value: float  # of the metric; NaN: the run failed
    seconds: float = 0.0  # that it trained


@dataclass(frozen=True)
class Rules:
    """
    Attributes:
        settings: how many race, at least 2.
        max_hours: of training, summed over runs.
        smallest: differences below it do not matter; in the metric's unit.
    """

    settings: int
    first_seeds: int = 4
    max_seeds: int = 20
    max_hours: float | None = None
    smallest: float | None = None
    lower_is_better: bool = False

    @property
    def rounds(self) -> list[int]:
        """The seeds that a setting has after each round in which it is not dropped."""
        steps = round(math.log(self.max_seeds / self.first_seeds, GROWTH))
        steps = max(steps, int(self.max_seeds > self.first_seeds))
        return np.geomspace(self.first_seeds, self.max_seeds, steps + 1).round().astype(int).tolist()

    @property
    def level(self) -> float:
        """Of a single test, two-sided."""
        return (1 - CONFIDENCE) / (self.settings - 1) / len(self.rounds)


@dataclass(frozen=True)
class Dropped:
    round: int
    leader: int
    behind: Estimate | None  # the leader; None: a run failed


@dataclass
class Standing:
    """How a race stands after the results so far."""

    round: int = 0  # the last one that is complete
    seeds: int = 0  # of the settings in question
    ranked: list[int] = field(default_factory=list)  # the settings in question, the leader first
    behind: dict[int, Estimate] = field(default_factory=dict)  # how far each of them is behind the leader
    dropped: dict[int, Dropped] = field(default_factory=dict)
    results: dict[int, list[Result]] = field(default_factory=dict)  # of each setting, as far as they were decided on
    missing: list[Run] = field(default_factory=list)  # to be made before the next decision; none at the end
    end: str = ""  # winner, smallest, max_seeds, max_hours, failed; empty: the race goes on

    @property
    def seconds(self) -> list[float]:
        """What each run took."""
        return [found.seconds for results in self.results.values() for found in results]


def standing(result: Callable[[Run], Result | None], rules: Rules) -> Standing:
    """All decisions, made anew from the runs' results, which are None where there is none yet."""
    settings = list(range(rules.settings))
    now = Standing(ranked=settings, results={setting: [] for setting in settings})
    for number, seeds in enumerate(rules.rounds, 1):
        runs = [(setting, seed) for seed in range(now.seeds, seeds) for setting in now.ranked]
        if now.seconds and rules.max_hours is not None:
            expected = sum(now.seconds) * (1 + len(runs) / len(now.seconds))
            if expected > 3600 * rules.max_hours:
                now.end = "max_hours"
                return now
        results = {run: result(run) for run in runs}
        now.missing = [run for run, found in results.items() if found is None]
        if now.missing:
            return now
        for (setting, _), found in results.items():
            now.results[setting] += [found] if found else []
        now.round, now.seeds = number, seeds
        decide(now, rules)
        if now.end:
            return now
    now.end = "max_seeds"
    return now


def decide(now: Standing, rules: Rules) -> None:
    """Drop settings after a round, and see whether the race is over."""
    sign = -1 if rules.lower_is_better else 1
    values = {setting: sign * np.array([found.value for found in now.results[setting]]) for setting in now.ranked}
    failed = [setting for setting in now.ranked if np.isnan(values[setting]).any()]
    now.ranked = sorted(set(now.ranked) - set(failed), key=lambda setting: (-values[setting].mean(), setting))
    if not now.ranked:
        now.end = "failed"
        return
    leader, *others = now.ranked
    now.behind = {other: behind for other in others if (behind := mean(values[leader] - values[other]))}
    worse = [other for other, behind in now.behind.items() if behind.value > margin(behind, rules) > TIE]
    now.dropped |= {setting: Dropped(now.round, leader, now.behind.get(setting)) for setting in (*failed, *worse)}
    now.ranked = [setting for setting in now.ranked if setting not in now.dropped]
    now.behind = {setting: now.behind[setting] for setting in now.ranked[1:]}
    if not now.behind:
        now.end = "winner"
    elif rules.smallest is not None and all(
        behind.value + margin(behind, rules) < rules.smallest for behind in now.behind.values()
    ):
        now.end = "smallest"


def margin(behind: Estimate, rules: Rules) -> float:
    """Half the width of the interval of a difference, at the level of this race's tests."""
    if behind.error is None:
        return math.inf
    return float(stdtrit(behind.freedom, 1 - rules.level / 2)) * behind.error
