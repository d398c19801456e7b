"""A real Slurm cluster of this machine alone, started and stopped by the tests.

It needs root and Debian's packages: apt-get install slurm-wlm munge
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

# cred_expire is the time that a requeued job waits in the queue. GraceTime is the time that a job may still run after
# a job of the partition "urgent" has preempted it. Both are minutes by default.
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MpiDefault=none
MaxArraySize=2
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes={host} Default=YES PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes={host} PriorityTier=2
"""


# Slurm's sacct reads a database, which this cluster lacks. The controller has the same data for five minutes.
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
scontrol show job --oneliner | sed --regexp-extended \\
    -e 's/^JobId=[0-9]+ ArrayJobId=([0-9]+) ArrayTaskId=([0-9]+) /JobId=\\1_\\2 /' \\
    -e 's/^JobId=([0-9_]+) .*JobState=([A-Z_]+) .*/\\1|\\2|/'
"""


def missing() -> str | None:
    """Explain why a cluster cannot be started here; return None if it can."""
    if absent := [program for program in PROGRAMS if not shutil.which(program, path=search_path())]:
        return f"Slurm is not installed ({', '.join(absent)}): apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "Slurm's daemons need root"


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Run a cluster with its files in `folder`; yield the environment of its commands."""
    host = socket.gethostname().partition(".")[0]
    controller_port, node_port = free_ports(2)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, folder=folder, controller_port=controller_port, node_port=node_port))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    sacct = folder / "bin" / "sacct"
    sacct.parent.mkdir()
    sacct.write_text(SACCT)
    sacct.chmod(0o755)
    environment = {"PATH": f"{sacct.parent}:{search_path()}", "SLURM_CONF": str(config)}
    munged = [
        "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
        f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed",
    ]  # fmt: skip
    with ExitStack() as daemons:
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            daemons.enter_context(daemon(command, environment, folder))
        wait_until_idle(environment, folder)
        try:
            yield environment
        finally:
            for options in ((), ("--full", "--signal=KILL")):
                subprocess.run(["scancel", "--quiet", "--user=root", *options], env=environment, check=False)
            wait_until_idle(environment, folder)


@contextmanager
def daemon(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    """Run a daemon within this context."""
    with (folder / f"{command[0]}.out").open("w") as output:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    """Wait until no job runs.

    Raises:
        RuntimeError: Slurm is not ready within half a minute.
    """
    for _ in range(150):
        state = subprocess.run(
            ["sinfo", "--noheader", "--partition=main", "--format=%T"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if state.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    logs = "\n".join(path.read_text()[-2000:] for path in [*folder.glob("*.out"), *folder.glob("*.log")])
    raise RuntimeError(f"Slurm is not ready: {state.stdout}{state.stderr}\n{logs}")


def free_ports(n: int) -> list[int]:
    """Find free ports of this machine."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(n)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def search_path() -> str:
    """Return PATH with Debian's folders of daemons, which only root's PATH has."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
