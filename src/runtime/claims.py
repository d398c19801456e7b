"""Claims of processes on one machine: a GPU for each, and a share of the cores for each process of one sweep.

A claim is a file lock. The operating system releases it when the process ends, even if the process is killed.
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
    """Claim the GPU with the fewest processes of this program, and return its index; the claim lasts until exit."""
    import torch

    gpus = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    return claim(gpus, Path(tempfile.gettempdir()) / f"convmixer-gpus-{os.getuid()}")


def claim(names: Sequence[str], folder: Path) -> int:
    """Claim one of the names, and return its index: the first without a process, else the first with one, etc."""
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
    """Count this process among the sweep's processes on this machine until it ends."""
    claim([key_of(sweep)], cores_folder())


def processes_of(sweep: Path) -> int:
    """Count the processes that have joined the sweep on this machine, at least 1."""
    return max(1, sum(is_held(lock) for lock in cores_folder().glob(f"{key_of(sweep)}-*.lock")))


def cores_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"convmixer-cores-{os.getuid()}"


def key_of(sweep: Path) -> str:
    return hashlib.sha256(os.fsencode(sweep.resolve())).hexdigest()[:16]


def is_held(lock: Path) -> bool:
    """Check if a process holds the lock, on any machine that shares the file system.

    The check takes a shared lock for some microseconds and creates no file. Several processes may check at once.
    """
    if not lock.is_file():  # opening a pipe would wait for ever
        return False
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
