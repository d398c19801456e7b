"""A run's lock, `.locks/ID.lock` in the sweep's folder: the process that holds it trains the run.

The system releases the lock when this process ends, however it ends. `.locks/ID.holder` says which process that is.
"""

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from config.errors import FULL, ConfigError
from runtime.claims import is_held
from runtime.files import write_text

WAIT_SECONDS = 1.0  # for those who only look; a run is held for longer


def acquire_lock(path: Path) -> FileLock | None:
    """Acquire a lock; None if another process holds it.

    Raises:
        ConfigError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise ConfigError(
            f"output_dir: {path} cannot be locked ({error}). Fix: an output_dir on a file system with flock"
        ) from error
    write_text(path.with_suffix(".holder"), f"{socket.gethostname()}, process {os.getpid()}")
    return lock


def describe_holder(path: Path) -> str:
    """Describe the process that holds a lock, by its file."""
    try:
        return path.with_suffix(".holder").read_text()
    except OSError:
        return "unknown"


def is_locked(folder: Path) -> bool:
    """Check whether a process is training the run of this folder."""
    return is_held(lock_of(folder.parent, folder.name.rpartition("-")[2]))


def lock_of(sweep: Path, run_id: str) -> Path:
    return sweep / ".locks" / f"{run_id}.lock"
