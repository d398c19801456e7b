"""Search instead of a grid: Optuna proposes the runs of a sweep, and learns from how they did.

Everything that it knows is in OUTPUT_DIR/SWEEP/search.db, so that the same command goes on after whatever
ended it: `optuna-dashboard sqlite:///OUTPUT_DIR/SWEEP/search.db` shows it.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from config.check import check_config
from config.errors import ConfigError, explain
from config.schema import Config, overrides_of
from runtime import workers
from runtime.console import say
from tracking.identity import run_id

log = logging.getLogger(__name__)

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Space = Mapping[str, Distribution]


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
        if not isinstance(value, int) or value < low:
            raise ConfigError(f"hydra.sweeper.{name}={value}: expected a whole number, at least {low}")
    try:
        sampler(seed=seed)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"hydra.sweeper.sampler: {error}") from error
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("hydra/sweeper=optuna: several processes were started; expected one, which starts the others")

    app: str = config.hydra.job.config_name
    space, fixed = parse(app, [*(f"{key}={value}" for key, value in (params or {}).items()), *arguments])
    typical = check(app, space, fixed)
    folder = Path(config.output_dir) / config.sweep
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / "search.lock").acquire(blocking=False)
    except Timeout:
        raise ConfigError(f"sweep={config.sweep}: another process is searching there") from None
    with lock:
        study = optuna.create_study(
            storage=f"sqlite:///{folder / 'search.db'}",
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
            if workers.stopped_by:
                return  # SweepCallback ends the process
        say(best(study, typical.trainer.monitor))


def run_batch(
    app: str, study: optuna.Study, batch: Sequence[FrozenTrial], fixed: Mapping[str, str], launcher: Launcher
) -> None:
    """Launch the runs and keep how they did; one that does not get to its end stays a running trial."""
    overrides = [overrides_of({**trial.params, **fixed}) for trial in batch]
    runs = [run_of(app, own) for own in overrides]
    jobs = dict(zip(runs, overrides, strict=True))  # two trials may be the same run
    results = launcher.launch(list(jobs.values()), initial_job_idx=batch[0].number)
    returned = dict(zip(jobs, results, strict=True))
    for trial, run in zip(batch, runs, strict=True):
        objective = objective_of(jobs[run], returned[run])
        if objective is None:
            continue
        if math.isnan(objective):
            study.tell(trial.number, state=TrialState.FAIL)
        else:
            study.tell(trial.number, objective)


def run_of(app: str, overrides: list[str]) -> str:
    """The run's identity; the overrides where they do not fit together, as it will be said when they are launched."""
    try:
        return run_id(check_config(compose(app, overrides)))
    except ConfigError:
        return " ".join(overrides)


def objective_of(job: Sequence[str], returned: JobReturn) -> float | None:
    """What training/run.py returned; NaN where values, each right by itself, do not fit together."""
    try:
        return returned.return_value
    except ConfigError as error:
        log.error(f"FAILED {' '.join(job)}: {explain(error)}")
        return math.nan


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


# What is searched.

UNSEARCHED = {
    "trainer.monitor": "is what the search goes by; expected one value",
    "seed": "would be searched for the luckiest; expected one value. Repeat the best run with seed=0,1,2 afterwards",
}


def parse(app: str, arguments: Sequence[str]) -> tuple[Space, dict[str, str]]:
    """The keys that are searched with their values, and the ones that are given with theirs.

    Raises:
        ConfigError: there is nothing to search, or a key cannot be searched in such a way.
    """
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(arguments))
    overrides = {override.get_key_element(): override for override in parsed}  # of several for a key the last
    searched = {key: override for key, override in overrides.items() if override.is_sweep_override()}
    fixed = {key: overrides[key].get_value_element_as_str() for key in overrides if key not in searched}
    if not searched:
        raise ConfigError(
            "hydra/sweeper=optuna: there is nothing to search; give a key several values, "
            "e.g. 'optimizer.lr=interval(0.001, 0.1)'"
        )
    space: dict[str, Distribution] = {}
    for key, override in searched.items():
        try:
            if key in UNSEARCHED:
                raise ValueError(UNSEARCHED[key])
            space[key] = distribution(app, override, fixed)
        except ValueError as error:  # this module's or Optuna's
            raise ConfigError(f"{override.input_line}: {error}") from error
    return space, fixed


def distribution(app: str, override: Override, fixed: Mapping[str, str]) -> Distribution:
    """
    Raises:
        ValueError: there is none of such values.
    """
    values = override.value()
    if isinstance(values, IntervalSweep):
        assert values.start is not None
        assert values.end is not None
        low, high, log_scale = values.start, values.end, "log" in values.tags
        whole = low == int(low) and high == int(high)
        composed = compose(app, overrides_of({**fixed, override.get_key_element(): int(low) if whole else low}))
        typed = OmegaConf.select(composed, override.key_or_group)
        if isinstance(typed, float):
            return FloatDistribution(low, high, log=log_scale)
        if isinstance(typed, int) and whole:
            return IntDistribution(int(low), int(high), log=log_scale)
        raise ValueError("the key does not hold numbers; expected choices, e.g. choice(A, B)")
    if isinstance(values, RangeSweep):
        steps, log_scale = sorted(values.range()), "log" in values.tags
        if not steps:
            raise ValueError("the range is empty")
        if isinstance(steps[0], int):
            return IntDistribution(steps[0], steps[-1], log=log_scale, step=abs(int(values.step)))
        return FloatDistribution(steps[0], steps[-1], log=log_scale, step=abs(values.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def check(app: str, space: Space, fixed: Mapping[str, str]) -> Config:
    """Every choice and both ends of every interval, each with the first of the other keys; the first of all.

    Raises:
        ConfigError: one of them cannot be, or is without validation.
    """
    ends = {
        key: values.choices if isinstance(values, CategoricalDistribution) else (values.low, values.high)
        for key, values in space.items()
    }
    first = {**{key: values[0] for key, values in ends.items()}, **fixed}
    configs = [
        check_config(compose(app, overrides_of({**first, key: value})))
        for key, values in ends.items()
        for value in values
    ]
    if not all(config.data.val_fraction for config in configs):
        raise ConfigError("data.val_fraction=0: a search goes by validation; expected above 0")
    return configs[0]


def study_name(typical: Config, space: Space) -> str:
    """The same for the same search: another one under an old name of a sweep starts from nothing."""
    spaces = {key: distribution_to_json(values) for key, values in sorted(space.items())}
    return hashlib.sha256(json.dumps([run_id(typical), spaces]).encode()).hexdigest()[:8]
