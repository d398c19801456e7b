"""One run on several GPUs: the processes that torchrun or Slurm started for it, and what they tell each other.

Every process trains on its share of each batch and keeps the same weights; the first one alone writes.
"""

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Team:
    """The processes of a run; `rank` is this one's number, from 0."""

    rank: int = 0
    size: int = 1

    def tell(self, value: Any) -> Any:
        """The first process's value, on all."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def highest(self, number: int) -> int:
        """The highest of all processes' numbers."""
        if self.size == 1:
            return number
        numbers = torch.tensor(number)
        distributed.all_reduce(numbers, op=distributed.ReduceOp.MAX)
        return int(numbers)

    def add_up(self, *tensors: Tensor) -> None:
        """Sum each over the processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def share_buffers(self, model: torch.nn.Module) -> None:
        """Give all processes the first one's buffers: BatchNorm's statistics."""
        if self.size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)


@cache
def join() -> Team:
    """Meet the other processes, if there are any."""
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "WORLD_SIZE" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export()
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return Team()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return Team(distributed.get_rank(), size)
