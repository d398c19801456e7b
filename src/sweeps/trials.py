"""The trials of a search: proposed, counted, tried again.

Each is added whole, as running, so that there is never half a one in the file; and what it is depends on the seed and
the trials before it alone, so that a search that was interrupted makes the same ones.
"""

from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeps.search_options import SearchOptions
from sweeps.space import Distribution, Space
from tracking.trial import FINISH

RETRY_OF = "retry_of"  # attribute of a trial: the number of the one that failed
SEEDS = "seeds"  # attribute of a study: by a trial's number the objectives of its seeds


def propose(study: optuna.Study, space: Space, options: SearchOptions) -> list[FrozenTrial]:
    """The next trials, from those so far; none where there are all."""
    count = max(0, min(options.n_jobs, options.n_trials - len(not_retried(study))))
    for _ in range(count):
        known = study.get_trials()
        own_seed = np.random.SeedSequence([options.seed, len(known)]).generate_state(1)[0]
        draft = optuna.create_study(direction=study.direction, sampler=options.sampler(seed=int(own_seed)))
        draft.add_trials(known)
        drawn = draft.ask(dict(space)).params
        params = {name: shortened(drawn[name], distribution) for name, distribution in space.items()}
        add(study, params, space, options)
    return study.get_trials()[-count:] if count else []


def shortened(value: Any, distribution: Distribution) -> Any:
    """A number with few digits, to be read and typed."""
    if not isinstance(distribution, FloatDistribution):
        return value
    digits = 4 if distribution.step is None else 12
    return min(max(float(f"{value:.{digits}g}"), distribution.low), distribution.high)


def try_again(study: optuna.Study, options: SearchOptions) -> int:
    """Add every trial that failed once more; how many they are."""
    failed = not_retried(study, TrialState.FAIL)
    for trial in failed:
        add(study, trial.params, trial.distributions, options, **{RETRY_OF: trial.number})
    return len(failed)


def add(study: optuna.Study, params: dict[str, Any], space: Any, options: SearchOptions, **attributes: Any) -> None:
    number = len(study.trials)
    if np.random.default_rng([options.seed, number]).random() < options.finish_pruned:
        attributes[FINISH] = True
    study.add_trial(
        create_trial(state=TrialState.RUNNING, params=params, distributions=dict(space), user_attrs=attributes)
    )


def not_retried(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """Trials in these states, or all; one that was tried again is one."""
    retried = {trial.user_attrs.get(RETRY_OF) for trial in study.trials}
    return [trial for trial in study.get_trials(states=states or None) if trial.number not in retried]


def seed_values(study: optuna.Study) -> dict[int, list[float]]:
    """The objectives of the seeds of every completed trial, by its number."""
    values = study.user_attrs.get(SEEDS, {})
    numbers = [trial.number for trial in study.get_trials(states=[TrialState.COMPLETE])]
    return {number: values[str(number)] for number in numbers if str(number) in values}


def complete(study: optuna.Study, number: int, values: list[float]) -> None:
    """Keep a trial's objective: the mean over its seeds."""
    study.set_user_attr(SEEDS, {**study.user_attrs.get(SEEDS, {}), str(number): values})
    study.tell(number, float(np.mean(values)))
