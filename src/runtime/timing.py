"""Time on the device."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

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
    warm_up(step)
    steps = steps_within(ROUND_SECONDS, step, device)
    return min(timed(step, steps, device) / steps for _ in range(rounds))


def warm_up(step: Callable[[], object]) -> None:
    for _ in range(WARM_UP):
        step()


def steps_within(seconds: float, step: Callable[[], object], device: torch.device) -> int:
    """About how many steps fit into so many seconds, at least one."""
    return max(1, round(seconds / timed(step, 1, device)))


class Spans:
    """The device's time for the last spans of work; to note one does not wait for the device."""

    def __init__(self, device: torch.device, most: int = 50) -> None:
        self.device = device
        self.marks: deque[tuple[Any, Any]] = deque(maxlen=most)

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
        """Wait for the device, and take the median, which the first span's compilation does not change."""
        if self.device.type != "cuda":
            return median(end - start for start, end in self.marks)
        torch.cuda.synchronize(self.device)
        return median(start.elapsed_time(end) / 1000 for start, end in self.marks)
