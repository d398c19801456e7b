"""Search instead of a grid: Optuna proposes the runs of a sweep, and learns from how they did.

Everything that it knows is in OUTPUT_DIR/SWEEP/search.db, so that the same command resumes whatever ended it:
`optuna-dashboard sqlite:///OUTPUT_DIR/SWEEP/search.db` shows it.
"""

import hashlib
import json
import logging
import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from config.errors import ConfigError
from config.schema import Config, overrides_of
from runtime.console import say
from sweeps import jobs
from sweeps.space import Distribution, Space, check_space, split_overrides
from tracking.identity import run_id

log = logging.getLogger(__name__)


def search(
    config: DictConfig,
    launcher: Launcher,
    arguments: Sequence[str],
    n_trials: int,
    n_jobs: int,
    seed: int,
    sampler: Callable[..., BaseSampler],
    params: Mapping[str, Any] | None,
) -> None:
    """Run trials until there are `n_trials`, in all starts together; first those that were interrupted.

    Raises:
        ConfigError: what is asked for cannot be searched; nothing has been started.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name, value, low in (("n_trials", n_trials, 1), ("n_jobs", n_jobs, 1), ("seed", seed, 0)):
        jobs.check_whole(f"hydra.sweeper.{name}", value, low)
    try:
        sampler(seed=seed)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"hydra.sweeper.sampler: {error}") from error

    app: str = config.hydra.job.config_name
    space, fixed = split_overrides(app, jobs.parse_overrides(arguments, params))
    fixed = {"sweep": config.sweep, **fixed, "varied": jobs.as_list(space)}
    typical = check_space(app, space, fixed)
    with jobs.locked_folder(config) as folder:
        study = optuna.create_study(
            storage=storage(folder / "search.db"),
            study_name=study_name(typical, space),
            direction="minimize" if typical.trainer.monitor == "val/loss" else "maximize",
            load_if_exists=True,
        )
        interrupted = study.get_trials(states=[TrialState.RUNNING])
        failed = try_again(study)
        batch = study.get_trials(states=[TrialState.RUNNING])
        before = count(study)
        say(
            f"search {config.sweep}: {n_trials} trials"
            + (f", {before - len(batch)} of them done" if before else "")
            + (f", {len(interrupted)} interrupted" if interrupted else "")
            + (f", {failed} failed and tried again" if failed else "")
            + f"; {study.direction.name.lower()} {typical.trainer.monitor} → {folder}"
        )
        while batch or (batch := propose(study, space, min(n_jobs, n_trials - count(study)), seed, sampler)):
            run_batch(app, study, batch, fixed, launcher)
            batch = []
        say(best(study, typical.trainer.monitor))


def storage(path: Path) -> RDBStorage:
    """A database file, whatever its path: as a URL one with `?` or `%` would be another."""
    return RDBStorage("sqlite://", engine_kwargs={"creator": lambda: sqlite3.connect(path, timeout=60)})


def study_name(typical: Config, space: Space) -> str:
    """The same for the same search: another one under an old name of a sweep starts from nothing."""
    spaces = {key: distribution_to_json(values) for key, values in sorted(space.items())}
    searched = hashlib.sha256(json.dumps([run_id(typical), spaces]).encode()).hexdigest()[:8]
    return f"{typical.sweep}-{searched}"


def run_batch(
    app: str, study: optuna.Study, batch: Sequence[FrozenTrial], fixed: Mapping[str, str], launcher: Launcher
) -> None:
    """Launch the runs and keep how they did; one that does not get to its end stays a running trial."""
    valid: dict[int, jobs.Job] = {}  # by the number of the trial; two trials may be the same run
    for trial in batch:
        overrides = overrides_of({**trial.params, **fixed})
        try:
            valid[trial.number] = jobs.make_job(app, overrides)
        except ConfigError as error:  # values, each right by itself, that do not fit together
            log.error(f"FAILED {' '.join(overrides)}: {error}")
            study.tell(trial.number, state=TrialState.FAIL)
    jobs.launch(launcher, valid.values(), first_number=batch[0].number)
    for number, job in valid.items():
        objective = jobs.objective(job.summary)
        if objective is None:
            continue
        if math.isnan(objective):
            study.tell(number, state=TrialState.FAIL)
        else:
            study.tell(number, objective)


def propose(
    study: optuna.Study, space: Space, count: int, seed: int, sampler: Callable[..., BaseSampler]
) -> list[FrozenTrial]:
    """New trials, as running.

    A proposal depends on the seed and the trials before it alone, so a search that was interrupted makes the
    same ones; and a trial is added whole, so there is never half a one in the file.
    """
    for _ in range(count):
        known = study.get_trials()
        own_seed = np.random.SeedSequence([seed, len(known)]).generate_state(1)[0]
        draft = optuna.create_study(direction=study.direction, sampler=sampler(seed=int(own_seed)))
        draft.add_trials(known)
        drawn = draft.ask(dict(space)).params
        params = {name: shortened(drawn[name], distribution) for name, distribution in space.items()}
        study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=dict(space)))
    return study.get_trials()[-count:] if count > 0 else []


def shortened(value: Any, distribution: Distribution) -> Any:
    """A number with few digits, to be read and typed."""
    if not isinstance(distribution, FloatDistribution):
        return value
    digits = 4 if distribution.step is None else 12
    return min(max(float(f"{value:.{digits}g}"), distribution.low), distribution.high)


RETRY_OF = "retry_of"  # the number of the trial that failed


def try_again(study: optuna.Study) -> int:
    """Add every trial that failed once more, as running; how many they are."""
    failed = not_retried(study, TrialState.FAIL)
    for trial in failed:
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={RETRY_OF: trial.number},
            )
        )
    return len(failed)


def not_retried(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    retried = {trial.user_attrs.get(RETRY_OF) for trial in study.trials}
    return [trial for trial in study.get_trials(states=states or None) if trial.number not in retried]


def count(study: optuna.Study) -> int:
    """Trials so far; one that was tried again is one."""
    return len(not_retried(study))


def best(study: optuna.Study, monitor: str) -> str:
    trials = study.get_trials(states=[TrialState.COMPLETE])
    failed = len(not_retried(study, TrialState.FAIL))
    of = f"{count(study)} trials" + (f", {failed} of which failed" if failed else "")
    if not trials:
        return f"no trial completed, of {of}"
    value = study.best_value
    figure = f"{value:.1%}" if monitor == "val/accuracy" else f"{value:.4f}"
    return f"best of {of}: {monitor} {figure} with {' '.join(overrides_of(study.best_params))}"
