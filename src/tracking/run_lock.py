"""Whether a run is being trained: by the process that holds its lock, `.locks/ID.lock` in the sweep's folder.

The system releases the lock when this process ends, however it ends.
"""

import fcntl
from pathlib import Path


def is_locked(folder: Path) -> bool:
    """Whether a process, on any machine that shares the file system, is training the run of this folder.

    The question takes a shared lock for some microseconds, as several who ask may do at once, and creates no file.
    A process that starts the run at this very moment waits for it (tracking/run_folder.py).
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
