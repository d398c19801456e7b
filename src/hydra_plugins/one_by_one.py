"""The launcher of hydra/launcher=basic: runs in this process, one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from runtime.claims import is_held, processes_of
from runtime.console import say
from sweeps.launch import Announcer, is_alone, logging_of, train_job
from sweeps.plan import Job, make_job
from tracking.run_lock import lock_of


@dataclass
class OneByOneConf:
    _target_: str = "hydra_plugins.one_by_one.OneByOneLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="basic", node=OneByOneConf)  # in place of Hydra's


class OneByOneLauncher(Launcher):
    """A launcher that trains the runs in this process."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.processes = 1  # processes of the sweep on this machine
        self.threads = 0  # threads of a process that is alone; 0 until another process joins

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs with the configs that the sweep has checked.

        Raises:
            SystemExit: A signal was received, or a run failed and on_failure=stop.
        """
        announcer = Announcer(self.config, initial_job_idx + len(job_overrides))
        sweep = Path(self.config.output_dir, self.config.sweep)
        jobs = [make_job(self.config.hydra.job.config_name, tuple(overrides)) for overrides in job_overrides]
        busy: list[tuple[int, Job]] = []  # runs that other processes are training, which are tried again at the end
        for numbered in (list(enumerate(jobs, initial_job_idx)), busy):
            for number, job in numbered:
                if numbered is not busy and is_alone() and is_held(lock_of(sweep, job.run_id)):
                    busy.append((number, job))
                    continue
                announcer.announce(number)
                self.share_cores(processes_of(sweep))
                train_job(job, logging_of(self.config))
        return [JobReturn(status=JobStatus.COMPLETED) for _ in job_overrides]

    def share_cores(self, processes: int) -> None:
        """Use a share of the threads if other processes have joined the sweep or left it."""
        if processes == self.processes:
            return
        import torch  # takes seconds

        self.threads, self.processes = self.threads or torch.get_num_threads(), processes
        share = max(1, self.threads // processes)
        torch.set_num_threads(share)
        say(f"{processes} processes of this sweep share the cores: {share} of {self.threads} threads for this one")
