"""Runs side by side on one machine: how many, on which GPU each, and how they stop together.

The sweep's own process hands the runs to workers, processes of their own
(conf/hydra/launcher/side_by_side.yaml); this is what either side does for that.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from functools import cache
from types import FrameType

from runtime.console import say

stopped_by = 0  # the signal that this process was told to stop with; in a worker, no run starts after it


def is_worker() -> bool:
    return multiprocessing.parent_process() is not None


# In the sweep's own process.


def how_many(asked: int | None, runs: int) -> int:
    """Runs at once: as many as asked for, else one per GPU, else one per core; not more than there are."""
    import joblib
    import torch

    return min(runs, joblib.effective_n_jobs(asked or torch.cuda.device_count() or -1))


def stop_together() -> None:
    """From now on a signal stops every worker in order, and the sweep waits for that; a second Ctrl-C does not."""

    def forward(number: int, frame: FrameType | None) -> None:
        global stopped_by
        stopped_by = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say("stopping: every run writes its checkpoint; Ctrl-C again ends them at once", "yellow")
        for worker in multiprocessing.active_children():
            worker.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)


def exit_if_stopped() -> None:
    """After the last run."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if stopped_by:
        sys.exit(128 + stopped_by)


# In a worker.


@cache
def prepare() -> None:
    """Before a worker's first run: a signal never ends the process itself, which would break up the sweep."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def remember(number: int, frame: FrameType | None) -> None:
        global stopped_by
        stopped_by = number

    def stop_with_parent() -> None:
        while os.getppid() == parent.pid:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)  # a run that is going on stops, and the process with it
        os._exit(1)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, remember)
    threading.Thread(target=stop_with_parent, daemon=True).start()


def stop_the_others() -> None:
    """As if the sweep's own process had been told to stop."""
    os.kill(os.getppid(), signal.SIGTERM)


def leave_if_alone() -> None:
    """After a run: without the sweep's own process there is nothing left to do."""
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)
