"""Commands in real processes, for tests of signals and kills.

The imports of a run take about eight seconds. Commands are therefore forked, by multiprocessing's fork server, from a
process that has imported them. Processes that a command starts itself (workers, jobs) import everything again.
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
    """Make the environment of a command, without this process's W&B service, which W&B would pass to children."""
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return {**inherited, "OMP_NUM_THREADS": "1", **environment}


@cache
def fork_server() -> ForkServerContext:
    """Start the fork server with the imports of all commands."""
    context = multiprocessing.get_context("forkserver")
    commands = ["training.start", "publishing.publish", "sweeps.search", "wandb_sweep", "wandb.apis.public"]
    libraries = ["sklearn.datasets", "optuna.storages._rdb.models", "alembic.command"]  # imported when needed
    context.set_forkserver_preload([*commands, *libraries])
    with pytest.MonkeyPatch.context() as patched:  # Python 3.11 does not pass sys.path to the server.
        patched.setenv("PYTHONPATH", str(REPOSITORY / "src"))
        patched.setenv("OMP_NUM_THREADS", "1")
        multiprocessing.forkserver.ensure_running()
    return context


class Command:
    """A running `python src/SCRIPT.py ARGUMENTS`, with the interface of subprocess.Popen."""

    started: ClassVar[list["Command"]] = []  # commands of the current test, which are ended after it

    def __init__(
        self, script: str, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], errors: str = "stderr"
    ) -> None:
        self.args = [str(REPOSITORY / "src" / f"{script}.py"), *arguments]
        folder = Path(tempfile.mkdtemp())  # cwd belongs to the command alone
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
        """Kill the command and remove its output."""
        self.kill()
        shutil.rmtree(self.outputs[0].parent)

    def communicate(self, timeout: float | None = None) -> list[str]:
        """Wait for the command's end; return its standard output and standard error.

        Raises:
            subprocess.TimeoutExpired: The command has not ended in time.
        """
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return [output.read_text() for output in self.outputs]


def become(argv: list[str], cwd: Path, environment: dict[str, str], outputs: list[Path]) -> None:
    """Turn this forked process into the command."""
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined] # A command has no parent here.
    gc.freeze()
    tempfile.tempdir = None  # The command's environment decides anew, also for sockets.
    multiprocessing.current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]
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
    finally:  # An interpreter does this at its end, multiprocessing does not.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
