"""The launcher of conf/hydra/launcher/slurm.yaml, an extension of submitit's.

It submits only runs that are not in the queue, and a lost job does not end the wait for the others.
"""

import itertools
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import DictConfig

from config.errors import ConfigError, first_line
from runtime.console import say
from runtime.files import write_text
from sweeps.launch import GRID, logging_of, train_job
from sweeps.plan import Job, make_job

QUEUE_CHECK_S = 5.0  # seconds between two looks at the queue for a job that was put back into it
SIGNAL_EARLY_S = 60  # seconds by which Slurm may send a signal too early


@dataclass
class SlurmConf(SlurmQueueConf):  # type: ignore[misc]  # without types
    _target_: str = "hydra_plugins.slurm.QueueLauncher"
    wait: bool = True


ConfigStore.instance().store(group="hydra/launcher", name="schema_slurm", node=SlurmConf)


class Task:
    """The task of a Slurm job. At the time limit submitit puts the job back into the queue."""

    def __init__(self, logging: DictConfig) -> None:
        self.logging = logging

    def __call__(self, job: Job) -> None:
        train_job(job, self.logging)

    def checkpoint(self, job: Job) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


class QueueLauncher(SlurmLauncher):  # type: ignore[misc]
    """A launcher of Slurm jobs that leaves queued runs in the queue."""

    def setup(self, *, config: DictConfig, **context: Any) -> None:
        """Check the launcher's keys.

        Raises:
            ConfigError: wait=false with a search or race, or too short a time limit.
        """
        if not self.params["wait"] and config.hydra.sweeper.method != GRID:
            sweeper = config.hydra.runtime.choices["hydra/sweeper"]
            raise ConfigError(
                f"hydra.launcher.wait=false: hydra/sweeper={sweeper} needs the results. Fix: hydra.launcher.wait=true"
            )
        minutes, delay = self.params["timeout_min"], self.params["signal_delay_s"]
        if 60 * minutes <= delay + SIGNAL_EARLY_S:
            raise ConfigError(
                f"hydra.launcher.timeout_min={minutes}: with hydra.launcher.signal_delay_s={delay} a job stops as soon "
                f"as it begins; expected at least {(delay + SIGNAL_EARLY_S) // 60 + 1}, or a shorter delay"
            )
        super().setup(config=config, **context)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the runs that are not in the queue; with wait=true, return when all have ended.

        Raises:
            ConfigError: Slurm cannot be reached, or refuses the jobs.
        """
        import submitit  # Hydra imports this module at every start
        from submitit.core.utils import JobPaths

        folder, queue = self.params["submitit_folder"], ids_in_queue()
        waiting: list[submitit.Job[None]] = []
        missing: dict[Path, Job] = {}  # jobs by the file for the ID that Slurm gives them
        for overrides in job_overrides:
            run = make_job(self.config.hydra.job.config_name, tuple(overrides))
            path = JobPaths.get_first_id_independent_folder(folder) / f"{run.run_id}.job"
            job_id = path.read_text(errors="replace") if path.is_file() else ""
            if job_id in queue:
                waiting.append(submitit.SlurmJob(folder, job_id))
            else:
                missing[path] = run
        say(f"Slurm: {len(missing):,} to submit, {len(waiting):,} in the queue already")
        waiting += self.submit(missing)
        if self.params["wait"]:
            for job in waiting:
                wait_for(job)
        return [JobReturn(status=JobStatus.COMPLETED) for _ in waiting]

    def submit(self, runs: Mapping[Path, Job]) -> Sequence[Any]:
        """Submit arrays of jobs, each as large as the cluster allows, and write each job's ID into its file."""
        import submitit
        from submitit.core.utils import FailedJobError

        options = {key: value for key, value in self.params.items() if key != "wait"}
        folder, max_num_timeout = options.pop("submitit_folder"), options.pop("max_num_timeout")
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=max_num_timeout)
        shared = BaseQueueConf.__dataclass_fields__  # options of all submitit's executors
        executor.update_parameters(**{key if key in shared else f"slurm_{key}": options[key] for key in options})
        submitted: list[Any] = []
        size = max_array_size()
        for start in range(0, len(runs), size):
            part = dict(itertools.islice(runs.items(), start, start + size))
            try:
                jobs = executor.map_array(Task(logging_of(self.config)), part.values())
            except FailedJobError as error:
                if not submitted:
                    raise ConfigError(f"hydra/launcher=slurm: {first_line(error)}") from error
                say(
                    f"Slurm accepts no more jobs ({first_line(error)}). Run the same command again for the other runs",
                    "yellow",
                )
                break
            for path, job in zip(part, jobs, strict=True):
                write_text(path, job.job_id)
            submitted += jobs
        return submitted


def max_array_size() -> int:
    """Return the number of jobs that the cluster allows in an array."""
    output = query("scontrol", "show", "config")
    return int(re.findall(r"MaxArraySize\s*=\s*(\d+)", output)[0])


def query(*command: str) -> str:
    """Return the output of a Slurm command.

    Raises:
        ConfigError: Slurm cannot be reached.
    """
    try:
        return subprocess.check_output(command, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"hydra/launcher=slurm: {error}; expected a node that can submit jobs") from error


def ids_in_queue() -> set[str]:
    """List this user's waiting and running jobs by submitit's IDs: 12, or 12_3 in an array."""
    return set(query("squeue", "--me", "--array", "--noheader", "--format=%i").split())


def is_in_queue(job_id: str) -> bool:
    """Return True if Slurm answers that the job waits or runs."""
    try:
        return job_id in ids_in_queue()
    except ConfigError:
        return False


def wait_for(job: Any) -> None:
    """Wait for a job to end. A lost job, e.g. killed for its memory, is reported and does not end the sweep.

    submitit takes a job that Slurm has preempted for one that has ended, also when Slurm puts it back into the queue.
    """
    from submitit.core.utils import UncompletedJobError

    while True:
        try:
            job.results()
            return
        except UncompletedJobError:
            if not is_in_queue(job.job_id):
                say(f"job {job.job_id} ended without a result; its error log: {job.paths.stderr}", "red")
                return
        time.sleep(QUEUE_CHECK_S)
