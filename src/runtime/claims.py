"""What processes on one machine claim: a GPU each, and a share of the cores among those that work on one sweep.

A claim is a lock, which the system releases when the process ends, however it ends.
"""

import fcntl
import hashlib
import itertools
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

held: list[FileLock] = []


@cache
def assign_gpu() -> int:
    """The index of a GPU that no more processes have than any other; it stays this process's own."""
    import torch

    gpus = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    return claim(gpus, Path(tempfile.gettempdir()) / f"convmixer-gpus-{os.getuid()}")


def claim(names: Sequence[str], folder: Path) -> int:
    """The index of the name that was claimed: the first that is free, else the first with one process, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for place in itertools.count():
        for index, name in enumerate(names):
            lock = FileLock(folder / f"{name}-{place}.lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            held.append(lock)
            return index
    raise AssertionError("unreachable")


def join_sweep(sweep: Path) -> None:
    """Count this process, until it ends, among those that work on the sweep on this machine."""
    claim([key_of(sweep)], cores_folder())


def processes_of(sweep: Path) -> int:
    """Processes that have joined the sweep on this machine, at least 1."""
    return max(1, sum(is_held(lock) for lock in cores_folder().glob(f"{key_of(sweep)}-*.lock")))


def cores_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"convmixer-cores-{os.getuid()}"


def key_of(sweep: Path) -> str:
    return hashlib.sha256(os.fsencode(sweep.resolve())).hexdigest()[:16]


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock, on any machine that shares the file system.

    Looking takes a shared lock for some microseconds, as several may do at once, and creates no file.
    """
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
