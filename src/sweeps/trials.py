"""The trials of a search: propose, count, repeat, give up.

Each is added whole, as running, so that there is never half a one in the file; and what it is depends on the seed and
the trials before it alone, so that a search that was interrupted makes the same ones.
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

RESUMABLE = (TPESampler, GPSampler, RandomSampler)  # which propose by the trials so far alone
RETRY_OF = "retry_of"  # attribute of a trial: the number of the one that failed
SEEDS = "seeds"  # attribute of a study: by a trial's number the objectives of its seeds
RUNS = "runs"  # attribute of a study: by a trial's number the IDs of its runs


def propose(study: optuna.Study, space: Space, options: Search) -> list[FrozenTrial]:
    """Propose the next trials from those so far; none if there are enough."""
    count = max(0, min(options.n_jobs, options.n_trials - len(not_retried(study))))
    for _ in range(count):
        known = study.get_trials()
        own_seed = np.random.SeedSequence([options.seed, len(known)]).generate_state(1)[0]
        draft = optuna.create_study(direction=study.direction, sampler=make_sampler(options, int(own_seed)))
        draft.add_trials(known)
        drawn = draft.ask(dict(space)).params
        params = {name: shortened(drawn[name], distribution) for name, distribution in space.items()}
        add(study, params, space, options)
    return study.get_trials()[-count:] if count else []


def make_sampler(options: Search, seed: int) -> BaseSampler:
    """Make the sampler, with the trials of earlier starts.

    Raises:
        ConfigError: there is no such sampler, or it could not go on after the trials of an earlier start.
    """
    name = (options.sampler or {}).get("_target_")
    try:
        made = instantiate({key: value for key, value in (options.sampler or {}).items() if value is not None})
        sampler = made(seed=seed)
    except (TypeError, ValueError, HydraException) as error:
        raise ConfigError(f"hydra.sweeper.sampler._target_={name}: {first_line(error.__cause__ or error)}") from error
    if type(sampler).__module__.startswith("optuna.") and not isinstance(sampler, RESUMABLE):
        raise ConfigError(
            f"hydra.sweeper.sampler._target_={name}: needs more than the trials so far to go on, so that a search "
            f"could not resume; expected one of {', '.join(f'optuna.samplers.{each.__name__}' for each in RESUMABLE)}"
        )
    return sampler


def shortened(value: Any, distribution: Distribution) -> Any:
    """Shorten a number to few digits."""
    if not isinstance(distribution, FloatDistribution):
        return value
    digits = 4 if distribution.step is None else 12
    return min(max(float(f"{value:.{digits}g}"), distribution.low), distribution.high)


def try_again(study: optuna.Study, options: Search) -> int:
    """Add every failed trial once more; return their number."""
    failed = not_retried(study, TrialState.FAIL)
    for trial in failed:
        add(study, trial.params, trial.distributions, options, **{RETRY_OF: trial.number})
    return len(failed)


def add(study: optuna.Study, params: dict[str, Any], space: Any, options: Search, **attributes: Any) -> None:
    number = len(study.trials)
    if np.random.default_rng([options.seed, number]).random() < options.finish_pruned:
        attributes[FINISH] = True
    study.add_trial(
        create_trial(state=TrialState.RUNNING, params=params, distributions=dict(space), user_attrs=attributes)
    )


def not_retried(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """List trials in these states, or all; a repeated trial counts once."""
    retried = {trial.user_attrs.get(RETRY_OF) for trial in study.trials}
    return [trial for trial in study.get_trials(states=states or None) if trial.number not in retried]


def completed(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=[TrialState.COMPLETE])


def sign(study: optuna.Study) -> int:
    """Return 1 if a higher objective is better, else -1."""
    return -1 if study.direction == StudyDirection.MINIMIZE else 1


def seed_values(study: optuna.Study) -> dict[int, list[float]]:
    """Collect the objectives of the seeds of every completed trial, by its number."""
    kept = check_type(dict[str, list[Finite]], study.user_attrs.get(SEEDS, {}))
    return {int(number): values for number, values in kept.items()}


def keep_runs(study: optuna.Study, run_ids: Mapping[int, str]) -> None:
    """Keep the ID of a run of each trial, by the trial's number."""
    runs = study.user_attrs.get(RUNS, {})
    added = {
        str(number): list(dict.fromkeys([*runs.get(str(number), []), run_id])) for number, run_id in run_ids.items()
    }
    study.set_user_attr(RUNS, {**runs, **added})


def complete(study: optuna.Study, number: int, values: list[float]) -> None:
    """Record a trial's objective: the mean over its seeds."""
    study.set_user_attr(SEEDS, {**study.user_attrs.get(SEEDS, {}), str(number): values})
    study.tell(number, float(np.mean(values)))


def is_hopeless(values: Sequence[float], others: Sequence[Sequence[float]], lower_is_better: bool) -> bool:
    """Check whether a trial is significantly worse than the best of the others at 95 %; it gets no more seeds.

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
