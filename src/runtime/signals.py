"""Signals end a run between two steps: from a person, a scheduler, a machine going down."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from runtime.launcher import Launcher

# Ctrl-C, an orderly shutdown, and the warnings of Slurm (USR1) and submitit (USR2) before a time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(BaseException):
    """A signal has ended the run; not an Exception, so that it ends the sweep as well."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class SignalHandler:
    """Within this context signals are only noted, to be acted on between two steps; a second Ctrl-C ends the process.

    Attributes:
        number: the signal that is to end the run; 0: none.
        save_requested: a signal has asked for a checkpoint, and the run goes on.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.number = 0
        self.save_requested = False
        self.previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "SignalHandler":
        if threading.current_thread() is threading.main_thread():  # others cannot receive signals
            self.previous = {number: signal.signal(number, self.receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self.launcher.ends_run(number):
            self.number = number
        else:
            self.save_requested = True

    def raise_if_requested(self) -> None:
        """
        Raises:
            Interrupted: a signal is to end the run.
        """
        if self.number:
            raise Interrupted(self.number)
