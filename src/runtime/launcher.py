"""What launched this process, and what it needs to be told when a run is interrupted or fails.

Shell        a person or a script: the exit code says what happened
Torchrun     several ranks; all are ended as soon as one has ended
Slurm        a job of submitit's, of one or several ranks, which an interrupted run puts back into the queue
SideBySide   a sweep with several runs at once, each in a process of its own
WandbAgent   the agent of a W&B sweep, which takes any exit code but 0 for a failure
"""

import logging
import multiprocessing
import os
import signal

from config.errors import first_line
from runtime.distributed import World, leave_at_once

log = logging.getLogger(__name__)


class Launcher:
    """A shell. The others differ from it where they have to."""

    shares_terminal = False  # with other runs, so that a line must name its run

    def __init__(self, world: World) -> None:
        self.world = world

    def ends_run(self, number: int) -> bool:
        """Whether the signal ends the run; otherwise it only asks for a checkpoint."""
        return True

    def after_interrupt(self, number: int) -> None:
        """What follows when the signal has ended the run and the run's folder is closed."""
        raise SystemExit(128 + number)

    def after_failure(self, stop_sweep: bool) -> None:
        """What follows when the run has failed and the run's folder is closed."""
        if stop_sweep:
            raise SystemExit(1)


class Torchrun(Launcher):
    def after_interrupt(self, number: int) -> None:
        self.world.barrier()  # rank 0, which records, would be ended with the first rank that ends
        super().after_interrupt(number)

    def after_failure(self, stop_sweep: bool) -> None:
        if self.world.size > 1:
            leave_at_once()
        super().after_failure(stop_sweep or self.world.size > 1)  # the other ranks would wait for this one


class Slurm(Torchrun):
    def ends_run(self, number: int) -> bool:
        # Preempted: Slurm puts the job back into the queue only if it is still there when its time is over.
        return number != signal.SIGTERM

    def after_interrupt(self, number: int) -> None:
        self.world.barrier()
        handler = signal.getsignal(number)  # submitit's, which puts the job back into the queue
        if callable(handler):
            try:
                handler(number, None)
            except Exception as refusal:  # the job may not be requeued any more
                log.error(first_line(refusal))
                return
        raise SystemExit(128 + number)


class SideBySide(Launcher):
    shares_terminal = True


class WandbAgent(Launcher):
    def after_interrupt(self, number: int) -> None:
        raise SystemExit(0)  # the agent itself stops runs; a few failures end it


def detect_launcher(world: World) -> Launcher:
    if multiprocessing.parent_process() is not None:
        return SideBySide(world)
    if "SUBMITIT_EXECUTOR" in os.environ:
        return Slurm(world)
    if "WANDB_SWEEP_ID" in os.environ:
        return WandbAgent(world)
    return Torchrun(world) if world.size > 1 else Launcher(world)
