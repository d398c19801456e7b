"""The launcher of this process, which decides how an interrupted or failed run ends.

Launcher     a shell or a script: the exit code reports the end
Torchrun     several ranks: torchrun ends all ranks as soon as one ends
Slurm        a submitit job of one or several ranks: an interrupted run is requeued
SideBySide   a sweep with several runs at once, each in a separate process
WandbAgent   the agent of a W&B sweep, which counts every exit code except 0 as a failure
"""

import logging
import multiprocessing
import os
import signal

from config.errors import first_line
from runtime.distributed import World, leave_at_once

log = logging.getLogger(__name__)


class Launcher:
    """The shell, and the default behaviour of all launchers."""

    shares_terminal = False  # if true, each line names its run

    def __init__(self, world: World) -> None:
        self.world = world

    def ends_run(self, number: int) -> bool:
        """Check if the signal ends the run; if not, it only requests a checkpoint."""
        return True

    def after_interrupt(self, number: int) -> None:
        """End the process, or requeue the job, after a signal has ended the run and its folder is closed."""
        raise SystemExit(128 + number)

    def after_failure(self, stop_sweep: bool) -> None:
        """End the process if the sweep must stop, after the run has failed and its folder is closed."""
        if stop_sweep:
            raise SystemExit(1)


class Torchrun(Launcher):
    def after_interrupt(self, number: int) -> None:
        self.world.barrier()  # torchrun ends rank 0, which writes the record, as soon as any rank ends
        super().after_interrupt(number)

    def after_failure(self, stop_sweep: bool) -> None:
        if self.world.size > 1:
            leave_at_once()
        super().after_failure(stop_sweep or self.world.size > 1)  # other ranks would wait for this one


class Slurm(Torchrun):
    def ends_run(self, number: int) -> bool:
        # SIGTERM means preemption: Slurm requeues the job only if it is still running when its grace time ends.
        return number != signal.SIGTERM

    def after_interrupt(self, number: int) -> None:
        self.world.barrier()
        handler = signal.getsignal(number)  # submitit's handler, which requeues the job
        if callable(handler):
            try:
                handler(number, None)
            except Exception as refusal:  # e.g. the job was requeued too often
                log.error(first_line(refusal))
                return
        raise SystemExit(128 + number)


class SideBySide(Launcher):
    shares_terminal = True


class WandbAgent(Launcher):
    def after_interrupt(self, number: int) -> None:
        raise SystemExit(0)  # the agent stops runs itself, and ends after a few failures


def detect_launcher(world: World) -> Launcher:
    if multiprocessing.parent_process() is not None:
        return SideBySide(world)
    if "SUBMITIT_EXECUTOR" in os.environ:
        return Slurm(world)
    if "WANDB_SWEEP_ID" in os.environ:
        return WandbAgent(world)
    return Torchrun(world) if world.size > 1 else Launcher(world)
