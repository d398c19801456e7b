"""Worker processes that make batches ahead, and return them in order.

PyTorch's workers use /dev/shm and sockets in TMPDIR, hang if either is too small, and can outlive an error. These
workers pass pixels through memory that is shared by the fork, and everything else through pipes.
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

AHEAD = 2  # the most finished batches of each worker
PR_SET_PDEATHSIG = 1  # the constant in Linux' <sys/prctl.h>
FORK = sys.platform == "linux"  # On other systems workers are spawned and share no memory.

Batch = tuple[Any, Any]  # pixels, an array of uint8, and their labels


class Workers:
    """Processes that make batches of items; they end with this object, or with the process that owns it.

    Args:
        make: Makes the batch of an item.
        number: The number of processes; with 0 this process makes the batches.
        max_bytes: Bytes of a batch's pixels that fit in shared memory; larger batches pass through the pipe.
    """

    def __init__(self, make: Callable[[Any], Batch], number: int, max_bytes: int) -> None:
        context = multiprocessing.get_context("fork" if FORK else None)
        self.make = make
        self.pipes: list[Connection] = []
        self.slots: list[NDArray[np.uint8]] = []  # each worker's shared memory, [AHEAD, max_bytes]
        processes: list[BaseProcess] = []
        # At exit this comes before multiprocessing waits for the processes.
        self.stop = Finalize(self, kill_workers, (processes,), exitpriority=1)
        for worker in range(number):
            memory = mmap.mmap(-1, AHEAD * max_bytes) if FORK else b""
            slots = np.frombuffer(memory, np.uint8).reshape(AHEAD, -1) if FORK else np.empty((AHEAD, 0), np.uint8)
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(make, slots, theirs, worker, number, os.getpid()), daemon=True)
            process.start()
            theirs.close()  # Only the worker holds this end; when it dies, reading the other end fails.
            processes.append(process)
            self.pipes.append(ours)
            self.slots.append(slots)

    def map(self, items: Iterable[Any]) -> Iterator[Batch]:
        """Yield the batches of the items in order; the iterator must be read to its end.

        Args:
            items: Specifications of the batches. Each worker gets all of them, so they should be small when pickled.

        Raises:
            ConfigError: `make` raised it.
            RuntimeError: `make` raised another error, or a worker was killed.
        """
        if not self.pipes:
            yield from map(self.make, items)
            return
        for pipe in self.pipes:
            send(pipe, items)
        for i in count():
            worker = i % len(self.pipes)
            answer = receive(self.pipes[worker])
            if answer is None:  # Every worker sends None after its last batch.
                for later in range(i + 1, i + len(self.pipes)):
                    receive(self.pipes[later % len(self.pipes)])
                return
            pixels, others = answer
            if isinstance(pixels, tuple):  # This is the shape; the pixels are in shared memory.
                slot = self.slots[worker][i // len(self.pipes) % AHEAD]
                pixels = slot[: math.prod(pixels)].reshape(pixels).copy()
            send(self.pipes[worker], "free")
            yield pixels, others


def kill_workers(processes: Iterable[BaseProcess]) -> None:
    """Kill workers, as they ignore all other signals and may be waiting for a file system."""
    for process in processes:
        process.kill()


def send(pipe: Connection, message: Any) -> None:
    """Send a message to a worker."""
    with suppress(BrokenPipeError, ConnectionResetError):  # `receive` raises an error if the worker has died.
        pipe.send(message)


def receive(pipe: Connection) -> Any:
    """Receive a worker's message, and raise its error.

    Raises:
        ConfigError: The worker raised it.
        RuntimeError: The worker raised another error, or was killed.
    """
    try:
        answer = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise RuntimeError(
            "data.num_workers: a process that loads images was killed; out of memory? Fix: fewer workers, or a smaller "
            "data.batch_size"
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


# The functions below run in a worker's process.


def work(
    make: Callable[[Any], Batch], slots: NDArray[np.uint8], pipe: Connection, worker: int, workers: int, parent: int
) -> None:
    """Make the batches of a worker's share of items: every `workers`th, starting with number `worker`."""
    prepare_worker(parent)
    try:
        while True:
            share = islice(pipe.recv(), worker, None, workers)
            batches = 0
            for pixels, others in map(make, share):
                if batches >= AHEAD:
                    pipe.recv()  # The slot is free again.
                if pixels.nbytes <= slots.shape[1]:
                    slots[batches % AHEAD, : pixels.size] = pixels.ravel()
                    pipe.send((pixels.shape, others))
                else:
                    pipe.send((pixels, others))
                batches += 1
            pipe.send(None)
            for _ in range(min(AHEAD, batches)):
                pipe.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # The run has ended.
    except ConfigError as error:
        pipe.send(error)
    except Exception as error:
        wrapped = RuntimeError(f"{type(error).__name__}: {first_line(error)}")
        wrapped.add_note(traceback.format_exc())
        pipe.send(wrapped)


def prepare_worker(parent: int) -> None:
    """Ignore signals, end with the process `parent`, and compute with one thread.

    A terminal and Slurm send signals to all processes of a run, which ends its workers itself. A worker that outlives
    its run would keep the run locked.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if FORK:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # The run has died since the fork.
            os._exit(1)
    torch.set_num_threads(1)
