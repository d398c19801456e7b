"""Around a sweep: every run is checked before the first starts, and all are compared after the last."""

import logging
import math
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write

from config.check import check_config
from config.errors import ConfigError, explain
from runtime import workers
from runtime.console import say

log = logging.getLogger(__name__)


class SweepCallback(Callback):
    """What Hydra calls before and after runs. To stop it, sys.exit: it only warns of exceptions here."""

    total = 1  # runs of the sweep

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with exit_on_error():
            check_config(config)
            check_team(config)
            make_output_dir(config)

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        objective = kwargs["job_return"].return_value
        if objective is not None and math.isnan(objective):
            sys.exit(1)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if "n_trials" in config.hydra.sweeper:  # a search: sweeps/search.py checks what it may propose
            self.total, at_once = config.hydra.sweeper.n_trials, config.hydra.sweeper.n_jobs
        else:
            with exit_on_error():
                jobs = jobs_of(config)
                check_team(config)
            for overrides in jobs:
                with exit_on_error(of_run=" ".join(overrides)):
                    check_config(compose(config.hydra.job.config_name, overrides))
            with exit_on_error():
                make_output_dir(config)
            self.total = at_once = len(jobs)
            if is_first():
                say(f"sweep {config.sweep}: {self.total} runs → {config.output_dir}/{config.sweep}")
        if "n_jobs" in config.hydra.launcher:  # side by side
            with read_write(config.hydra.launcher):
                config.hydra.launcher.n_jobs = workers.how_many(config.hydra.launcher.n_jobs, at_once)
            workers.stop_together()

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        workers.prepare()
        if self.total > 1 and not workers.stopped_by and is_first():
            log.info(f"run {config.hydra.job.num + 1} of {self.total}")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        workers.leave_if_alone()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if not is_first():
            return
        workers.exit_if_stopped()
        from comparison.compare import compare

        folder = Path(config.output_dir) / config.sweep
        try:
            runs = compare([folder])
        except ConfigError as error:
            sys.exit(f"error: {error}")
        except Exception:
            traceback.print_exc()
            sys.exit(f"the runs are kept in {folder}, but could not be compared")
        unfinished = [run for run in runs if run.status != "completed"]
        if unfinished:
            sys.exit(f"{len(unfinished)} of {len(runs)} runs did not complete")


def jobs_of(config: DictConfig) -> list[list[str]]:
    """The overrides of every run, as Hydra's own sweeper will make them."""
    declared = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides([*declared, *config.hydra.overrides.task])
    return BasicSweeper.split_arguments(overrides, None)[0]


def is_first() -> bool:
    """Whether this process speaks for its team (runtime/distributed.py), or is alone."""
    return os.environ.get("RANK", "0") == "0"


def check_team(config: DictConfig) -> None:
    """
    Raises:
        ConfigError: several processes were started for one run, without a name that they share.
    """
    named = any(override.startswith("sweep=") for override in config.hydra.overrides.task)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not named:
        raise ConfigError("sweep: has no value that all processes share; set it with sweep=NAME")


def make_output_dir(config: DictConfig) -> None:
    """
    Raises:
        ConfigError: there can be no such folder.
    """
    try:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir={config.output_dir}: {error.strerror}; expected a folder to write to") from error


@contextmanager
def exit_on_error(of_run: str = "") -> Iterator[None]:
    try:
        yield
    except Exception as error:
        sys.exit(f"error: {explain(error)}" + (f" (run: {of_run})" if of_run else ""))
