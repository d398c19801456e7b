"""Signal handling: a signal ends a run, or requests a checkpoint, between two steps."""

import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from runtime.launcher import Launcher

# Ctrl-C, shutdown, closed terminal, and the warnings of Slurm (USR1) and submitit (USR2) before a time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

Batch = TypeVar("Batch")


class Interrupted(BaseException):
    """The signal that has ended a run. It is not an Exception, so that it ends the sweep as well."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def handle_signals(receive: Callable[[int], None], signals: Collection[int] = SIGNALS) -> Iterator[None]:
    """Call `receive` for each signal inside the context; an ignored SIGHUP stays ignored, e.g. with nohup."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    ignored = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else []
    numbers = [number for number in signals if number not in ignored]
    previous = {number: signal.signal(number, lambda number, _: receive(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def interrupted_at_once(launcher: Launcher) -> Iterator[None]:
    """Raise Interrupted at once, in the middle of any computation, while the context is active."""

    def receive(number: int) -> None:
        if launcher.ends_run(number):
            raise Interrupted(number)

    with handle_signals(receive):
        yield


class SignalRecord:
    """The signals of a run, recorded to be handled between two steps. A second Ctrl-C ends the process at once.

    Attributes:
        number: The signal that ends the run; 0 if none came.
        save_requested: True if a signal requests a checkpoint while the run continues.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.number = 0
        self.save_requested = False
        self.is_waiting = False  # for a batch; nothing is lost if the run ends now

    def receive(self, number: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self.launcher.ends_run(number):
            self.save_requested = True
            return
        self.number = number
        if self.is_waiting:
            raise Interrupted(number)

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches. On a signal, also while waiting for a batch, end the run.

        With several ranks, signals are handled elsewhere: the ranks must agree on the step first.

        Raises:
            Interrupted: A signal ends the run.
        """
        if self.launcher.world.size > 1:
            yield from batches
            return
        iterator = iter(batches)
        while True:
            try:
                self.is_waiting = True
                if self.number:
                    raise Interrupted(self.number)
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self.is_waiting = False
            yield batch
