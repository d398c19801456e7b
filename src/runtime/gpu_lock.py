"""Assigns each process a GPU, shared with whatever other processes of this code run on the machine."""

import itertools
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

held: list[FileLock] = []  # let go by the system when the process ends, however it ends


@cache
def assign_gpu() -> int:
    """The index of a GPU that no more processes have than any other; it stays this process's own."""
    import torch

    gpus = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    return lock_gpu(gpus, Path(tempfile.gettempdir()) / f"convmixer-gpus-{os.getuid()}")


def lock_gpu(gpus: Sequence[str], folder: Path) -> int:
    """The index of the GPU that was claimed: the first that is free, else the first with one process, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for place in itertools.count():
        for index, gpu in enumerate(gpus):
            lock = FileLock(folder / f"{gpu}-{place}.lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            held.append(lock)
            return index
    raise AssertionError("unreachable")
