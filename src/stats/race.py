"""The decisions of a race: the settings dropped after each round, the next runs, the end.

All settings start with the first seeds. Each later round increases the number of seeds by half, for the settings still
in question. After a round each of these is compared with the leader, and dropped if it is significantly worse (races:
Maron and Moore, 1994, NIPS 6, 59-66).

- Looks. The tests after all rounds share one level in equal parts, computed for growing samples (Pocock, 1977,
  Biometrika 64, 191-199). The settings still in question share it, too.
- Spread. Differences and their errors are those of a comparison (stats.seeds), with moderated variances.
- Failures. A failed training counts as worse than every completed run (stats.failures). A setting with failed runs is
  dropped only if it is significantly worse in this sense, and is never the winner. A run that could not be made, e.g.
  because of too little memory, is missing, and does not count against its setting.

If results are distributed normally, or with heavier tails, a race names a wrong winner in about 5 % of cases: on
average in 2.9 %, and in 5.6 % in the worst of the simulated cases (experiments/calibration). A winner is wrong if it is
not the best setting on these validation images, or not the only best. The claim does not hold for settings that
sometimes fail, but did not in the race; stats.prediction.rate_bounds() bounds their rate of failures.

Decisions depend only on the results of runs, so a stopped race resumes as if it had not been stopped.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy.special import ndtr, ndtri

from stats.analysis import analyse, ranking
from stats.estimates import TIE, Values, as_table
from stats.failures import worst_rank
from stats.seeds import fit
from stats.variances import Array

GROWTH = 1.5  # factor of the number of seeds from one round to the next
LEVEL = 0.04  # level of a race; 0.01 of 0.05 is reserved for noise that is not normal
PLACES, WEIGHTS = np.polynomial.legendre.leggauss(80)  # points and weights of the integrals

Run = tuple[int, int]  # index of the setting, seed from 0


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run in a race.

    Attributes:
        value: The metric; None if the training failed; NaN if the run could not be made.
        seconds: Training time.
    """

    value: float | None
    seconds: float = 0.0


@dataclass(frozen=True)
class Rules:
    """The rules of a race.

    Attributes:
        settings: Number of settings, at least 2.
        first_seeds: Seeds of each setting in the first round.
        max_seeds: Most seeds of a setting.
        max_hours: Most hours of training, summed over runs.
        smallest: Smallest difference that matters, in the metric's unit.
        lower_is_better: True for losses.
        resolution: Step between two possible results, e.g. 1 / images; None if unknown.
    """

    settings: int
    first_seeds: int = 4
    max_seeds: int = 20
    max_hours: float | None = None
    smallest: float | None = None
    lower_is_better: bool = False
    resolution: float | None = None

    @property
    def rounds(self) -> tuple[int, ...]:
        """Number of seeds after each round, of a setting that is not dropped."""
        steps = round(math.log(self.max_seeds / self.first_seeds, GROWTH))
        steps = max(steps, int(self.max_seeds > self.first_seeds))
        return tuple(np.geomspace(self.first_seeds, self.max_seeds, steps + 1).round().astype(int).tolist())

    def level(self, settings: int) -> float:
        """Return the two-sided level of one test, given the number of settings in question."""
        return look_level(LEVEL / max(1, settings - 1), self.rounds)


@dataclass(frozen=True)
class Behind:
    """The distance of a setting from the leader.

    Attributes:
        value: Difference of the means of completed runs.
        margin: Half the width of its interval, at the level of the race's tests; None if a run of either failed.
        is_significant: True if the leader is significantly better, with failed runs as the worst.
    """

    value: float
    margin: float | None
    is_significant: bool


@dataclass(frozen=True)
class Dropped:
    """The round in which a setting was dropped, and its distance from the leader; None if no run could be made."""

    round: int
    leader: int | None = None
    behind: Behind | None = None


@dataclass
class Standing:
    """The standing of a race after the results so far."""

    round: int = 0  # the last complete round
    seeds: int = 0  # number of seeds of the settings in question
    ranked: list[int] = field(default_factory=list)  # settings in question, leader first
    behind: dict[int, Behind] = field(default_factory=dict)  # distances of the settings in question from the leader
    dropped: dict[int, Dropped] = field(default_factory=dict)
    results: dict[int, list[Outcome]] = field(default_factory=dict)  # by setting, of complete rounds
    missing: list[Run] = field(default_factory=list)  # runs before the next decision; none at the end
    end: str = ""  # winner, unsteady, smallest, max_seeds, max_hours, failed; empty: the race goes on

    @property
    def seconds(self) -> list[float]:
        """Training time of each run."""
        return [result.seconds for results in self.results.values() for result in results]

    def by_seed(self, setting: int) -> dict[int, float | None]:
        """Collect a setting's values by seed, with None for failed runs, and without runs that could not be made."""
        values = {seed: result.value for seed, result in enumerate(self.results[setting])}
        return {seed: value for seed, value in values.items() if value is None or not math.isnan(value)}

    def completed(self, setting: int) -> list[float]:
        return [value for value in self.by_seed(setting).values() if value is not None]

    def failures(self, setting: int) -> int:
        return sum(value is None for value in self.by_seed(setting).values())


