"""The trials of a search: proposals, retries, objectives.

A trial is added to the database in one step, with the state "running". It depends only on the seed and the earlier
trials, so an interrupted search proposes the same trials again.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from hydra.errors import HydraException
from hydra.utils import instantiate
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.special import stdtrit

from config.errors import ConfigError, first_line
from config.sweepers import Search
from config.typed import Finite, check_type
from sweeps.space import Distribution, Space
from tracking.trial import FINISH

RESUMABLE = (TPESampler, GPSampler, RandomSampler)  # samplers that depend only on the trials so far
RETRY_OF = "retry_of"  # attribute of a trial: the number of the failed trial that it repeats
SEEDS = "seeds"  # attribute of a study: the objectives of each trial's seeds, by the trial's number
RUNS = "runs"  # attribute of a study: the IDs of each trial's runs, by the trial's number


def propose(study: optuna.Study, space: Space, options: Search) -> list[FrozenTrial]:
    """Propose the next trials from the trials so far; none if there are `n_trials`."""
    count = max(0, min(options.n_jobs, options.n_trials - len(not_retried(study))))
    for _ in range(count):
        trials = study.get_trials()
        seed = np.random.SeedSequence([options.seed, len(trials)]).generate_state(1)[0]
        draft = optuna.create_study(direction=study.direction, sampler=make_sampler(options, int(seed)))
        draft.add_trials(trials)
        drawn = draft.ask(dict(space)).params
        params = {name: round_value(drawn[name], distribution) for name, distribution in space.items()}
        add_trial(study, params, space, options)
    return study.get_trials()[-count:] if count else []


def make_sampler(options: Search, seed: int) -> BaseSampler:
    """Make the sampler with a seed.

    Raises:
        ConfigError: The sampler does not exist, or needs a state that a resumed search does not have.
    """
    name = (options.sampler or {}).get("_target_")
    try:
        made = instantiate({key: value for key, value in (options.sampler or {}).items() if value is not None})
        sampler = made(seed=seed)
    except (TypeError, ValueError, HydraException) as error:
        raise ConfigError(f"hydra.sweeper.sampler._target_={name}: {first_line(error.__cause__ or error)}") from error
    if type(sampler).__module__.startswith("optuna.") and not isinstance(sampler, RESUMABLE):
        raise ConfigError(
            f"hydra.sweeper.sampler._target_={name}: has a state that is not saved, so a search could not resume; "
            f"expected one of {', '.join(f'optuna.samplers.{kind.__name__}' for kind in RESUMABLE)}"
        )
    return sampler


def round_value(value: Any, distribution: Distribution) -> Any:
    """Round a proposed number to few digits, for readable overrides."""
    if not isinstance(distribution, FloatDistribution):
        return value
    digits = 4 if distribution.step is None else 12
    return min(max(float(f"{value:.{digits}g}"), distribution.low), distribution.high)


def try_again(study: optuna.Study, options: Search) -> int:
    """Add every failed trial once more; return the number of failed trials."""
    failed = not_retried(study, TrialState.FAIL)
    for trial in failed:
        add_trial(study, trial.params, trial.distributions, options, **{RETRY_OF: trial.number})
    return len(failed)


def add_trial(study: optuna.Study, params: dict[str, Any], space: Any, options: Search, **attributes: Any) -> None:
    """Add a running trial; some trials, drawn at random, are protected from the pruner."""
    number = len(study.trials)
    if np.random.default_rng([options.seed, number]).random() < options.finish_pruned:
        attributes[FINISH] = True
    trial = create_trial(state=TrialState.RUNNING, params=params, distributions=dict(space), user_attrs=attributes)
    study.add_trial(trial)


def not_retried(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """List the trials in these states, by default all, without failed trials that were repeated."""
    retried = {trial.user_attrs.get(RETRY_OF) for trial in study.trials}
    return [trial for trial in study.get_trials(states=states or None) if trial.number not in retried]


def completed_trials(study: optuna.Study) -> list[FrozenTrial]:
    """List the completed trials."""
    return study.get_trials(states=[TrialState.COMPLETE])


def sign(study: optuna.Study) -> int:
    """Return 1 if a higher objective is better, else -1."""
    return -1 if study.direction == StudyDirection.MINIMIZE else 1


def seed_values(study: optuna.Study) -> dict[int, list[float]]:
    """Collect the objectives of the seeds of every completed trial, by its number."""
    seeds = check_type(dict[str, list[Finite]], study.user_attrs.get(SEEDS, {}))
    return {int(number): values for number, values in seeds.items()}


def keep_runs(study: optuna.Study, run_ids: Mapping[int, str]) -> None:
    """Record the ID of a run of each trial, by the trial's number."""
    runs = dict(study.user_attrs.get(RUNS, {}))
    for number, run_id in run_ids.items():
        runs[str(number)] = list(dict.fromkeys([*runs.get(str(number), []), run_id]))
    study.set_user_attr(RUNS, runs)


def complete_trial(study: optuna.Study, number: int, values: list[float]) -> None:
    """Record a trial's objective: the mean over its seeds."""
    study.set_user_attr(SEEDS, {**study.user_attrs.get(SEEDS, {}), str(number): values})
    study.tell(number, float(np.mean(values)))


def is_hopeless(values: Sequence[float], others: Sequence[Sequence[float]], lower_is_better: bool) -> bool:
    """Return True if a trial is significantly worse than the best of the others at 95 %; it gets no more seeds.

    The test is Fisher's least significant difference (The Design of Experiments, 1935): a t test whose variance over
    seeds is pooled over all trials. It is not corrected for repeated tests, nor for the selection of the best, as it
    only saves seeds. If no trial has two seeds, there is no variance, and no trial is hopeless.

    Args:
        values: Objectives of the trial's seeds.
        others: Objectives of the earlier trials' seeds.
        lower_is_better: True if the objective is minimized.
    """
    freedom = sum(len(seeds) - 1 for seeds in (values, *others))
    if not freedom or not others:
        return False
    sign = -1 if lower_is_better else 1
    best = max(others, key=lambda seeds: sign * np.mean(seeds))
    variance = sum(len(seeds) * np.var(seeds) for seeds in (values, *others)) / freedom
    error = math.sqrt(variance * (1 / len(values) + 1 / len(best)))
    return bool(sign * (np.mean(best) - np.mean(values)) > stdtrit(freedom, 0.975) * error)
