"""A search instead of a grid: Optuna proposes each run of a sweep from the results of earlier ones.

A trial is one run, or one run for each of several seeds. Its first run reports every epoch to the study, and the
pruner may stop it (tracking/trial.py). Hopeless trials get no further seeds (sweeps/trials.py).

The search is stored in OUTPUT_DIR/SWEEP/search.db, from which the same command resumes.
`optuna-dashboard sqlite:///OUTPUT_DIR/SWEEP/search.db` displays it.
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

from config.command_line import as_text, overrides_of
from config.errors import ConfigError, first_line
from config.schema import Config
from config.sweepers import Search
from runtime.console import count, duration, say
from runtime.files import write_text
from sweeps import launch, plan, trials
from sweeps.impossible import is_local, name_impossible, problem_of
from sweeps.search_findings import finding_lines, key_importances, search_record
from sweeps.space import Space, check_space, make_space, space_ends
from tracking.identity import display_name, run_id
from tracking.run_index import RunIndex
from tracking.trial import PRUNER, check_storage, open_storage

log = logging.getLogger(__name__)


def search(config: DictConfig, launcher: Launcher, arguments: Sequence[str], options: Search) -> set[str]:
    """Resume interrupted trials, then run new ones until there are `n_trials` over all starts.

    Returns:
        The IDs of impossible runs.

    Raises:
        ConfigError: The command line is not a valid search; no run has been started.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    app: str = config.hydra.job.config_name
    searched, fixed = plan.split_overrides(plan.parse_overrides(arguments, options.params))
    space = make_space(app, searched, fixed)
    check_search(options, space, fixed)
    varied = [*space, *(["seed"] if options.seeds else [])]
    fixed = {"sweep": as_text(config.sweep), **fixed, "varied": plan.as_list(varied)}
    configs = check_space(app, space, fixed)
    plan.check_composed_folders(configs)
    monitor = launch.monitor_of(configs)
    database = Path(config.output_dir, config.sweep, "search.db")
    if not database.exists():
        names = [display_name(overrides_of(values), varied) for values in space_ends(space, fixed)]
        name_impossible("impossible", dict(zip(names, configs, strict=True)), len({*names}), config)
    with launch.locked_folder(config) as folder:
        index = RunIndex(folder)
        earlier = [run for run in index.folders if index.summary(run).get("varied") == varied]
        if earlier and not (database.exists() and database.stat().st_size):
            say(
                f"{database} is missing, but {count(len(earlier), 'run')} of this search exist: the search starts "
                "again, and does not repeat completed runs",
                style="yellow",
            )
        direction = StudyDirection.MINIMIZE if monitor == "val/loss" else StudyDirection.MAXIMIZE
        study = open_study(database, study_name(configs[0], space, options.seeds), direction)
        study.set_user_attr(PRUNER, options.pruner)
        interrupted = study.get_trials(states=[TrialState.RUNNING])
        failed = trials.try_again(study, options)
        batch = study.get_trials(states=[TrialState.RUNNING])
        done = len(trials.not_retried(study)) - len(batch)
        say(
            f"search {config.sweep}: {options.n_trials} trials"
            + (f" of {options.n_seeds} seeds" if options.seeds else "")
            + (f", {done} of them done" if done else "")
            + (f", {len(interrupted)} interrupted" if interrupted else "")
            + (f", {failed} failed and repeated" if failed else "")
            + f"; {study.direction.name.lower()} {monitor} → {folder}"
        )
        started, made, impossible = time.monotonic(), 0, set[str]()
        while batch or (batch := trials.propose(study, space, options)):
            impossible |= run_batch(config, study, batch, fixed, launcher, index, options)
            made += len(batch)
            batch = []
            ended = len(trials.not_retried(study)) - len(study.get_trials(states=[TrialState.RUNNING]))
            if left := max(0, options.n_trials - ended):
                seconds = left * (time.monotonic() - started) / made
                progress = f"{ended} of {options.n_trials} trials ended, about {duration(seconds)} left"
                say(progress)
                write_text(folder / "search.json", json.dumps(search_record(study, [], {}, progress)))
        importances = key_importances(study)
        lines = finding_lines(study, monitor, options.n_seeds, importances, index.folders)
        for line in lines:
            say(line)
        write_text(folder / "search.json", json.dumps(search_record(study, lines, importances)))
    return impossible


