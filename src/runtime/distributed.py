"""Distributed training: one run in several processes (ranks) started by torchrun or Slurm.

Each rank trains on its share of every batch, and all keep the same weights. Only rank 0 writes files.
"""

import atexit
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class World:
    """The ranks of a run and their communication.

    Attributes:
        rank: This process's number, from 0.
        size: The number of ranks. With 1, all methods return without communication.
    """

    rank: int = 0
    size: int = 1

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on all ranks."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait until all ranks have called it."""
        self.broadcast(None)

    def all_reduce_max(self, *numbers: int) -> list[int]:
        """Return the maximum over the ranks of each number."""
        if self.size == 1:
            return list(numbers)
        highest = torch.tensor(numbers)
        distributed.all_reduce(highest, op=distributed.ReduceOp.MAX)
        return highest.tolist()

    def all_reduce_sum(self, *tensors: Tensor) -> None:
        """Sum each tensor over the ranks, in place."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy rank 0's buffers, i.e. BatchNorm's statistics, to all ranks."""
        if self.size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)


@cache
def init_distributed() -> World:
    """Join the process group if the run has several ranks."""
    started_by_submitit = "SUBMITIT_EXECUTOR" in os.environ  # tasks of an interactive allocation are not ranks
    if started_by_submitit and int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "WORLD_SIZE" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        # CUDA_VISIBLE_DEVICES stays as set by Slurm; runtime/device.py selects the rank's GPU.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return World()
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(distributed.destroy_process_group)
    return World(distributed.get_rank(), size)


def leave_at_once() -> None:
    """Skip process-group teardown: other ranks may wait in a collective that this rank never joins."""
    atexit.unregister(distributed.destroy_process_group)
