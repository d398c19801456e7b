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

from filelock import FileLock, Timeout
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
from tracking.run_lock import is_locked
from tracking.wandb_logger import remove_empty_runs

if TYPE_CHECKING:
    from comparison.progress import Progress
    from training.run import Result

GRID = "sweeps.grid.grid"  # hydra.sweeper.method of a sweep whose runs are known before it starts


def is_first() -> bool:
    """Check whether this process is alone or rank 0 of its run (runtime/distributed.py)."""
    return os.environ.get("RANK", "0") == "0"


def is_alone() -> bool:
    """Check whether this process is the only rank; ranks read files at different times, but must decide alike."""
    return int(os.environ.get("WORLD_SIZE", 1)) == 1


def is_named(overrides: Iterable[str]) -> bool:
    """Check whether the sweep has a name, not the time of day.

    Raises:
        ConfigError: several processes were started for one run, without a name that they share.
    """
    named = any(override.startswith("sweep=") for override in overrides)
    if not named and not is_alone():
        raise ConfigError("sweep: has no value that all processes share; set it with sweep=NAME")
    return named


def is_named_by_time(config: DictConfig) -> bool:
    unresolved: Any = OmegaConf.to_container(config, resolve=False)
    return "${now:" in str(unresolved["sweep"])


def name_by_time(config: DictConfig | Config) -> None:
    """Give a sweep that is named by the time of day a new folder, also if another started within the same second."""
    base = config.sweep
    for number in count(1):
        name = base if number == 1 else f"{base}-{number}"
        try:
            Path(config.output_dir, name).mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:  # make_folder says what is wrong
            pass
        config.sweep = name
        return


def make_folder(config: DictConfig | Config) -> Path:
    """Make the sweep's folder.

    Raises:
        ConfigError: there can be no such folder.
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
        ConfigError: there can be no such folder, or another process has it.
    """
    if not is_alone():
        raise ConfigError("hydra/sweeper: several processes were started; expected one, which starts the others")
    folder = make_folder(config)
    try:
        lock = FileLock(folder / "sweep.lock").acquire(blocking=False)
    except Timeout:
        raise ConfigError(f"sweep={config.sweep}: another process chooses the runs there") from None
    with lock:
        yield folder


def record(folder: Path, runs: Iterable[Job], varied: Sequence[str]) -> None:
    """Write the runs of a grid to sweep.json, from which comparison/progress.py estimates the time left."""
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
    """List each run once, without those completed before."""
    unique = list({job.run_id: job for job in jobs}.values())
    return [job for job in unique if not (is_alone() and index.summary(job.run_id).get("status") == "completed")]


def launch(launcher: Launcher, jobs: Iterable[Job], index: RunIndex, first_number: int) -> None:
    """Run the jobs that are not completed; the results are in the index then.

    Raises:
        SystemExit: the sweep was asked to stop.
    """
    overrides = [job.overrides for job in not_completed(jobs, index)]
    for returned in launcher.launch(overrides, initial_job_idx=first_number) if overrides else ():
        _ = returned.return_value  # raises what the job did not record itself
    index.list()


def train(job: Job, logging: DictConfig) -> "Result":
    """Train a run, in the process in which its launcher calls this.

    Args:
        logging: see logging_of().
    """
    from training.start import run  # torch takes seconds to import: not for --help or a misspelt key

    configure_log(logging.job_logging, logging.verbose)
    return run(job.config, job.overrides, job.choices)


def logging_of(config: DictConfig) -> DictConfig:
    """Select Hydra's settings of the log, for other processes."""
    return OmegaConf.create(
        {"verbose": config.hydra.verbose, "job_logging": OmegaConf.to_container(config.hydra.job_logging, resolve=True)}
    )


class Announcer:
    """The line before each run of a sweep, e.g. "run 3 of 12, about 5 min left"; only grids have an ETA.

    The estimate looks at all runs, and is made again only after a hundred times as long as that took.
    """

    def __init__(self, config: DictConfig, total: int, at_once: int = 1) -> None:
        self.folder = Path(config.output_dir) / config.sweep
        self.total, self.at_once = runs_of_search(config) or total, at_once
        self.until = " by the end of this round" if "max_seeds" in config.hydra.sweeper else ""  # of a race
        self.progress: Progress | None = None
        self.looked_at, self.next_look = 0.0, 0.0 if config.hydra.sweeper.method == GRID else math.inf

    def say(self, number: int) -> None:
        """Announce the run of this number, from 0."""
        if is_first():
            left = self.time_left()
            say(f"run {number + 1:,} of {self.total:,}{self.until}" + (f", {left}" if left else ""))

    def time_left(self) -> str:
        now = time.monotonic()
        if now >= self.next_look:
            from comparison.progress import progress  # takes a second, which --help need not wait for

            self.looked_at, self.progress = now, progress(self.folder, starting=1, at_once=self.at_once)
            self.next_look = now + 100 * (time.monotonic() - now)
        if not self.progress or self.progress.seconds is None:
            return ""
        return replace(self.progress, seconds=max(0.0, self.progress.seconds - (now - self.looked_at))).time_left


def conclude(config: DictConfig, run_ids: Collection[str]) -> None:
    """Compare the runs of the sweep's folder.

    Args:
        run_ids: of the runs that a grid asked for.

    Raises:
        SystemExit: some have not completed, or cannot be compared.
    """
    if not is_first():
        return
    folder = Path(config.output_dir, config.sweep)
    if not config.hydra.launcher.get("wait", True):
        script = Path(sys.argv[0]).with_name("compare.py")
        say(f"to compare the runs: {shell('python', str(script), str(folder))}")
        say(f"the same command with {shell(override('sweep', config.sweep))} submits those that are missing then")
        return
    from comparison import report, results

    for run in RunIndex(folder).folders.values():
        if not is_locked(run):
            remove_empty_runs(run)
    try:
        comparison = results.read([folder])
        report.publish(comparison, folder)
    except ConfigError as error:
        sys.exit(f"error: {printable(str(error))}")
    except Exception:
        traceback.print_exc()
        sys.exit(f"the runs are kept in {printable(str(folder))}, but could not be compared")
    statuses = [run.status for run in comparison.runs]
    begun = {run.run_id for run in comparison.runs}
    statuses += ["interrupted"] * len({*run_ids} - begun)  # they ended before they began
    running = statuses.count("running")
    if total := sum(status not in ("completed", "pruned") for status in statuses):
        elsewhere = f", {running} of them still being trained by another process" if running else ""
        sys.exit(f"{total} of {len(statuses)} runs did not complete{elsewhere}")


# For sweeps that choose runs by the results of those before.


def runs_of_search(config: DictConfig) -> int:
    """Count the most runs that a search can have; 0 if the sweep is no search."""
    sweeper = config.hydra.sweeper
    return sweeper.get("n_trials", 0) * len(sweeper.get("seeds") or [None])


def monitor_of(configs: Sequence[Config]) -> str:
    """Return the metric by which runs are chosen.

    Raises:
        ConfigError: they have none in common.
    """
    if not all(config.data.val_fraction for config in configs):
        raise ConfigError("data.val_fraction=0: runs are chosen by their validation; expected above 0")
    if len({config.trainer.monitor for config in configs}) > 1:
        raise ConfigError("trainer.monitor: runs are chosen by it; expected one value")
    return configs[0].trainer.monitor