def standing(result: Callable[[Run], Outcome | None], rules: Rules) -> Standing:
    """Make all decisions again from the results; `result` returns that of a run, None if there is none yet."""
    settings = list(range(rules.settings))
    race = Standing(ranked=settings, results={setting: [] for setting in settings})
    for number, seeds in enumerate(rules.rounds, 1):
        runs = [(setting, seed) for seed in range(race.seeds, seeds) for setting in race.ranked]
        if race.seconds and rules.max_hours is not None:
            expected = sum(race.seconds) * (1 + len(runs) / len(race.seconds))
            if expected > 3600 * rules.max_hours:
                race.end = "max_hours"
                return race
        results = {run: result(run) for run in runs}
        race.missing = [run for run, outcome in results.items() if outcome is None]
        if race.missing:
            return race
        for (setting, _), outcome in results.items():
            race.results[setting] += [outcome] if outcome else []
        race.round, race.seeds = number, seeds
        decide(race, rules)
        if race.end:
            return race
    race.end = "max_seeds"
    return race


def decide(race: Standing, rules: Rules) -> None:
    """Drop settings after a round, and end the race if nothing is left to decide."""
    lost = [setting for setting in race.ranked if not race.by_seed(setting)]
    race.dropped |= {setting: Dropped(race.round) for setting in lost}
    race.ranked = [setting for setting in race.ranked if setting not in lost]
    if not any(map(race.completed, race.ranked)):
        race.end = "failed"
        return
    race.ranked, behind = compare(race, rules)
    leader = race.ranked[0]
    worse = [setting for setting in behind if behind[setting].is_significant]
    race.dropped |= {setting: Dropped(race.round, leader, behind[setting]) for setting in worse}
    race.ranked = [setting for setting in race.ranked if setting not in race.dropped]
    race.behind = {setting: behind[setting] for setting in race.ranked[1:]}
    if not race.behind:
        race.end = "unsteady" if race.failures(leader) else "winner"
    elif rules.smallest is not None and all(
        distance.margin is not None and distance.value + distance.margin < rules.smallest
        for distance in race.behind.values()
    ):
        race.end = "smallest"


def compare(race: Standing, rules: Rules) -> tuple[list[int], dict[int, Behind]]:
    """Rank the settings in question, and compare the others with the leader."""
    sign = -1 if rules.lower_is_better else 1
    level = rules.level(len(race.ranked))
    completed = {a: sign * np.array(race.completed(a)) for a in race.ranked}
    settings = [a for a in race.ranked if len(completed[a])]  # the others come last, and are not in the model
    table = sign * as_table({a: race.by_seed(a) for a in settings}, settings, range(race.seeds))
    model = fit(table, (rules.resolution or 0.0) ** 2 / 12)
    order = ranking(model.means, [completed[a] for a in settings], [race.failures(a) for a in settings])
    first, leader = order[0], settings[order[0]]
    contrasts = np.eye(len(settings))[first] - np.eye(len(settings))
    errors = model.errors(np.delete(contrasts, first, axis=0)) if len(settings) > 1 else None
    margins = np.full(len(settings), math.inf)
    if errors is not None:
        margins[np.arange(len(settings)) != first] = errors.within(level)
    margins[model.runs_of < 2] = math.inf  # one run does not show its setting's spread
    behind = {}
    for i, setting in enumerate(settings):
        value, margin = float(model.means[first] - model.means[i]), float(margins[i])
        if race.failures(leader) or race.failures(setting):
            behind[setting] = Behind(value, None, is_worse_with_failures(race, completed, leader, setting, level))
        else:
            behind[setting] = Behind(value, margin, value > margin > TIE)
    for setting in set(race.ranked) - set(settings):
        behind[setting] = Behind(math.inf, None, is_worse_with_failures(race, completed, leader, setting, level))
    del behind[leader]
    return [settings[i] for i in order] + sorted(set(race.ranked) - set(settings)), behind


def is_worse_with_failures(
    race: Standing, completed: dict[int, Array], leader: int, setting: int, level: float
) -> bool:
    """Test if the leader is better, with failed runs as the worst."""
    failed = race.failures(leader), race.failures(setting)
    return worst_rank(completed[leader], failed[0], completed[setting], failed[1]) < level / 2


def confidence(race: Standing, rules: Rules) -> float | None:
    """Return the leader's probability of being the best setting; None if no spread is known."""
    values: Values = {setting: race.by_seed(setting) for setting in race.results if race.completed(setting)}
    analysis = analyse(values, not rules.lower_is_better, rules.resolution)
    return analysis.probability_best.get(race.ranked[0])


@cache
def look_level(level: float, rounds: Sequence[int]) -> float:
    """Compute the level of each look at growing data, so that all looks together have this level (Pocock, 1977)."""
    low, high = float(ndtri(1 - level / 2)), float(ndtri(1 - level / 2 / len(rounds))) + 0.01
    for _ in range(40):
        bound = (low + high) / 2
        low, high = (bound, high) if crossing(bound, rounds) > level else (low, bound)
    return 2 * float(ndtr(-high))


def crossing(bound: float, rounds: Sequence[int]) -> float:
    """Compute the probability that a standardized mean exceeds the bound at any look although nothing differs.

    Source: Armitage, McPherson and Rowe, 1969, Journal of the Royal Statistical Society A 132, 235-244.
    """
    before, density, step = np.zeros(1), np.ones(1), np.ones(1)  # of the sum, if no look exceeded the bound
    for seeds, added in zip(rounds, np.diff([0, *rounds]), strict=True):
        edge = bound * math.sqrt(seeds)
        points = edge * PLACES
        kernel = np.exp(-((points[:, None] - before) ** 2) / 2 / added) / math.sqrt(2 * math.pi * added)
        before, density, step = points, kernel @ (density * step), edge * WEIGHTS
    return 1 - float(np.sum(density * step))
