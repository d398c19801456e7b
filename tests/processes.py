"""Commands as processes of their own, which signals really reach and kills really end.

Python takes some eight seconds to import what a run needs. Therefore commands are forked, by multiprocessing's
fork server, from a process that has imported it; what they start in turn (workers, jobs) starts from nothing.
"""

import atexit
import gc
import multiprocessing.forkserver
import multiprocessing.process
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import ClassVar

import pytest

REPOSITORY = Path(__file__).parents[1]


def shipped(pattern: str) -> list[Path]:
    """List the files below conf that belong to the repository, not those that a user has added."""
    git = subprocess.run(["git", "ls-files", "conf"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    tracked = {REPOSITORY / name for name in git.stdout.split()}
    return sorted(path for path in (REPOSITORY / "conf").glob(pattern) if path in tracked or not tracked)


def environment_of(**environment: str) -> dict[str, str]:
    """The environment of a command of its own: W&B would tell child processes to use this process's service."""
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return {**inherited, "OMP_NUM_THREADS": "1", **environment}


@cache
def fork_server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    preloaded = ["training.start", "comparison.report", "sweeps.search", "wandb_sweep", "wandb.apis.public"]
    context.set_forkserver_preload(preloaded)
    with pytest.MonkeyPatch.context() as only_here:  # Python 3.11 does not tell the server where to find modules
        only_here.setenv("PYTHONPATH", str(REPOSITORY / "src"))
        only_here.setenv("OMP_NUM_THREADS", "1")
        multiprocessing.forkserver.ensure_running()
    return context


class Command:
    """`python src/SCRIPT.py ARGUMENTS`, running; used like subprocess.Popen."""

    started: ClassVar[list["Command"]] = []  # by the test that is going on, which ends those that go on after it

    def __init__(
        self, script: str, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], errors: str = "stderr"
    ) -> None:
        self.args = [str(REPOSITORY / "src" / f"{script}.py"), *arguments]
        folder = Path(tempfile.mkdtemp())  # not in cwd, which the command has for itself
        self.outputs = [folder / "stdout", folder / errors]
        self.process = fork_server().Process(target=become, args=(self.args, cwd, dict(environment), self.outputs))
        self.process.start()
        self.started.append(self)

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> None:
        self.kill()
        shutil.rmtree(self.outputs[0].parent)

    def communicate(self, timeout: float | None = None) -> list[str]:
        """What the command has written to its standard output and for errors, when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not ended in time.
        """
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return [output.read_text() for output in self.outputs]


def become(argv: list[str], cwd: Path, environment: dict[str, str], outputs: list[Path]) -> None:
    """Turn this forked process into the command."""
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined] # it is nobody's worker
    gc.freeze()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for stream, output in zip((sys.stdout, sys.stderr), outputs, strict=True):
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
    signal.signal(signal.SIGHUP, signal.Handlers[environment.get("HANGUP", "SIG_DFL")])
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:  # what an interpreter does at its end, and multiprocessing does not
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
