"""The launcher of hydra/launcher=basic: the runs of a sweep in this process, one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sweeps.launch import Announcer, logging_of, train
from sweeps.plan import make_job


@dataclass
class OneByOneConf:
    _target_: str = "hydra_plugins.one_by_one.OneByOne"


ConfigStore.instance().store(group="hydra/launcher", name="basic", node=OneByOneConf)  # in place of Hydra's


class OneByOne(Launcher):
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all of them with the configs that the sweep has checked.

        Raises:
            SystemExit: a signal came, or a run failed and on_failure=stop.
        """
        announcer = Announcer(self.config, initial_job_idx + len(job_overrides))
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            announcer.say(number)
            train(make_job(self.config.hydra.job.config_name, tuple(overrides)), logging_of(self.config))
        return [JobReturn(status=JobStatus.COMPLETED) for _ in job_overrides]
