"""One run in several processes, its ranks, that torchrun or Slurm started, and what they exchange.

Every rank trains on its share of each batch and keeps the same weights; rank 0 alone writes.
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
    """The processes of a run: `size` of them, this one being number `rank`, from 0. Alone, it exchanges nothing."""

    rank: int = 0
    size: int = 1

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        self.broadcast(None)

    def all_reduce_max(self, *numbers: int) -> list[int]:
        """Of each number the highest that any rank has."""
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
        """Give all ranks rank 0's buffers: BatchNorm's statistics."""
        if self.size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)


@cache
def init_distributed() -> World:
    """Meet the other ranks, if there are any."""
    started_by_submitit = "SUBMITIT_EXECUTOR" in os.environ  # and not by hand, in an allocation of several tasks
    if started_by_submitit and int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "WORLD_SIZE" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        # CUDA_VISIBLE_DEVICES stays as Slurm has set it; runtime/device.py takes the rank's GPU among them.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return World()
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(distributed.destroy_process_group)
    return World(distributed.get_rank(), size)


def leave_at_once() -> None:
    """End without a word to the other ranks, which may be waiting in an exchange that this rank will never join."""
    atexit.unregister(distributed.destroy_process_group)
