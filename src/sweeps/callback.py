"""Around a sweep: every run is checked before the first starts, and all are compared after the last."""

import logging
import math
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from config.check import check_config
from config.errors import ConfigError, explain
from runtime.console import say
from sweeps import jobs
from tracking.identity import as_given, in_short

log = logging.getLogger(__name__)


class SweepCallback(Callback):
    """What Hydra calls before and after runs. To stop it, sys.exit: it only warns of exceptions here."""

    total = 1  # runs of the sweep
    run_ids: frozenset[str] = frozenset()  # of a grid's

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with exit_on_error():
            check_config(config)
            check_name(config)
            jobs.make_folder(config)

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        objective = kwargs["job_return"].return_value
        if objective is not None and math.isnan(objective):
            sys.exit(1)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if "method" in config.hydra.sweeper:  # sweeps/search.py and sweeps/race.py check by themselves what they run
            self.total = jobs.runs_of_search(config)
            return
        with exit_on_error():
            check_name(config)
            if not is_named(config):
                with open_dict(config):  # or the time of day of each run would be another
                    config.hydra.overrides.task.append(f"sweep={config.sweep}")
            runs = jobs.expand_grid(jobs.parse_overrides(config.hydra.overrides.task, config.hydra.sweeper.params))
            made = []
            for run in runs:
                with exit_on_error(of_run=" ".join(run)):
                    made.append(jobs.make_job(config.hydra.job.config_name, run))
            folder = jobs.make_folder(config)
        varied = jobs.varied_keys(runs)
        with open_dict(config):
            config.hydra.overrides.task.append(f"varied={jobs.as_list(varied)}")
        self.total, self.run_ids = len(runs), frozenset(job.run_id for job in made)
        if is_first():
            jobs.record(folder, made, varied)
            say(f"sweep {config.sweep}: {describe(runs)} → {config.output_dir}/{config.sweep}")

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if self.total > 1 and is_first():
            log.info(jobs.announce(config, config.hydra.job.num, self.total))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if not is_first():
            return
        folder = jobs.make_folder(config)
        if not config.hydra.launcher.get("wait", True):
            script = Path(sys.argv[0]).with_name("compare.py")
            say(f"to compare the runs: python {script} {shlex.quote(str(folder))}")
            say(f"the same command with sweep={config.sweep} submits those that are missing then")
            return
        from comparison import report, results

        try:
            comparison = results.read([folder])
            report.publish(comparison, folder)
        except ConfigError as error:
            sys.exit(f"error: {error}")
        except Exception:
            traceback.print_exc()
            sys.exit(f"the runs are kept in {folder}, but could not be compared")
        statuses = [run.status for run in comparison.runs]
        begun = {run.folder.name.rpartition("-")[2] for run in comparison.runs}
        statuses += ["interrupted"] * len(self.run_ids - begun)  # they ended before they began
        running = statuses.count("running")
        if total := sum(status not in ("completed", "pruned") for status in statuses):
            elsewhere = f", {running} of them still being trained by another process" if running else ""
            sys.exit(f"{total} of {len(statuses)} runs did not complete{elsewhere}")


def describe(runs: list[list[str]]) -> str:
    """A grid in a line, e.g. "4 runs of kernel_size=5,9 × depth=8,16, all with epochs=5"."""
    given = [as_given(run) for run in runs]
    varied = jobs.varied_keys(runs)
    axes = [f"{key.rpartition('.')[2]}={','.join(dict.fromkeys(run[key] for run in given))}" for key in varied]
    shared = in_short({key: value for key, value in given[0].items() if key not in varied})
    return f"{len(runs)} runs{' of ' if axes else ''}{' × '.join(axes)}{f', all with {shared}' if shared else ''}"


def is_first() -> bool:
    """Whether this process is alone or the first of its run's (runtime/distributed.py)."""
    return os.environ.get("RANK", "0") == "0"


def check_name(config: DictConfig) -> None:
    """
    Raises:
        ConfigError: several processes were started for one run, without a name that they share.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not is_named(config):
        raise ConfigError("sweep: has no value that all processes share; set it with sweep=NAME")


def is_named(config: DictConfig) -> bool:
    """Whether the sweep has a name of its own, not the time of day."""
    return any(override.startswith("sweep=") for override in config.hydra.overrides.task)


@contextmanager
def exit_on_error(of_run: str = "") -> Iterator[None]:
    try:
        yield
    except Exception as error:
        sys.exit(f"error: {explain(error)}" + (f" (run: {of_run})" if of_run else ""))
