"""Where the backend is left open, the fastest correct one is taken. Measured here on the CPU, with backends whose time
passes on a clock of the test's own."""

import functools
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from config.errors import ConfigError
from conftest import Train, checked, command, summaries
from data.batches import DistributedBatchSampler
from data.splits import DataSplits, Split
from ops import depthwise, depthwise_reference, depthwise_stacked
from processes import REPOSITORY
from runtime import timing
from runtime.distributed import World
from test_resume import configured, signal_at_step
from training import measurements, run, selection
from training.layer import CUDA_GRAPHS, REFERENCE, Backend, Layer
from training.measurements import Measurement, cache_file, cached_measurements
from training.model import make_model
from training.selection import Selection, select
from training.state import TrainingState
from training.step import TrainStep

CPU = torch.device("cpu")
NHWC, STACKED = Backend("reference", True), Backend("stacked", False)
SETTING = ("model.d_model=8", "model.kernel_size=3", "model.patch_size=2")
TIMES = {"reference NCHW": 3.0, "reference NHWC": 2.0, "stacked NCHW": 1.0}
Computation = Callable[..., Tensor]


class Clock:
    """Seconds of each backend's convolution; `computed` are the shapes and types that it was asked for."""

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
        """The backends that a selection tries on its whole batch, except the reference that it compares with."""
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fastest_backend_is_taken(clock: Clock, precision: str) -> None:
    found = selected(f"trainer.precision={precision}")
    assert found.backend == STACKED
    assert found.milliseconds == pytest.approx(TIMES)
    clock.milliseconds["reference NHWC"] = 0.1
    assert selected(f"trainer.precision={precision}", "model.kernel_size=5").backend == NHWC


# The check.


def test_check_in_float64_takes_few_images_timing_all(clock: Clock) -> None:
    selected(batch=128)
    assert {images for _, images, dtype in clock.computed if dtype == torch.float64} == {32}
    assert {images for name, images, _ in clock.computed if name == "stacked NCHW"} == {128}
    assert layer(batch=37).distinct_images == 32  # which do not divide the batch
    assert layer(batch=100).distinct_images == 25
    assert layer(batch=5).distinct_images == 5
    assert layer("model.d_model=1536", "model.patch_size=1", batch=64, size=(64, 64)).distinct_images == 8


def wrong(x: Tensor, *rest: Any) -> Tensor:
    return torch.zeros_like(x)


def wrong_at_the_end(x: Tensor, *rest: Any) -> Tensor:
    y = depthwise_stacked.convolution(x, *rest)
    return torch.cat([y[:-1], 0 * y[-1:]])


def not_a_number(x: Tensor, *rest: Any) -> Tensor:
    return torch.full_like(x, torch.nan)


@pytest.mark.parametrize("batch", [4, 128, 37])
@pytest.mark.parametrize("computation", [wrong, wrong_at_the_end, not_a_number])
def test_wrong_backend_is_left_out_with_one_warning(
    clock: Clock, caplog: pytest.LogCaptureFixture, computation: Computation, batch: int
) -> None:
    clock.stacked = computation
    assert selected(batch=batch).backend == selected(batch=batch).backend == NHWC
    (warning,) = warnings(caplog)
    assert "stacked NCHW" in warning


# What is remembered.


def out_of_memory(*_: Any) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def no_space(*_: Any) -> Tensor:
    raise OSError(28, "No space left on device")


def compiled_by_cc(x: Tensor, *rest: Any) -> Tensor:
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-x", "c", "-E", "-"], input=b"int one;", stdout=subprocess.DEVNULL, check=True)
    return depthwise_stacked.convolution(x, *rest)


@pytest.mark.parametrize("computation", [out_of_memory, no_space, compiled_by_cc])
def test_backend_is_tried_again_after_an_error_that_passes(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, computation: Computation
) -> None:
    clock.stacked = computation
    with monkeypatch.context() as context:
        context.setenv("CC", "/nonexistent/cc")
        assert selected().backend == NHWC
        assert selected().backend == NHWC
    assert len([text for text in warnings(caplog) if "stacked NCHW" in text]) == 2
    if computation is not compiled_by_cc:
        clock.stacked = depthwise_stacked.convolution
    found = selected()
    assert found.backend == STACKED
    assert found.milliseconds == pytest.approx(TIMES)
    assert clock.measured(selected) == set()


