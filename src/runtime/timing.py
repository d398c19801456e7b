"""Time on the device."""

import time
from collections.abc import Callable

import torch

ROUND_SECONDS = 0.05
WARM_UP = 3  # steps: compilation, cuDNN's choice, CUDA graphs


def timed(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Seconds that so many steps take on the device, launched one after the other."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(steps):
            step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - started


def seconds_of(step: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """Seconds that a step takes at its fastest, once warm; a round is many steps, so that none waits for its launch."""
    for _ in range(WARM_UP):
        step()
    steps = steps_within(ROUND_SECONDS, step, device)
    return min(timed(step, steps, device) / steps for _ in range(rounds))


def steps_within(seconds: float, step: Callable[[], object], device: torch.device) -> int:
    """About how many steps fit into so many seconds, at least one."""
    return max(1, round(seconds / timed(step, 1, device)))
