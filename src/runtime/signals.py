"""Signals end a run between two steps: from a person, a scheduler, a machine going down."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from runtime.launcher import Launcher

# Ctrl-C, an orderly shutdown, a terminal that is closed, and the warnings of Slurm (USR1) and submitit (USR2) before a
# time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

Batch = TypeVar("Batch")


class Interrupted(BaseException):
    """A signal has ended the run; not an Exception, so that it ends the sweep as well."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def interrupted_at_once(launcher: Launcher) -> Iterator[None]:
    """Within this context a signal that ends the run raises Interrupted, so that what was begun is cleaned up."""

    def receive(number: int, frame: FrameType | None) -> None:
        if launcher.ends_run(number):
            raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():  # others cannot receive signals
        yield
        return
    previous = {number: signal.signal(number, receive) for number in signals_to_obey()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class SignalHandler:
    """Within this context signals are noted, to be acted on between two steps; a second Ctrl-C ends the process.

    SIGHUP stays ignored where it is, e.g. by nohup.

    Attributes:
        number: the signal that is to end the run; 0: none.
        save_requested: a signal has asked for a checkpoint, and the run goes on.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.number = 0
        self.save_requested = False
        self.is_waiting = False  # for a batch: nothing is lost if the run ends now
        self.previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "SignalHandler":
        if threading.current_thread() is threading.main_thread():  # others cannot receive signals
            self.previous = {number: signal.signal(number, self.receive) for number in signals_to_obey()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self.launcher.ends_run(number):
            self.save_requested = True
            return
        self.number = number
        if self.is_waiting:
            raise Interrupted(number)

    def watch(self, batches: Iterable[Batch], save: Callable[[], None] | None = None) -> Iterator[Batch]:
        """The batches; a signal is obeyed before each, and while it is waited for, after a last call of `save`.

        Not where there are several ranks: the others would wait for this one.

        Raises:
            Interrupted: a signal is to end the run.
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
            except Interrupted:
                self.is_waiting = False
                if save:
                    save()
                raise
            finally:
                self.is_waiting = False
            yield batch


def signals_to_obey() -> list[signal.Signals]:
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
