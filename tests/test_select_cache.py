"""Tests of the cache of measurements: used by later runs of the same layer, and safe for simultaneous ones."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Train
from timed_backends import TIMES, Clock, layer, selected
from training import measurements, run
from training.layer import Layer
from training.measurements import Measurement, cache_file, cached_measurements
from training.selection import Selection, select


@pytest.mark.slow
def test_measurement_is_known_to_later_runs_of_the_same_layer(clock: Clock) -> None:
    everything = TIMES.keys()
    assert clock.measured(selected) == everything
    same = ("model.depth=3", "optimizer.lr=0.1", "trainer.compile_mode=default", "model.pretrained=convmixer_768_32")
    assert clock.measured(lambda: selected(*same)) == set()
    for other in ("model.d_model=9", "model.kernel_size=5", "model.activation=gelu", "trainer.precision=bf16",
                  "trainer.freeze=depthwise", "trainer.checkpoint_activations=true"):  # fmt: skip
        assert clock.measured(partial(selected, other)) == everything
    assert clock.measured(lambda: selected(batch=5)) == clock.measured(lambda: selected(size=(8, 6))) == everything
    assert clock.measured(selected) == set()


@pytest.mark.parametrize(
    "text",
    [
        '{"cut', "[]", "3", '{"backends": []}', '{"backends": {"stacked NCHW": 1}}', "[" * 100_000,
        '{"backends": {"stacked NCHW": {"milliseconds": NaN, "error": 0.0, "reason": null}}}',
        '{"backends": {"stacked NCHW": {"milliseconds": -1.0, "error": 0.0, "reason": null}}}',
        '{"backends": {"stacked NCHW": {"milliseconds": "1", "error": 0.0, "reason": null}}}',
        '{"backends": {"stacked NCHW": {"milliseconds": 1e400, "error": 0.0, "reason": null}}}',
        '{"backends": {"stacked NCHW": {"milliseconds": null, "error": [], "reason": "wrong"}}}',
        '{"backends": {"stacked NCHW": {"milliseconds": 1.0, "error": 0.0, "reason": null, "retry": false}}}',
        b"\xff\xfe\x00",
    ],
    ids=range(13),
)  # fmt: skip
def test_damaged_cache_is_measured_again(clock: Clock, text: str | bytes) -> None:
    path = cache_file(layer())
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert clock.measured(selected) == TIMES.keys()
    assert clock.measured(selected) == set()
    assert json.loads(path.read_text())["backends"].keys() == TIMES.keys()


def test_cache_depends_on_all_code_that_measures_or_reads_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = [f"training/{name}.py" for name in ("layer", "measurements", "model", "selection")]
    files += ["ops/depthwise.py", "ops/depthwise_banded.py", "runtime/timing.py", "LLMConvMixer.py"]
    monkeypatch.setattr(measurements, "SRC", tmp_path)
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("1")
    names = {cache_file(layer())}
    for file in files:
        (tmp_path / file).write_text("2")
        names.add(cache_file(layer()))
    assert len(names) == len(files) + 1


def test_without_a_cache_every_run_measures(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    for _ in range(2):
        assert clock.measured(selected) == TIMES.keys()
    assert "/dev/null" in caplog.text


def test_uneven_rounds_choose_but_are_not_kept(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    steady = clock.spend

    def busy(name: str, x: Tensor) -> None:
        steady(name, x)
        clock.milliseconds = {name: time * 1.01 for name, time in clock.milliseconds.items()}

    clock.spend = busy  # type: ignore[method-assign]
    assert selected().milliseconds.keys() == TIMES.keys()
    assert "busy" in caplog.text
    clock.spend, clock.milliseconds = steady, dict(TIMES)  # type: ignore[method-assign]
    assert clock.measured(selected) == TIMES.keys()
    assert clock.measured(selected) == set()


@pytest.mark.slow
@pytest.mark.parametrize(("claimed", "is_dropped"), [(1e-6, True), (1e9, False)])
def test_measurement_that_the_first_epoch_contradicts_is_dropped(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, train: Train, claimed: float, is_dropped: bool
) -> None:
    files: list[Path] = []

    def claim(measured: Layer, *arguments: Any) -> Selection:
        files.append(cache_file(measured))
        with cached_measurements(measured) as cache:
            cache.by_backend = {name: Measurement(claimed, 0.0) for name in TIMES}
        return select(measured, *arguments)

    monkeypatch.setattr(run, "select", claim)
    done = train("data.batch_size=8", "trainer.epochs=2")
    lines = [line for line in (done.folder / "train.log").read_text().splitlines() if "times as long" in line]
    assert len(lines) == is_dropped
    assert files[0].exists() != is_dropped


# Locks.


def test_layers_that_differ_do_not_wait_for_each_other(clock: Clock) -> None:
    with cached_measurements(layer()):
        other = Thread(target=selected, args=["model.kernel_size=5"], daemon=True)
        other.start()
        other.join(60)
        assert not other.is_alive()


def test_same_layer_on_one_gpu_is_measured_once(clock: Clock) -> None:
    with cached_measurements(layer()) as cache:
        other = Thread(target=selected, daemon=True)
        other.start()
        other.join(0.5)
        assert other.is_alive()
        cache.by_backend = {name: Measurement(time, 0.0) for name, time in TIMES.items()}
    other.join(60)
    assert clock.computed == []


def test_gpus_measure_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [replace(layer(), device=torch.device("cuda", index)) for index in (0, 1)]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=device.index))
    with cached_measurements(gpus[0]) as first, cached_measurements(gpus[1]) as second:
        assert first.attempts != second.attempts
    assert cache_file(gpus[0]) == cache_file(gpus[1])
