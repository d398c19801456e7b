"""The cores that this process may use, and how many of them other processes keep busy."""

import logging
import os
import time
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)
STAT = Path("/proc/stat")  # of Linux: processor time by core, in ticks
BUSY = (1, 2, 3, 6, 7, 8)  # columns of a core's line: user, nice, system, irq, softirq, steal; not idle and iowait


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seconds_of_others() -> float:
    """Return the processor seconds that other processes have used on this process's cores; 0 where it is unknown."""
    if not STAT.is_file():
        return 0.0
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in STAT.read_text().splitlines()]
    ticks = sum(int(line[column]) for line in lines if line[0] in names for column in BUSY)
    times = os.times()  # of this process and its children
    return ticks / os.sysconf("SC_CLK_TCK") - (times.user + times.system + times.children_user + times.children_system)


STARTED = time.monotonic(), seconds_of_others()


def busy_cores() -> float:
    """Return how many cores other processes have kept busy since this process started, on average."""
    started, seconds = STARTED
    return max(0.0, seconds_of_others() - seconds) / max(0.1, time.monotonic() - started)


def too_many_threads(threads: int) -> str:
    """Describe how many threads would fit beside other processes; empty if so many do.

    Each operation ends when its last thread does, so a thread without a core of its own delays all others.
    """
    busy = busy_cores()
    fitting = max(1, round(cores() - busy))
    if fitting >= threads:
        return ""
    return (
        f"other processes keep {busy:.1f} of {cores()} cores busy, and {threads} threads wait for each other: "
        f"OMP_NUM_THREADS={fitting} may be faster"
    )


@cache  # once in a process
def warn_of_busy_cores(threads: int) -> None:
    if advice := too_many_threads(threads):
        log.warning(f"  {advice}")
