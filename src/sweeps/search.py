"""Search instead of a grid: Optuna proposes the runs of a sweep, and learns from how they did.

A trial is a run, or one for each of several seeds. Its first run reports to the study after every epoch, which may
prune it (tracking/trial.py); a trial that is hopeless gets no further seeds (sweeps/seeds.py).

Everything that it knows is in OUTPUT_DIR/SWEEP/search.db, so that the same command resumes whatever ended it:
`optuna-dashboard sqlite:///OUTPUT_DIR/SWEEP/search.db` shows it.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from optuna.distributions import distribution_to_json
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from config.errors import ConfigError
from config.schema import Config, overrides_of
from runtime.console import say
from sweeps import jobs
from sweeps.outcome import findings, importance
from sweeps.search_figure import search_figure
from sweeps.search_options import SearchOptions
from sweeps.seeds import is_hopeless
from sweeps.space import Space, check_space, split_overrides
from sweeps.trials import complete, not_retried, propose, seed_values, try_again
from tracking import plots
from tracking.identity import run_id
from tracking.trial import PRUNER, open_storage

log = logging.getLogger(__name__)


def search(config: DictConfig, launcher: Launcher, arguments: Sequence[str], **keys: Any) -> None:
    """Run trials until there are `n_trials`, in all starts together; first those that were interrupted.

    Args:
        keys: those of SearchOptions.

    Raises:
        ConfigError: what is asked for cannot be searched; nothing has been started.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options = SearchOptions(**keys)
    app: str = config.hydra.job.config_name
    space, fixed = split_overrides(app, jobs.parse_overrides(arguments, options.params))
    check_options(options, space, fixed)
    varied = [*space, *(["seed"] if options.seeds else [])]
    fixed = {"sweep": config.sweep, **fixed, "varied": jobs.as_list(varied)}
    typical = check_space(app, space, fixed)
    monitor = typical.trainer.monitor
    with jobs.locked_folder(config) as folder:
        study = optuna.create_study(
            storage=open_storage(folder / "search.db"),
            study_name=study_name(typical, space, options.seeds),
            direction="minimize" if monitor == "val/loss" else "maximize",
            load_if_exists=True,
        )
        study.set_user_attr(PRUNER, options.pruner)
        interrupted = study.get_trials(states=[TrialState.RUNNING])
        failed = try_again(study, options)
        batch = study.get_trials(states=[TrialState.RUNNING])
        done = len(not_retried(study)) - len(batch)
        say(
            f"search {config.sweep}: {options.n_trials} trials"
            + (f" of {len(options.seeds)} seeds" if options.seeds else "")
            + (f", {done} of them done" if done else "")
            + (f", {len(interrupted)} interrupted" if interrupted else "")
            + (f", {failed} failed and tried again" if failed else "")
            + f"; {study.direction.name.lower()} {monitor} → {folder}"
        )
        while batch or (batch := propose(study, space, options)):
            run_batch(app, study, batch, fixed, launcher, options)
            batch = []
        shares = importance(study)
        for line in findings(study, monitor, options.n_seeds, shares):
            say(line)
        if figure := search_figure(study, monitor, options.n_seeds, shares):
            plots.save(figure, folder / "search")


def check_options(options: SearchOptions, space: Space, fixed: Mapping[str, str]) -> None:
    """
    Raises:
        ConfigError: an option does not fit to what is searched.
    """
    if options.seeds and "seed" in fixed:
        raise ConfigError(f"seed={fixed['seed']}: hydra.sweeper.seeds={options.seeds} gives the seeds; leave one out")
    if options.pruner != "none" and "trainer.epochs" in space:
        raise ConfigError(
            f"hydra.sweeper.pruner={options.pruner}: compares runs after the same epoch; "
            "expected one value of trainer.epochs, or none"
        )


def study_name(typical: Config, space: Space, seeds: Sequence[int] | None = None) -> str:
    """The same for the same search: another one under an old name of a sweep starts from nothing."""
    spaces = {key: distribution_to_json(values) for key, values in sorted(space.items())}
    searched = [run_id(typical), spaces, *([list(seeds)] if seeds else [])]
    return f"{typical.sweep}-{hashlib.sha256(json.dumps(searched).encode()).hexdigest()[:8]}"


def run_batch(
    app: str,
    study: optuna.Study,
    batch: Sequence[FrozenTrial],
    fixed: Mapping[str, str],
    launcher: Launcher,
    options: SearchOptions,
) -> None:
    """Launch the runs, of all trials one seed after the other, and keep how they did."""
    before = list(dict.fromkeys(map(tuple, seed_values(study).values())))  # the same trial, proposed again, counts once
    values: dict[int, list[float]] = {trial.number: [] for trial in batch}
    seeds: Sequence[int | None] = options.seeds or [None]  # None: the run's own
    waiting, done = list(batch), len(not_retried(study)) - len(batch)
    for turn, seed in enumerate(seeds):
        valid: dict[int, jobs.Job] = {}  # by the number of the trial; two trials may be the same run
        for trial in waiting:
            own = {**trial.params, **fixed} | ({} if seed is None else {"seed": seed})
            if turn == 0 and options.pruner != "none":  # which goes by a trial's first run
                own["trial"] = f"{study.study_name.rpartition('-')[2]}/{trial.number}"
            try:
                valid[trial.number] = jobs.make_job(app, overrides_of(own))
            except ConfigError as error:  # values, each right by itself, that do not fit together
                log.error(f"FAILED {' '.join(overrides_of(own))}: {error}")
                study.tell(trial.number, state=TrialState.FAIL)
        jobs.launch(launcher, valid.values(), first_number=done * len(seeds) + turn * len(batch))
        waiting = [
            trial
            for trial in waiting
            if (job := valid.get(trial.number))
            and keep(study, trial.number, job.summary, values[trial.number], len(seeds), before)
        ]


def keep(
    study: optuna.Study,
    number: int,
    summary: Mapping[str, Any],
    values: list[float],
    n_seeds: int,
    before: Sequence[Sequence[float]],
) -> bool:
    """Keep how a trial's run did; whether the trial gets another seed.

    A trial of which a run does not get to its end stays a running one.

    Args:
        summary: the run's.
        values: of the trial's seeds until now; gets the run's.
        before: the values of the trials before.
    """
    objective = jobs.objective(summary)
    if summary.get("status") == "pruned":
        study.tell(number, state=TrialState.PRUNED)
    elif objective is not None and math.isnan(objective):
        study.tell(number, state=TrialState.FAIL)
    elif objective is not None:
        values.append(objective)
        if len(values) < n_seeds and not is_hopeless(values, before, study.direction == StudyDirection.MINIMIZE):
            return True
        complete(study, number, values)
    return False