def test_nothing_is_remembered_where_the_reference_fails_too(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock.stacked = wrong
    with monkeypatch.context() as context:
        context.setattr(depthwise_reference, "convolution", out_of_memory)
        found = selected()
    assert (found.backend, found.milliseconds) == (REFERENCE, {})
    assert "CUDA out of memory" in caplog.text
    clock.stacked = depthwise_stacked.convolution
    assert selected().backend == STACKED


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


def test_measurement_is_known_to_later_runs_of_the_same_layer(clock: Clock) -> None:
    everything = TIMES.keys()
    assert clock.measured(selected) == everything
    same = ("model.depth=3", "optimizer.lr=0.1", "trainer.compile_mode=default", "model.pretrained=convmixer_768_32")
    assert clock.measured(lambda: selected(*same)) == set()
    for other in ("model.d_model=9", "model.kernel_size=5", "model.activation=gelu", "trainer.precision=bf16",
                  "trainer.freeze=depthwise", "trainer.checkpoint_activations=true"):  # fmt: skip
        assert clock.measured(lambda other=other: selected(other)) == everything
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


# Backends that end their process.

SCRIPT = """
import os, runpy, signal, sys
from types import SimpleNamespace
from ops import depthwise, depthwise_stacked
from training import selection
from training.layer import REFERENCE, Backend

def convolution(x, *rest):
    {end}
    return depthwise_stacked.convolution(x, *rest)

depthwise.IMPLEMENTATION["stacked"] = SimpleNamespace(**{{**vars(depthwise_stacked), "convolution": convolution}})
selection.CANDIDATES["cpu"] = [REFERENCE, Backend("stacked", False)]
selection.SECONDS[False] = 0
runpy.run_path({train!r}, run_name="__main__")
"""
TINY = (*SETTING, "model.depth=1", "trainer.epochs=1", "data.train_fraction=0.1", "trainer.device=cpu",
        "trainer.figures=false", "sweep=s")  # fmt: skip


def trained(folder: Path, end: str, *overrides: str) -> tuple[int | None, str, dict[str, Any]]:
    """The exit code, the output and the summary of a run in whose process `stacked` begins with some code."""
    script = folder / "script"
    script.with_suffix(".py").write_text(SCRIPT.format(end=end, train=str(REPOSITORY / "src" / "train.py")))
    environment = {"XDG_CACHE_HOME": str(folder / "cache"), "WANDB_MODE": "disabled"}
    done = command(*TINY, *overrides, cwd=folder, script=str(script), **environment)
    newest = max((folder / "outputs" / "s").glob("*/summary.json"), key=lambda path: path.stat().st_mtime)
    return done.returncode, done.stdout + done.stderr, json.loads(newest.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("end", ["os.abort()", "os._exit(0)"])
def test_backend_that_ends_its_process_is_tried_once(tmp_path: Path, end: str) -> None:
    _, _, summary = trained(tmp_path, end)
    assert summary["status"] == "interrupted"
    for other in ("seed=0", "model.kernel_size=5"):
        code, output, summary = trained(tmp_path, end, other)
        assert (code, summary["status"], summary["backend"]) == (0, "completed", "reference"), output
        assert output.count("stacked NCHW: ended its process") == 1


@pytest.mark.slow
def test_signal_while_measuring_ends_the_run_and_blames_no_backend(tmp_path: Path) -> None:
    code, output, summary = trained(tmp_path, "os.kill(os.getpid(), signal.SIGTERM)")
    assert (code, summary["status"]) == (143, "interrupted"), output
    _, output, summary = trained(tmp_path, "pass")
    assert {"reference NCHW", "stacked NCHW"} == summary["layer_milliseconds"].keys(), output


def test_backend_that_another_process_tries_is_not_left_out(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    selected()
    attempt = cache_file(layer()).with_name("another.cpu.attempt")
    attempt.write_text("stacked NCHW")
    with FileLock(attempt.with_suffix(".lock")):
        assert selected("model.kernel_size=5").backend == STACKED
    assert selected("model.kernel_size=5").backend == NHWC  # that process has died
    (warning,) = warnings(caplog)
    Path(warning.partition("delete ")[2]).unlink()
    assert selected("model.kernel_size=5").backend == STACKED


def broken(*_: Any) -> Tensor:
    raise RuntimeError("an illegal memory access was encountered")


def test_backend_that_costs_the_gpu_ends_the_run_and_is_not_tried_again(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.stacked = broken
    with monkeypatch.context() as lost, pytest.raises(RuntimeError, match="stacked NCHW"):
        for module in (selection, measurements):
            lost.setattr(module, "is_gpu_lost", lambda: True)
        selected()
    assert clock.measured(selected) == {"reference NCHW", "reference NHWC"}
    assert clock.measured(selected) == set()


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
    found = select(compiled, World())
    assert found.backend == (graphs if is_open else STACKED)
    assert found.config.trainer.compile_mode == (CUDA_GRAPHS if is_open else "default")
    assert clock.computed == []


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


# A run.


class SecondRank(World):
    def broadcast(self, value: object) -> object:
        assert value is None
        return STACKED, {}


def test_all_ranks_take_what_the_first_has_measured(clock: Clock) -> None:
    assert select(layer(), SecondRank(1, 2)).backend == STACKED
    assert clock.computed == []


def test_selected_backend_trains_as_if_it_were_set(clock: Clock, train: Train) -> None:
    measured = train("trainer.epochs=1", "dropout=all", "dropout.rate=0.1")
    assert (measured.summary["backend"], measured.summary["channels_last"]) == ("stacked", False)
    assert measured.summary["layer_milliseconds"] == pytest.approx(TIMES)
    assert "stacked NCHW 1.00 ms" in (measured.folder / "train.log").read_text()
    assert (measured.config["model"]["backend"], measured.config["trainer"]["channels_last"]) == ("auto", "auto")
    chosen = train(
        "trainer.epochs=1", "dropout=all", "dropout.rate=0.1", "model.backend=stacked", "trainer.channels_last=false"
    )
    assert chosen.folder.name.rpartition("-")[2] == measured.folder.name.rpartition("-")[2]
    losses = [done.metrics[["train/loss", "val/loss"]].to_numpy().tolist() for done in (measured, chosen)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("fails", ["last batch", "evaluation", "whole batch"])
def test_backend_that_fails_with_the_runs_network_is_replaced(clock: Clock, train: Train, fails: str) -> None:
    def convolution(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        whole = len(x) == 64
        kinds = {"last batch": not whole, "evaluation": not torch.is_grad_enabled(), "whole batch": len(weight) == 16}
        in_a_run = len(weight) == 16 and not clock.measuring
        if in_a_run and kinds[fails]:
            raise RuntimeError("no kernel for this batch")
        return depthwise_stacked.convolution(x, weight, *rest)

    clock.stacked = convolution
    done = train("trainer.epochs=1", "data.train_fraction=0.2")
    assert done.summary["status"] == "completed", done.summary.get("error")
    assert (done.summary["backend"], done.summary["channels_last"]) == ("reference", True)
    (said,) = [line for line in (done.folder / "train.log").read_text().splitlines() if "no kernel for this" in line]
    assert "stacked NCHW" in said
    chosen = train(
        "trainer.epochs=1", "data.train_fraction=0.2", "model.backend=reference", "trainer.channels_last=true"
    )
    losses = [each.metrics[["train/loss", "val/loss"]].to_numpy().tolist() for each in (done, chosen)]
    assert losses[0] == losses[1]


def test_network_that_another_backend_computes_is_found(clock: Clock) -> None:
    measured = selected("model.depth=1", "data.batch_size=4")
    images = Split(np.zeros((10, 6, 6, 3), np.uint8), np.zeros(10, np.int64))
    data = DataSplits(images, None, images, list("abc"), 3, (6, 6), (0.5,) * 3, (0.5,) * 3)
    sampler = DistributedBatchSampler(10, 4, seed=0)
    for config, expected in ((measured.config, None), (NHWC.applied_to(measured.config), "reference")):
        state = TrainingState(make_model(config, 3, 10), config, World(), CPU, measured)
        error = TrainStep(state, data, whole_batch=4).rehearsal_error(sampler)
        assert (error is None) if expected is None else expected in str(error)


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


def test_frozen_weights_have_no_gradient_in_a_measurement(clock: Clock) -> None:
    frozen, all_trained = (layer(f"trainer.freeze={which}") for which in ("depthwise", "none"))
    assert len(all_trained.step(REFERENCE, 4)()) - len(frozen.step(REFERENCE, 4)()) == 2


# Resuming.


def test_resumed_run_keeps_its_backend(clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = configured(tmp_path, "data.batch_size=40")
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        signal_at_step(4, patched)
        run.run(config, [])
    (before,) = summaries(tmp_path / "s")
    clock.milliseconds["reference NCHW"] = 0.1
    shutil.rmtree(tmp_path / "cache")
    run.run(config, [])
    (after,) = summaries(tmp_path / "s")
    assert after["status"] == "completed"
    for key in ("backend", "channels_last", "layer_milliseconds"):
        assert after[key] == before[key]


@pytest.mark.parametrize(
    "changed",
    [{"device": "NVIDIA H200"}, {"backend": "fused"}, {"backend": []}, {"device": None, "extra": 1}],
    ids=["another GPU", "a backend of before", "damaged", "an older checkpoint"],
)
def test_resuming_elsewhere_chooses_again_and_says_so(
    clock: Clock, caplog: pytest.LogCaptureFixture, changed: dict[str, Any]
) -> None:
    before = Selection(layer(), NHWC, {"reference NHWC": 2.0}).state
    assert select(layer(), World(), before).milliseconds == {"reference NHWC": 2.0}
    assert select(layer(), World(), {**before, "layer_milliseconds": [1]}) == Selection(layer(), NHWC)
    assert warnings(caplog) == []
    assert select(layer(), World(), {**before, **changed}).backend == STACKED
    assert len(warnings(caplog)) == 1


def test_resuming_without_triton_chooses_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    banded = Backend("banded", False)
    monkeypatch.setitem(selection.CANDIDATES, "cpu", [REFERENCE, STACKED, banded])
    before = Selection(layer(), banded, {"banded NCHW": 0.1}).state
    assert select(layer(), World(), before).backend == banded
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # which is as if there were none on a CPU
    assert select(layer(), World(), before).backend == STACKED
