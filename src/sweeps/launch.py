"""Sweep orchestration: make the folder, launch runs, print an ETA, compare the runs at the end."""

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import configure_log
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from config.command_line import override
from config.errors import ConfigError
from config.schema import Config
from config.text import printable, shell
from runtime.console import say
from runtime.files import check_place, write_text
from sweeps.plan import Job
from tracking.identity import display_name
from tracking.run_index import RunIndex
from tracking.run_lock import is_locked, try_lock
from tracking.wandb_logger import remove_empty_runs

if TYPE_CHECKING:
    from comparison.progress import Progress
    from training.run import Result

GRID = "sweeps.grid.grid"  # hydra.sweeper.method of grids, whose runs are all determined before the start


def is_first() -> bool:
    """Return True if this process is alone or rank 0 of its run (runtime/distributed.py)."""
    return os.environ.get("RANK", "0") == "0"


def is_alone() -> bool:
    """Return True if this process is the only rank; ranks read files at different times, but must decide alike."""
    return int(os.environ.get("WORLD_SIZE", 1)) == 1


def is_named(overrides: Iterable[str]) -> bool:
    """Return True if an override names the sweep.

    Raises:
        ConfigError: A run of several processes has no name, which they must share.
    """
    named = any(override.startswith("sweep=") for override in overrides)
    if not named and not is_alone():
        raise ConfigError("sweep: has no value that all ranks share. Fix: sweep=NAME")
    return named


def is_named_by_time(config: DictConfig) -> bool:
    """Return True if the sweep's name contains the time of day."""
    unresolved: Any = OmegaConf.to_container(config, resolve=False)
    return "${now:" in str(unresolved["sweep"])


def name_by_time(config: DictConfig | Config) -> None:
    """Make a new folder for a sweep named by the time of day; a number distinguishes sweeps of the same second."""
    base = config.sweep
    for number in count(1):
        name = base if number == 1 else f"{base}-{number}"
        try:
            Path(config.output_dir, name).mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:  # make_folder() reports the error.
            pass
        config.sweep = name
        return


def make_folder(config: DictConfig | Config) -> Path:
    """Make the sweep's folder.

    Raises:
        ConfigError: The folder cannot be made or written to.
    """
    folder = Path(config.output_dir) / config.sweep
    fix = "a folder to write to, with output_dir=DIR"
    for key, value, path in (("output_dir", config.output_dir, folder.parent), ("sweep", config.sweep, folder)):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{key}={value}: {path}: {error.strerror}. Fix: {fix}") from error
        check_place(path, f"{key}={value}", fix)
    return folder


@contextmanager
def locked_folder(config: DictConfig) -> Iterator[Path]:
    """Lock the sweep's folder for this process.

    Raises:
        ConfigError: The folder cannot be made or locked, or another process has locked it.
    """
    if not is_alone():
        raise ConfigError("hydra/sweeper: several processes were started; expected one, which launches the runs")
    folder = make_folder(config)
    lock = try_lock(folder / "sweep.lock")
    if lock is None:
        raise ConfigError(
            f"sweep={config.sweep}: another process is running this search or race. Fix: wait for it, or end it"
        )
    with lock:
        yield folder


def record_grid(folder: Path, runs: Iterable[Job], varied: Sequence[str]) -> None:
    """Write the runs of a grid to sweep.json, from which comparison/progress.py estimates the ETA."""
    planned = {
        run.run_id: {
            "name": display_name(run.overrides, varied),
            "data": run.config.data.name,
            "epochs": run.config.trainer.epochs,
            "epoch_size": run.epoch_size,
        }
        for run in runs
    }
    write_text(folder / "sweep.json", json.dumps(planned, indent=2) + "\n")


def not_completed(jobs: Iterable[Job], index: RunIndex) -> list[Job]:
    """List each run once, without completed runs."""
    unique = list({job.run_id: job for job in jobs}.values())
    return [job for job in unique if not (is_alone() and index.summary(job.run_id).get("status") == "completed")]


def launch_jobs(launcher: Launcher, jobs: Iterable[Job], index: RunIndex, first_number: int) -> None:
    """Run each distinct job that is not completed, and update the index; jobs are numbered from `first_number`.

    Raises:
        SystemExit: The sweep was stopped by a signal or by on_failure=stop.
    """
    overrides = [job.overrides for job in not_completed(jobs, index)]
    for returned in launcher.launch(overrides, initial_job_idx=first_number) if overrides else ():
        _ = returned.return_value  # raises errors that the job could not record
    index.list()


