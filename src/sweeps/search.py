"""A search instead of a grid: Optuna proposes each run of a sweep from the results of earlier ones.

A trial is a run, or one for each of several seeds. Its first run reports to the study after every epoch, which may
prune it (tracking/trial.py); a trial that is hopeless gets no further seeds (sweeps/trials.py).

Everything that it knows is in OUTPUT_DIR/SWEEP/search.db, so that the same command resumes whatever ended it:
`optuna-dashboard sqlite:///OUTPUT_DIR/SWEEP/search.db` shows it.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from optuna.distributions import distribution_to_json
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from comparison.formatting import count, duration
from config.command_line import as_text, overrides_of
from config.errors import ConfigError, first_line
from config.schema import Config
from config.sweepers import Search
from runtime.console import say
from runtime.files import write_text
from sweeps import launch, plan
from sweeps.search_findings import as_record, findings, importance
from sweeps.space import Space, check_space, make_space
from sweeps.trials import (
    complete,
    is_hopeless,
    keep_runs,
    make_sampler,
    not_retried,
    propose,
    seed_values,
    sign,
    try_again,
)
from tracking.identity import run_id
from tracking.run_index import RunIndex
from tracking.trial import PRUNER, check_storage, open_storage

log = logging.getLogger(__name__)


def search(config: DictConfig, launcher: Launcher, arguments: Sequence[str], options: Search) -> None:
    """Run trials until there are `n_trials`, in all starts together; first those that were interrupted.

    Raises:
        ConfigError: what is asked for cannot be searched; nothing has been started.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    app: str = config.hydra.job.config_name
    searched, fixed = plan.split_overrides(plan.parse_overrides(arguments, options.params))
    space = make_space(app, searched, fixed)
    check_options(options, space, fixed)
    varied = [*space, *(["seed"] if options.seeds else [])]
    fixed = {"sweep": as_text(config.sweep), **fixed, "varied": plan.as_list(varied)}
    configs = check_space(app, space, fixed)
    plan.check_one_place(configs)
    monitor = launch.monitor_of(configs)
    with launch.locked_folder(config) as folder:
        index = RunIndex(folder)
        earlier = [run for run in index.folders if index.summary(run).get("varied") == varied]
        database = folder / "search.db"
        if earlier and not (database.exists() and database.stat().st_size):
            say(
                f"{database} is missing, but {count(len(earlier), 'run')} of this search are here: it starts "
                "again, and trains only what has not completed",
                style="yellow",
            )
        direction = StudyDirection.MINIMIZE if monitor == "val/loss" else StudyDirection.MAXIMIZE
        study = open_study(database, study_name(configs[0], space, options.seeds), direction)
        study.set_user_attr(PRUNER, options.pruner)
        interrupted = study.get_trials(states=[TrialState.RUNNING])
        failed = try_again(study, options)
        batch = study.get_trials(states=[TrialState.RUNNING])
        done = len(not_retried(study)) - len(batch)
        say(
            f"search {config.sweep}: {options.n_trials} trials"
            + (f" of {options.n_seeds} seeds" if options.seeds else "")
            + (f", {done} of them done" if done else "")
            + (f", {len(interrupted)} interrupted" if interrupted else "")
            + (f", {failed} failed and tried again" if failed else "")
            + f"; {study.direction.name.lower()} {monitor} → {folder}"
        )
        started, made = time.monotonic(), 0
        while batch or (batch := propose(study, space, options)):
            run_batch(app, study, batch, fixed, launcher, index, options)
            made += len(batch)
            batch = []
            ended = len(not_retried(study)) - len(study.get_trials(states=[TrialState.RUNNING]))
            if left := max(0, options.n_trials - ended):
                seconds = left * (time.monotonic() - started) / made
                progress = f"{ended} of {options.n_trials} trials ended, about {duration(seconds)} left"
                say(progress)
                write_text(folder / "search.json", json.dumps(as_record(study, [], {}, progress)))
        importances = importance(study)
        lines = findings(study, monitor, options.n_seeds, importances)
        for line in lines:
            say(line)
        write_text(folder / "search.json", json.dumps(as_record(study, lines, importances)))


