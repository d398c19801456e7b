"""Tests of the selection of a backend: measured only if it is left open and worth the time."""

import functools

import pytest
import torch

from config.errors import ConfigError
from runtime.distributed import World
from timed_backends import NHWC, STACKED, TIMES, Clock, layer, selected
from training import selection
from training.layer import CUDA_GRAPHS, REFERENCE, Backend
from training.measurements import Measurement, cached_measurements
from training.selection import select


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fastest_backend_is_taken(clock: Clock, precision: str) -> None:
    selection = selected(f"trainer.precision={precision}")
    assert selection.backend == STACKED
    assert selection.milliseconds == pytest.approx(TIMES)
    clock.milliseconds["reference NHWC"] = 0.1
    assert selected(f"trainer.precision={precision}", "model.kernel_size=5").backend == NHWC


def test_check_in_float64_takes_few_images_timing_all(clock: Clock) -> None:
    selected(batch=128)
    assert {images for _, images, dtype in clock.computed if dtype == torch.float64} == {32}
    assert {images for name, images, _ in clock.computed if name == "stacked NCHW"} == {128}
    assert layer(batch=37).distinct_images == 32  # which do not divide the batch
    assert layer(batch=100).distinct_images == 25
    assert layer(batch=5).distinct_images == 5
    assert layer("model.d_model=1536", "model.patch_size=1", batch=64, size=(64, 64)).distinct_images == 8


def test_frozen_weights_have_no_gradient_in_a_measurement(clock: Clock) -> None:
    frozen, all_trained = (layer(f"trainer.freeze={which}") for which in ("depthwise", "none"))
    assert len(all_trained.step(REFERENCE, 4)()) - len(frozen.step(REFERENCE, 4)()) == 2


# What is set, what cannot be had, what is not worth measuring.


def test_set_backend_is_not_measured(clock: Clock) -> None:
    assert selected("model.backend=stacked").backend == STACKED
    assert selected("model.backend=reference", "trainer.channels_last=true").backend == NHWC
    assert selected("model.backend=stacked", "trainer.channels_last=true").backend == Backend("stacked", True)
    assert clock.computed == []
    assert clock.measured(lambda: selected("model.backend=reference")) == {"reference NCHW", "reference NHWC"}
    assert clock.measured(lambda: selected("trainer.channels_last=false")) >= {"stacked NCHW"}
    assert clock.measured(selected) == set()


@pytest.mark.parametrize("interpreted", ["0", "1"])
def test_set_backend_that_cannot_be_had_is_one_error(monkeypatch: pytest.MonkeyPatch, interpreted: str) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)
    kernel_size = 33 if interpreted == "1" else 3
    with pytest.raises(ConfigError, match=r"model\.backend=banded: .*Fix: "):
        selected("model.backend=banded", f"model.kernel_size={kernel_size}")


def test_run_shorter_than_measuring_does_not_measure(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    selection.SECONDS[False] = 5
    assert clock.measured(lambda: selected(passes=10)) <= {"reference NCHW"}
    assert selected(passes=10).backend == REFERENCE
    assert "15 s" in caplog.text
    caplog.clear()
    clock.spend = lambda *_: pytest.fail("computes before it announces")  # type: ignore[method-assign]
    with pytest.raises(pytest.fail.Exception):
        selected()
    assert "15 s" in caplog.text
    clock.spend = functools.partial(Clock.spend, clock)  # type: ignore[method-assign]
    assert selected(passes=1e6).backend == STACKED
    assert clock.measured(lambda: selected(passes=10)) == set()
    assert selected(passes=10).backend == STACKED  # known from another run


@pytest.mark.parametrize(
    ("overrides", "is_open"),
    [
        ([], False),
        (["trainer.compile=true"], True),
        (["trainer.compile=true", "trainer.accumulation_steps=2"], False),
        (["trainer.compile=true", "trainer.compile_mode=default"], False),
    ],
)
def test_cuda_graphs_are_a_candidate_where_the_mode_is_open(clock: Clock, overrides: list[str], is_open: bool) -> None:
    compiled = layer(*overrides)
    graphs = STACKED._replace(compile_mode=CUDA_GRAPHS)
    with cached_measurements(compiled) as cache:
        cache.by_backend = {name: Measurement(time, 0.0) for name, time in TIMES.items()}
        cache.by_backend[str(graphs)] = Measurement(0.5, 0.0)
    selection = select(compiled, World())
    assert selection.backend == (graphs if is_open else STACKED)
    assert selection.config.trainer.compile_mode == (CUDA_GRAPHS if is_open else "default")
    assert clock.computed == []