def train_job(job: Job, logging: DictConfig) -> "Result":
    """Train a run in this process, with the settings of logging_of() for its log."""
    from training.start import run  # torch takes seconds, which --help and errors need not wait for

    configure_log(logging.job_logging, logging.verbose)
    return run(job.config, job.overrides, job.choices)


def logging_of(config: DictConfig) -> DictConfig:
    """Select Hydra's settings of the log, for other processes."""
    return OmegaConf.create(
        {"verbose": config.hydra.verbose, "job_logging": OmegaConf.to_container(config.hydra.job_logging, resolve=True)}
    )


class Announcer:
    """The line before each run of a sweep, e.g. "run 3 of 12, about 5 min left"; only grids have an ETA.

    The ETA reads all runs. It is computed again only after a hundred times as long as the computation took.

    Args:
        total: The number of runs so far, for sweeps other than searches.
        at_once: The number of runs that train at once.
    """

    def __init__(self, config: DictConfig, total: int, at_once: int = 1) -> None:
        self.folder = Path(config.output_dir) / config.sweep
        self.total, self.at_once = runs_of_search(config) or total, at_once
        self.until = " by the end of this round" if "max_seeds" in config.hydra.sweeper else ""  # only for races
        self.progress: Progress | None = None
        self.looked_at, self.next_look = 0.0, 0.0 if config.hydra.sweeper.method == GRID else math.inf

    def announce(self, number: int) -> None:
        """Print the line before a run; runs are numbered from 0."""
        if is_first():
            left = self.eta()
            say(f"run {number + 1:,} of {self.total:,}{self.until}" + (f", {left}" if left else ""))

    def eta(self) -> str:
        """Format the ETA; empty if it is unknown."""
        time_now = time.monotonic()
        if time_now >= self.next_look:
            from comparison.progress import progress  # takes a second, which --help need not wait for

            self.looked_at, self.progress = time_now, progress(self.folder, starting=1, at_once=self.at_once)
            self.next_look = time_now + 100 * (time.monotonic() - time_now)
        if not self.progress or self.progress.seconds is None:
            return ""
        seconds = max(0.0, self.progress.seconds - (time_now - self.looked_at))
        return replace(self.progress, seconds=seconds).time_left


def conclude(config: DictConfig, run_ids: Collection[str]) -> None:
    """Compare the runs of the sweep's folder; `run_ids` are those of a grid.

    Raises:
        SystemExit: Some runs have not completed, or the runs cannot be compared.
    """
    if not is_first():
        return
    folder = Path(config.output_dir, config.sweep)
    if not config.hydra.launcher.get("wait", True):
        script = Path(sys.argv[0]).with_name("compare.py")
        say(f"to compare the runs: {shell('python', str(script), str(folder))}")
        say(f"to submit missing runs later: the same command with {shell(override('sweep', config.sweep))}")
        return
    from comparison import results
    from publishing.publish import publish

    for run in RunIndex(folder).folders.values():
        if not is_locked(run):
            remove_empty_runs(run)
    try:
        comparison = results.read([folder])
        publish(comparison, folder)
    except ConfigError as error:
        sys.exit(f"error: {printable(str(error))}")
    except Exception:
        traceback.print_exc()
        sys.exit(f"the runs in {printable(str(folder))} could not be compared; they are not affected")
    statuses = [run.status for run in comparison.runs]
    started = {run.run_id for run in comparison.runs}
    statuses += ["interrupted"] * len({*run_ids} - started)  # jobs that ended before their run started
    if total := sum(status not in ("completed", "pruned") for status in statuses):
        running = statuses.count("running")
        elsewhere = f", {running} of them still being trained by another process" if running else ""
        sys.exit(f"{total} of {len(statuses)} runs did not complete{elsewhere}")


# Searches and races, which choose runs by earlier results.


def runs_of_search(config: DictConfig) -> int:
    """Return the highest number of runs of a search, 0 if the sweep is not a search."""
    sweeper = config.hydra.sweeper
    return sweeper.get("n_trials", 0) * len(sweeper.get("seeds") or [None])


def monitor_of(configs: Sequence[Config]) -> str:
    """Return the metric by which runs are compared.

    Raises:
        ConfigError: A run has no validation, or the runs have different metrics.
    """
    if not all(config.data.val_fraction for config in configs):
        raise ConfigError("data.val_fraction=0: searches and races compare validation results; expected above 0")
    if len({config.trainer.monitor for config in configs}) > 1:
        raise ConfigError("trainer.monitor: searches and races compare one metric; expected one value")
    return configs[0].trainer.monitor
