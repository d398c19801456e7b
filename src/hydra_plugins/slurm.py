"""The launcher of conf/hydra/launcher/slurm.yaml: submitit's, but a lost job does not end the wait for the others."""

import math
from collections.abc import Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

from runtime.console import say


class Slurm(SlurmLauncher):
    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the runs as an array of jobs, and wait for all of them."""
        import submitit  # Hydra imports this module at every start

        options = dict(self.params)
        folder, max_num_timeout = options.pop("submitit_folder"), options.pop("max_num_timeout")
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=max_num_timeout)
        shared = BaseQueueConf.__dataclass_fields__  # by all of submitit's executors
        executor.update_parameters(**{key if key in shared else f"slurm_{key}": options[key] for key in options})
        calls = [
            (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        return [result_of(job) for job in executor.map_array(self, *zip(*calls, strict=True))]


def result_of(job: Any) -> JobReturn:
    """What the run returned; NaN, as failed ones do, where its job was lost, e.g. killed for its memory."""
    from submitit.core.utils import UncompletedJobError

    try:
        return job.results()[0]
    except UncompletedJobError:
        say(f"job {job.job_id} ended without a result; what it said: {job.paths.stderr}", "red")
        return JobReturn(status=JobStatus.COMPLETED, _return_value=math.nan)
