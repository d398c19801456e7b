"""The launcher of conf/hydra/launcher/side_by_side.yaml: joblib's, but a run that is killed takes no other along."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher

from runtime.console import say


class SideBySide(JoblibLauncher):
    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all of them, `n_jobs` at once.

        Where the process of a run is killed, e.g. for its memory, joblib ends its neighbors with it. They go on one
        at a time then, which shows the one to blame: it returns NaN, as failed runs do. Then the others follow.
        """
        from joblib.externals.loky.process_executor import TerminatedWorkerError  # not at every start of Hydra

        assert self.config
        setup_globals()
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        waiting = dict(enumerate(job_overrides, initial_job_idx))
        returned: dict[int, JobReturn] = {}
        suspects: list[int] = []
        while waiting:
            batch, begun = suspects[:1] or list(waiting), list[int]()
            try:
                for number, result in self.side_by_side({number: waiting[number] for number in batch}, begun):
                    returned[number] = result
                    del waiting[number]
                suspects = suspects[1:]
            except TerminatedWorkerError:
                ended = [number for number in begun if number in waiting]
                if len(ended) > 1:
                    say("the process of a run was killed; those that were going on go on one at a time", "yellow")
                    suspects = ended
                    continue
                for number in ended:
                    say(f"the process of {' '.join(waiting.pop(number))} was killed; out of memory?", "red")
                    returned[number] = JobReturn(status=JobStatus.COMPLETED, _return_value=math.nan)
                suspects = suspects[1:]
        return [returned[number] for number in sorted(returned)]

    def side_by_side(self, runs: dict[int, Sequence[str]], begun: list[int]) -> Iterable[tuple[int, JobReturn]]:
        """Each as it ends; `begun` has those that were begun."""
        from joblib import Parallel, cpu_count, delayed, parallel_config

        def calls() -> Iterator[Any]:
            for number, overrides in runs.items():
                begun.append(number)
                yield delayed(execute)(
                    number, overrides, self.hydra_context, self.config, self.task_function, Singleton.get_state()
                )

        n_jobs = self.joblib["n_jobs"]
        options = {**self.joblib, "n_jobs": max(2, n_jobs), "pre_dispatch": n_jobs, "batch_size": 1}
        with parallel_config("loky", inner_max_num_threads=max(1, cpu_count() // n_jobs)):
            # A single process would be this one.
            return Parallel(return_as="generator_unordered", **options)(calls())


def execute(number: int, *call: Any) -> tuple[int, JobReturn]:
    from hydra_plugins.hydra_joblib_launcher._core import execute_job

    return number, execute_job(number, *call)
