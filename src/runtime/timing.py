"""Timing of computations on the device."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

MOST_SPANS = 50
WARM_UP = 3  # steps, for compilation, cuDNN's algorithm search and CUDA graphs


def timed(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Measure the device's seconds for a number of steps, launched without waiting between them."""
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


def warm_up(step: Callable[[], object]) -> None:
    for _ in range(WARM_UP):
        step()


def steps_within(seconds: float, step: Callable[[], object], device: torch.device) -> int:
    """Estimate the number of steps that fit into a time, at least one."""
    return max(1, round(seconds / timed(step, 1, device)))


class Spans:
    """The device times of the last spans of work, recorded without synchronization."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: deque[tuple[Any, Any]] = deque(maxlen=MOST_SPANS)

    @contextmanager
    def note(self) -> Iterator[None]:
        start = self.mark()
        yield
        self.marks.append((start, self.mark()))

    def mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def median_seconds(self) -> float:
        """Synchronize the device and return the median, which a slow first span hardly changes."""
        if self.device.type != "cuda":
            return median(end - start for start, end in self.marks)
        torch.cuda.synchronize(self.device)
        return median(start.elapsed_time(end) / 1000 for start, end in self.marks)
