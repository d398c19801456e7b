"""The launcher of conf/hydra/launcher/slurm.yaml: submitit's, but it submits only what is missing and not in the queue.

A lost job does not end the wait for the others.
"""

import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import DictConfig

from config.errors import ConfigError, first_line
from runtime.console import say
from sweeps.jobs import make_job


@dataclass
class SlurmConf(SlurmQueueConf):
    _target_: str = "hydra_plugins.slurm.Slurm"
    wait: bool = True


ConfigStore.instance().store(group="hydra/launcher", name="schema_slurm", node=SlurmConf)


class Slurm(SlurmLauncher):
    def setup(self, *, config: DictConfig, **context: Any) -> None:
        if not self.params["wait"] and "method" in config.hydra.sweeper:
            sweeper = config.hydra.runtime.choices["hydra/sweeper"]
            raise ConfigError(f"hydra.launcher.wait=false: hydra/sweeper={sweeper} needs the results; expected true")
        super().setup(config=config, **context)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the runs that are neither completed nor in the queue.

        Returns:
            The results of all that are in the queue then, when they have ended; none with wait=false.

        Raises:
            ConfigError: Slurm does not answer, or refuses the jobs.
        """
        import submitit  # Hydra imports this module at every start
        from submitit.core.utils import JobPaths

        folder, in_queue = self.params["submitit_folder"], ids_in_queue()
        waiting: list[submitit.Job[JobReturn]] = []
        missing: dict[Path, tuple[Any, ...]] = {}  # what Hydra calls for a run, by the file that keeps its job's id
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            run = make_job(self.config.hydra.job.config_name, overrides)
            path = JobPaths.get_first_id_independent_folder(folder) / f"{run.run_id}.job"
            job_id = path.read_text() if path.exists() else ""
            if run.summary.get("status") == "completed":
                continue
            if job_id in in_queue:
                waiting.append(submitit.SlurmJob(folder, job_id))
            else:
                missing[path] = list(overrides), "hydra.sweep.dir", number, f"run {number}", Singleton.get_state()
        completed = len(job_overrides) - len(waiting) - len(missing)
        say(f"Slurm: {len(missing)} to submit, {len(waiting)} in the queue already, {completed} completed before")
        waiting += self.submit(missing) if missing else []
        return [result_of(job) for job in waiting] if self.params["wait"] else []

    def submit(self, runs: Mapping[Path, tuple[Any, ...]]) -> Sequence[Any]:
        """Submit an array of jobs, and write each one's id into its file."""
        import submitit
        from submitit.core.utils import FailedJobError

        options = {key: value for key, value in self.params.items() if key != "wait"}
        folder, max_num_timeout = options.pop("submitit_folder"), options.pop("max_num_timeout")
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=max_num_timeout)
        shared = BaseQueueConf.__dataclass_fields__  # by all of submitit's executors
        executor.update_parameters(**{key if key in shared else f"slurm_{key}": options[key] for key in options})
        try:
            jobs = executor.map_array(self, *zip(*runs.values(), strict=True))
        except FailedJobError as error:
            raise ConfigError(f"hydra/launcher=slurm: {first_line(error)}") from error
        for path, job in zip(runs, jobs, strict=True):
            path.write_text(job.job_id)
        return jobs


def ids_in_queue() -> set[str]:
    """This user's jobs that wait or run, as submitit names them: 12, or 12_3 of an array.

    Raises:
        ConfigError: Slurm does not answer.
    """
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
    try:
        return set(subprocess.check_output(command, text=True).split())
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"hydra/launcher=slurm: {error}; expected a node from which jobs are submitted") from error


def result_of(job: Any) -> JobReturn:
    """What the run returned; NaN, as failed ones do, where its job was lost, e.g. killed for its memory."""
    from submitit.core.utils import UncompletedJobError

    try:
        return job.results()[0]
    except UncompletedJobError:
        say(f"job {job.job_id} ended without a result; what it said: {job.paths.stderr}", "red")
        return JobReturn(status=JobStatus.COMPLETED, _return_value=math.nan)
