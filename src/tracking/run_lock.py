"""Who trains a run: the process that holds its lock, `.locks/ID.lock` in the sweep's folder.

The system releases the lock when this process ends, however it ends.
"""

import fcntl
from pathlib import Path

from filelock import FileLock, Timeout

WAIT_SECONDS = 1.0  # for those who only look; a run is held for longer


def acquire_lock(path: Path) -> FileLock | None:
    """None where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        return None
    return lock


def is_locked(folder: Path) -> bool:
    """Whether a process, on any machine that shares the file system, is training the run of this folder.

    Looking takes a shared lock for some microseconds, as several may do at once, and creates no file.
    """
    path = folder.parent / ".locks" / f"{folder.name.rpartition('-')[2]}.lock"
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