def open_study(path: Path, name: str, direction: StudyDirection) -> optuna.Study:
    """Open the study of a search, or create it.

    Raises:
        ConfigError: The file cannot be read, or is damaged.
    """
    try:
        check_storage(path)
        storage = open_storage(path)
        study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
        study.get_trials()
        trials.seed_values(study)
    except Exception as error:  # Optuna, SQLAlchemy and SQLite raise errors of many types.
        raise ConfigError(
            f"{path}: is damaged, or not a search's ({first_line(error)}). Fix: restore a copy; or rename the file, "
            "and the same command starts the search again without repeating completed runs"
        ) from error
    return study


def check_search(options: Search, space: Space, fixed: Mapping[str, str]) -> None:
    """Check that the options fit the search space; raise a ConfigError if not."""
    trials.make_sampler(options, options.seed)
    if options.seeds and "seed" in fixed:
        raise ConfigError(f"seed={fixed['seed']}: hydra.sweeper.seeds={options.seeds} sets seeds. Fix: use one of them")
    if options.pruner != "none" and "trainer.epochs" in space:
        raise ConfigError(
            f"hydra.sweeper.pruner={options.pruner}: compares runs after the same epoch. "
            "Fix: one value of trainer.epochs, or hydra.sweeper.pruner=none"
        )


def study_name(typical: Config, space: Space, seeds: Sequence[int] | None = None) -> str:
    """Name a study by a hash of its search; another search in the same sweep starts a new study."""
    spaces = {key: distribution_to_json(values) for key, values in sorted(space.items())}
    searched = [run_id(typical), spaces, *([seeds] if seeds else [])]
    return f"{typical.sweep}-{hashlib.sha256(json.dumps(searched).encode()).hexdigest()[:8]}"


def run_batch(
    config: DictConfig,
    study: optuna.Study,
    batch: Sequence[FrozenTrial],
    fixed: Mapping[str, str],
    launcher: Launcher,
    index: RunIndex,
    options: Search,
) -> set[str]:
    """Launch the runs of all trials, one seed after the other, and record their results.

    A trial keeps the state "running" if one of its runs is interrupted.

    Returns:
        The IDs of impossible runs, which are not launched.
    """
    app, local = config.hydra.job.config_name, is_local(config)
    earlier = [tuple(values) for number, values in trials.seed_values(study).items() if number < batch[0].number]
    others = list(dict.fromkeys(earlier))  # A trial that was proposed twice counts once.
    values: dict[int, list[float]] = {trial.number: [] for trial in batch}  # objectives of the seeds so far
    waiting, done, impossible = list(batch), len(trials.not_retried(study)) - len(batch), set[str]()
    for turn, seed in enumerate(options.seeds or [None]):
        runs: list[tuple[FrozenTrial, plan.Job]] = []  # Two trials may have the same run.
        for trial in waiting:
            overrides = {**trial.params, **fixed} | ({} if seed is None else {"seed": seed})
            if turn == 0 and options.pruner != "none":  # Only the first run of a trial can be pruned.
                overrides["trial"] = f"{study.study_name.rpartition('-')[2]}/{trial.number}"
            try:
                job = plan.make_job(app, tuple(overrides_of(overrides)))
                if problem := problem_of(job.config, local):
                    impossible.add(job.run_id)
                    raise ConfigError(problem)
                runs.append((trial, job))
            except ConfigError as error:  # valid values that are incompatible
                log.error(f"FAILED {' '.join(overrides_of(overrides))}: {error}")
                study.tell(trial.number, state=TrialState.FAIL)
        first_number = done * options.n_seeds + turn * len(batch)
        trials.keep_runs(study, {trial.number: run.run_id for trial, run in runs})
        launch.launch_jobs(launcher, [run for _, run in runs], index, first_number)
        waiting = []
        for trial, run in runs:
            summary, objectives = index.summary(run.run_id), values[trial.number]
            match summary.get("status"):
                case "pruned":
                    study.tell(trial.number, state=TrialState.PRUNED)
                case "completed" if summary.get("objective") is not None:
                    objectives.append(summary["objective"])
                    is_last = len(objectives) == options.n_seeds
                    if is_last or trials.is_hopeless(objectives, others, lower_is_better=trials.sign(study) < 0):
                        trials.complete_trial(study, trial.number, objectives)
                    else:
                        waiting.append(trial)
                case "failed" | "completed":  # A user may have removed the objective from a summary.
                    study.tell(trial.number, state=TrialState.FAIL)
    return impossible
