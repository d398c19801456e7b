"""A run's lock, `.locks/ID.lock` in the sweep's folder: the process that holds it trains the run.

The system releases the lock when the process ends or is killed. `.locks/ID.holder` names the process.
"""

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from config.errors import FULL, ConfigError
from runtime.claims import is_held
from runtime.files import read_text, write_text

WAIT_SECONDS = 1.0  # Processes that only read a status hold the lock for less time.


def acquire_lock(path: Path) -> FileLock | None:
    """Acquire a run's lock, and name this process in its file; return None if another process holds it.

    Raises:
        ConfigError: The file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if lock := try_lock(path, WAIT_SECONDS):
        write_text(path.with_suffix(".holder"), f"{socket.gethostname()}, process {os.getpid()}")
    return lock


def try_lock(path: Path, seconds: float = 0.0) -> FileLock | None:
    """Lock a file within this time; return None if another process holds it.

    Raises:
        ConfigError: The file system has no locks that end with their process.
    """
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a killed process
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return None
    except OSError as error:
        if error.errno in FULL:
            raise
        raise ConfigError(
            f"output_dir: {path} cannot be locked ({error}). Fix: set output_dir to a file system with flock"
        ) from error
    return lock


def describe_holder(path: Path) -> str:
    """Read the name of the process that holds a lock from its file."""
    try:
        return read_text(path.with_suffix(".holder"))
    except (OSError, ValueError):
        return "unknown"


def is_locked(folder: Path) -> bool:
    """Return True if a process is training the run of this folder."""
    return is_held(lock_of(folder.parent, folder.name.rpartition("-")[2]))


def lock_of(sweep: Path, run_id: str) -> Path:
    """Return the path of a run's lock."""
    return sweep / ".locks" / f"{run_id}.lock"