def open_study(path: Path, name: str, direction: StudyDirection) -> optuna.Study:
    """Open the study of a search, or create it.

    Raises:
        ConfigError: the file cannot be read, or is damaged.
    """
    try:
        check_storage(path)
        study = optuna.create_study(
            storage=open_storage(path), study_name=name, direction=direction, load_if_exists=True
        )
        study.get_trials()
        seed_values(study)
    except Exception as error:  # Optuna's, SQLAlchemy's, SQLite's, the system's, those of whatever is in the file
        raise ConfigError(
            f"{path}: is damaged, or no search's ({first_line(error)}). Fix: put it back from a copy; or rename it, "
            "and the same command searches again, and trains only what has not completed"
        ) from error
    return study


def check_options(options: Search, space: Space, fixed: Mapping[str, str]) -> None:
    """Check that the options fit the search.

    Raises:
        ConfigError: an option does not fit to what is searched.
    """
    make_sampler(options, options.seed)
    if options.seeds and "seed" in fixed:
        raise ConfigError(f"seed={fixed['seed']}: hydra.sweeper.seeds={options.seeds} gives the seeds; leave one out")
    if options.pruner != "none" and "trainer.epochs" in space:
        raise ConfigError(
            f"hydra.sweeper.pruner={options.pruner}: compares runs after the same epoch; "
            "expected one value of trainer.epochs, or none"
        )


def study_name(typical: Config, space: Space, seeds: Sequence[int] | None = None) -> str:
    """Name a study by its search, so that another search in the same sweep starts a new study."""
    spaces = {key: distribution_to_json(values) for key, values in sorted(space.items())}
    searched = [run_id(typical), spaces, *([seeds] if seeds else [])]
    return f"{typical.sweep}-{hashlib.sha256(json.dumps(searched).encode()).hexdigest()[:8]}"


def run_batch(
    app: str,
    study: optuna.Study,
    batch: Sequence[FrozenTrial],
    fixed: Mapping[str, str],
    launcher: Launcher,
    index: RunIndex,
    options: Search,
) -> None:
    """Launch the runs of all trials, one seed after the other, and record their results.

    A trial of which a run does not get to its end stays a running one.
    """
    earlier = [tuple(values) for number, values in seed_values(study).items() if number < batch[0].number]
    others = list(dict.fromkeys(earlier))  # the same trial, proposed again, counts once
    values: dict[int, list[float]] = {trial.number: [] for trial in batch}  # a seed each, until now
    waiting, done = list(batch), len(not_retried(study)) - len(batch)
    for turn, seed in enumerate(options.seeds or [None]):
        runs: list[tuple[FrozenTrial, plan.Job]] = []  # two trials may be the same run
        for trial in waiting:
            own = {**trial.params, **fixed} | ({} if seed is None else {"seed": seed})
            if turn == 0 and options.pruner != "none":  # which goes by a trial's first run
                own["trial"] = f"{study.study_name.rpartition('-')[2]}/{trial.number}"
            try:
                runs.append((trial, plan.make_job(app, tuple(overrides_of(own)))))
            except ConfigError as error:  # values, each right by itself, that do not fit together
                log.error(f"FAILED {' '.join(overrides_of(own))}: {error}")
                study.tell(trial.number, state=TrialState.FAIL)
        first_number = done * options.n_seeds + turn * len(batch)
        keep_runs(study, {trial.number: run.run_id for trial, run in runs})
        launch.launch(launcher, [run for _, run in runs], index, first_number)
        waiting = []
        for trial, run in runs:
            summary, found = index.summary(run.run_id), values[trial.number]
            match summary.get("status"):
                case "pruned":
                    study.tell(trial.number, state=TrialState.PRUNED)
                case "completed" if summary.get("objective") is not None:
                    found.append(summary["objective"])
                    if len(found) < options.n_seeds and not is_hopeless(found, others, lower_is_better=sign(study) < 0):
                        waiting.append(trial)
                    else:
                        complete(study, trial.number, found)
                case "failed" | "completed":  # by a summary without its objective, which somebody has changed
                    study.tell(trial.number, state=TrialState.FAIL)
