"""Stopping a run between two steps when someone asks: a person, a scheduler, a machine going down."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from runtime import workers

# Ctrl-C, an orderly shutdown, and the warnings of Slurm (USR1) and submitit (USR2) before a time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(BaseException):
    """The run was asked to stop and has; not an Exception, so that it ends the sweep as well."""

    def __init__(self, number: int, previous: Any) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.previous = previous  # who else waited for this signal, e.g. submitit, which requeues the job


class StopRequest:
    """Within this context a signal asks for a stop; a second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.number = workers.stopped_by
        self.previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # others cannot receive signals
            self.previous = {number: signal.signal(number, self.receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def heed(self, saved: bool = True) -> None:
        """
        Raises:
            Stopped: a signal has come.
        """
        if self.number == signal.SIGTERM and "SUBMITIT_EXECUTOR" in os.environ:
            # Preempted: Slurm puts the job back into the queue only if it is still there when its time is over.
            if saved:
                self.number = 0
            return
        if self.number:
            raise Stopped(self.number, self.previous.get(self.number))
