"""Backends that take time on a simulated clock, and the layer that they compute, on the CPU."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import checked
from ops import depthwise, depthwise_reference, depthwise_stacked
from runtime import timing
from runtime.distributed import World
from training import selection
from training.layer import REFERENCE, Backend, Layer
from training.selection import Selection, select

CPU = torch.device("cpu")
NHWC, STACKED = Backend("reference", True), Backend("stacked", False)
SETTING = ("model.d_model=8", "model.kernel_size=3", "model.patch_size=2")
TIMES = {"reference NCHW": 3.0, "reference NHWC": 2.0, "stacked NCHW": 1.0}
Computation = Callable[..., Tensor]


class Clock:
    """A clock with the seconds of each backend's convolution; `computed` holds the shapes and types of its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.milliseconds = dict(TIMES)
        self.computed: list[tuple[str, int, torch.dtype]] = []
        self.stacked: Computation = depthwise_stacked.convolution
        self.measuring = False
        convolution = depthwise_reference.convolution

        def reference(x: Tensor, *rest: Any) -> Tensor:
            self.spend(f"reference {'NHWC' if x.stride(1) == 1 else 'NCHW'}", x)
            return convolution(x, *rest)

        def stacked(x: Tensor, *rest: Any) -> Tensor:
            self.spend("stacked NCHW", x)
            return self.stacked(x, *rest)

        def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
            return convolution(dy, weight.flip(2, 3))

        monkeypatch.setattr(depthwise_reference, "convolution", reference)
        injected = SimpleNamespace(
            convolution=stacked, input_gradient=input_gradient, weight_gradient=depthwise_stacked.weight_gradient
        )
        monkeypatch.setitem(depthwise.IMPLEMENTATION, "stacked", injected)
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def spend(self, name: str, x: Tensor) -> None:
        self.now += self.milliseconds[name] / 1000
        self.computed.append((name, len(x), x.dtype))

    def measured(self, select: Callable[[], object]) -> set[str]:
        """Return the backends that a selection measures on its whole batch, except the reference."""
        self.computed.clear()
        select()
        names = [name for name, _, _ in self.computed]
        return {name for name in names if names.count(name) > 7}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clock]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(selection.CANDIDATES, "cpu", [REFERENCE, NHWC, STACKED])
    monkeypatch.setattr(selection, "free_memory", lambda: None)  # takes a second
    monkeypatch.setattr(selection, "ROUND_SECONDS", 0.001)
    monkeypatch.setitem(selection.SECONDS, False, 0)  # every run is long enough
    clock = Clock(monkeypatch)
    measure = selection.measure

    def note(*arguments: Any) -> Any:
        clock.measuring = True
        try:
            return measure(*arguments)
        finally:
            clock.measuring = False

    monkeypatch.setattr(selection, "measure", note)
    yield clock


def layer(*overrides: str, batch: int = 4, size: tuple[int, int] = (6, 6), passes: float = math.inf) -> Layer:
    return Layer(checked(*SETTING, *overrides), (batch, 3, *size), CPU, passes)


def selected(*overrides: str, **options: Any) -> Selection:
    return select(layer(*overrides, **options), World())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "WARNING"]
