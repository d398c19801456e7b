"""The launcher of conf/hydra/launcher/side_by_side.yaml: each run in a separate process, several at once.

The processes are forked from one that has imported PyTorch, which takes seconds. They get the configs that the sweep
has checked.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, env_override
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from config.errors import ConfigError
from config.process import prepare_process
from runtime.claims import processes_of
from runtime.console import say
from runtime.cores import cores
from sweeps.launch import Announcer, logging_of, train_job
from sweeps.plan import Job, make_job

MAX_TMPDIR = 70  # bytes; the fork server's socket has a path 32 bytes longer, and 107 are allowed


class SideBySideLauncher(Launcher):
    """A launcher that trains several runs at once, each in a separate process.

    Args:
        n_jobs: Runs at once; None: one per GPU, without a GPU one per core.

    Raises:
        ConfigError: `n_jobs` is below 1.
    """

    def __init__(self, n_jobs: int | None) -> None:
        if n_jobs is not None and n_jobs < 1:
            raise ConfigError(f"hydra.launcher.n_jobs={n_jobs}: expected at least 1, or null")
        self.n_jobs = n_jobs
        self.running: dict[ForkServerProcess, str] = {}
        self.exit_code = 0  # the exit code after stop(), which is not 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.logging = config, logging_of(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs, `n_jobs` at once. A run that fails or is killed does not affect the others.

        Raises:
            SystemExit: A signal was received, or a run did not complete and on_failure=stop.
        """
        from runtime.signals import handle_signals  # imports torch; Hydra imports this file at every start

        processes = processes_of(Path(self.config.output_dir, self.config.sweep))  # commands that share the cores
        n_jobs = min(len(job_overrides), self.n_jobs or default_n_jobs(processes))
        announcer = Announcer(self.config, initial_job_idx + len(job_overrides), at_once=n_jobs)
        waiting = deque(enumerate(job_overrides, initial_job_idx))
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        with handle_signals(lambda number: self.stop(128 + number), signals):
            context = fork_server(cores() // (n_jobs * processes))
            while self.running or (waiting and not self.exit_code):
                if waiting and len(self.running) < n_jobs and not self.exit_code:
                    number, overrides = waiting.popleft()
                    announcer.announce(number)
                    self.start(context, overrides)
                    continue
                wait([process.sentinel for process in self.running])
                for process in [process for process in self.running if process.exitcode is not None]:
                    name = self.running.pop(process)
                    if process.exitcode and process.exitcode < 0 and not self.exit_code:
                        say(f"the process of {name} was killed; out of memory?", "red")
                    if process.exitcode and self.config.on_failure == "stop" and not self.exit_code:
                        self.stop(exit_code=1)
        if self.exit_code:
            sys.exit(self.exit_code)
        return [JobReturn(status=JobStatus.COMPLETED) for _ in job_overrides]

    def start(self, context: ForkServerContext, overrides: Sequence[str]) -> None:
        """Start the process of a run."""
        job = make_job(self.config.hydra.job.config_name, tuple(overrides))
        process = context.Process(target=run_in_process, args=(job, self.logging))
        try:
            process.start()
        except (EOFError, ConnectionError):  # A signal has ended the fork server during its imports.
            if not self.exit_code:
                raise
            return
        self.running[process] = " ".join(overrides)
        if self.exit_code:  # A signal was received during the start.
            process.terminate()

    def stop(self, exit_code: int) -> None:
        """Ask every run to save a checkpoint and end; the second time, end them at once."""
        again, self.exit_code = bool(self.exit_code), self.exit_code or exit_code
        if not again:
            say("stopping: every run writes its checkpoint; Ctrl-C ends them at once", "yellow")
        for process in list(self.running):
            process.kill() if again else process.terminate()


def default_n_jobs(processes: int) -> int:
    """Count runs at once: one on each GPU, without GPUs one on each core, shared with other processes of the sweep."""
    import torch  # takes seconds

    return torch.cuda.device_count() or max(1, cores() // processes)


def fork_server(threads: int) -> ForkServerContext:
    """Start a process with all imports of a run, from which runs of this number of threads are forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.start"])
    inherited = {name: os.environ.get(name, str(max(1, threads))) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with env_override({**inherited, "PYTHONPATH": os.pathsep.join(sys.path)}):  # Python 3.11 does not pass sys.path.
        folder = tempfile.tempdir
        if len(os.fsencode(tempfile.gettempdir())) > MAX_TMPDIR:
            tempfile.tempdir = "/tmp"
        forkserver.ensure_running()
        tempfile.tempdir = folder
    return context


# The functions below run in a run's process.


def run_in_process(job: Job, logging: DictConfig) -> None:
    """Train a run of the sweep; save a checkpoint and stop if the sweep's process has ended."""
    prepare_process()
    threading.Thread(target=stop_with_parent, daemon=True).start()
    if train_job(job, logging).is_error:
        sys.exit(1)


def stop_with_parent() -> None:
    """Send this process SIGTERM when the sweep's process has ended."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
