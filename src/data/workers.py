"""Worker processes that make batches ahead, and return them in order.

PyTorch's would pass them through /dev/shm and a socket in TMPDIR, wait for ever where either is too small, and not be
ended by an error. Here pixels pass through memory that is shared since the fork, all else through a pipe.
"""

import ctypes
import math
import mmap
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import count, islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from config.errors import ConfigError, first_line
from runtime.signals import SIGNALS

AHEAD = 2  # batches that each worker has ready at most
PR_SET_PDEATHSIG = 1  # of Linux' <sys/prctl.h>
FORK = sys.platform == "linux"  # elsewhere workers are spawned, which share no memory

Made = tuple[Any, Any]  # of a worker: pixels, an array of uint8, and what belongs to them


class Workers:
    """Processes that call `make` for items; they end with this object, or with the process that owns it.

    Args:
        make: returns pixels, and what belongs to them.
        number: of processes; without any, this process calls `make` itself.
        max_bytes: of the pixels that are passed through shared memory; more go through the pipe.
    """

    def __init__(self, make: Callable[[Any], Made], number: int, max_bytes: int) -> None:
        context = multiprocessing.get_context("fork" if FORK else None)
        self.make = make
        self.pipes: list[Connection] = []
        self.slots: list[NDArray[np.uint8]] = []  # of each worker, [AHEAD, max_bytes]
        processes: list[BaseProcess] = []
        self.stop = Finalize(self, end, (processes,), exitpriority=1)  # or multiprocessing would wait for them
        for worker in range(number):
            memory = mmap.mmap(-1, AHEAD * max_bytes) if FORK else b""
            slots = np.frombuffer(memory, np.uint8).reshape(AHEAD, -1) if FORK else np.empty((AHEAD, 0), np.uint8)
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(make, slots, theirs, worker, number, os.getpid()), daemon=True)
            process.start()
            theirs.close()  # so that it is the worker's alone, and this process reads its end when the worker dies
            processes.append(process)
            self.pipes.append(ours)
            self.slots.append(slots)

    def map(self, items: Iterable[Any]) -> Iterator[Made]:
        """Yield the results of `make` for the items, in order; read it to its end.

        Args:
            items: each worker gets all of them and takes its share, so they should be small when pickled.

        Raises:
            ConfigError: `make` has raised it.
            RuntimeError: `make` has raised something else, or a worker was killed.
        """
        if not self.pipes:
            yield from map(self.make, items)
            return
        for pipe in self.pipes:
            send(pipe, items)
        for i in count():
            worker = i % len(self.pipes)
            answer = receive(self.pipes[worker])
            if answer is None:  # the end, which every worker sends
                for later in range(i + 1, i + len(self.pipes)):
                    receive(self.pipes[later % len(self.pipes)])
                return
            pixels, others = answer
            if isinstance(pixels, tuple):  # their shape; they themselves are in shared memory
                slot = self.slots[worker][i // len(self.pipes) % AHEAD]
                pixels = slot[: math.prod(pixels)].reshape(pixels).copy()
            send(self.pipes[worker], "free")
            yield pixels, others


def end(processes: Iterable[BaseProcess]) -> None:
    """Kill workers: they ignore all other signals, and may wait for a file system that does not answer."""
    for process in processes:
        process.kill()


def send(pipe: Connection, message: Any) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # the worker has died; `receive` says so
        pipe.send(message)


def receive(pipe: Connection) -> Any:
    """Receive a worker's message, and raise its error.

    Raises:
        ConfigError, RuntimeError: the worker's error.
    """
    try:
        answer = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise RuntimeError(
            "data.num_workers: a process that loads images was killed; out of memory? Fix: fewer, or a smaller "
            "data.batch_size"
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


# In a worker's process.


def work(
    make: Callable[[Any], Made], slots: NDArray[np.uint8], pipe: Connection, worker: int, workers: int, run: int
) -> None:
    """Process this worker's share of all items: every `workers`th, from the `worker`th on."""
    start_process(run)
    try:
        while True:
            share = islice(pipe.recv(), worker, None, workers)
            made = 0
            for pixels, others in map(make, share):
                if made >= AHEAD:
                    pipe.recv()  # the slot is free again
                if pixels.nbytes <= slots.shape[1]:
                    slots[made % AHEAD, : pixels.size] = pixels.ravel()
                    pipe.send((pixels.shape, others))
                else:
                    pipe.send((pixels, others))
                made += 1
            pipe.send(None)
            for _ in range(min(AHEAD, made)):
                pipe.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the run has ended
    except ConfigError as error:
        pipe.send(error)
    except Exception as error:
        wrapped = RuntimeError(f"{type(error).__name__}: {first_line(error)}")
        wrapped.add_note(traceback.format_exc())
        pipe.send(wrapped)


def start_process(run: int) -> None:
    """Ignore the signals that a terminal and Slurm send to all of a run's processes: the run ends its workers itself.

    Die with a run that is killed: a worker that outlives it would keep it locked.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if FORK:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != run:  # it has died in between
            os._exit(1)
    torch.set_num_threads(1)
