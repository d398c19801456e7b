"""Tests that need a GPU, except those of its kernels (test_kernels.py) and of augmentation (test_gpu_*.py)."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from conftest import Train, checked, command, summaries
from interruption import configured, signal_at_step
from runtime.distributed import World
from test_distributed import torchrun
from training import run, selection
from training.layer import Backend, Layer
from training.measurements import Measurements
from training.model import make_model, wrap

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

GPU = torch.device("cuda")
SETTING = ("model.d_model=16", "model.depth=2", "trainer.device=cuda", "trainer.figures=false")
SET = (
    "model.backend=reference",
    "trainer.channels_last=false",
    "trainer.compile_mode=default",
)  # nothing is to be measured
COMPILED = ("trainer.compile=true", *SET)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(selection, "SECONDS", {False: 0, True: 0})  # every run is long enough
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("kernel_size", [5, 9])
@pytest.mark.parametrize("compiled", ["false", "true", "true trainer.compile_mode=reduce-overhead"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_layer_equals_float64_with_every_backend(precision: str, compiled: str, kernel_size: int) -> None:
    trainer = (f"trainer.precision={precision}", *f"trainer.compile={compiled}".split())
    config = checked("model.d_model=64", "model.patch_size=2", f"model.kernel_size={kernel_size}", *trainer)
    layer = Layer(config, (32, 3, 32, 32), GPU)
    backends = [backend for backend in selection.CANDIDATES["cuda"] if not layer.unsupported_reason(backend)]
    measurements = selection.measure(layer, backends, Measurements())
    assert {str(backend): value.reason for backend, value in measurements.items() if value.reason} == {}
    assert len(measurements) >= 3
    assert all(measurement.milliseconds for measurement in measurements.values())


@pytest.mark.parametrize("mode", [None, "default", "reduce-overhead", "max-autotune"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_run_learns(train: Train, precision: str, mode: str | None) -> None:
    compiled = (*COMPILED, f"trainer.compile_mode={mode}") if mode else ()
    done = train(*SETTING, f"trainer.precision={precision}", *compiled)
    assert done.summary["status"] == "completed", done.summary.get("error")
    assert done.metrics["train/loss"].iloc[-1] < done.metrics["train/loss"].iloc[0]
    assert done.summary["reserved_memory"] >= done.summary["peak_memory"] > 0


def test_auto_takes_the_fastest_and_remembers(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(*SETTING, "trainer.epochs=1").summary
    times = first["layer_milliseconds"]
    assert {"reference NCHW", "reference NHWC"} <= times.keys()
    backend = Backend(first["backend"], first["channels_last"], first["compile_mode"])
    assert min(times, key=times.__getitem__) == str(backend)
    monkeypatch.setattr(selection, "measure", None)  # would fail
    second = train(*SETTING, "trainer.epochs=1", "seed=1").summary
    assert (second["backend"], second["layer_milliseconds"]) == (first["backend"], times)


@pytest.mark.parametrize("compiled", [SET, COMPILED], ids=["eager", "compiled"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: tuple[str, ...]
) -> None:
    overrides = (*SETTING, *compiled, "trainer.precision=fp16", "data.batch_size=40", "trainer.epochs=2")
    run.run(configured(tmp_path, *overrides, sweep="whole"), [])
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        signal_at_step(14, patched)
        run.run(configured(tmp_path, *overrides, sweep="parts"), [])
    run.run(configured(tmp_path, *overrides, sweep="parts"), [])
    (whole,), (parts,) = summaries(tmp_path / "whole"), summaries(tmp_path / "parts")
    assert parts["status"] == "completed"
    assert parts["test/loss"] == pytest.approx(whole["test/loss"], rel=1e-2)  # cuDNN's sums have no fixed order


def test_sixteen_compiled_runs_all_compile_and_free_memory(train: Train) -> None:
    held, graphs = [], []
    for kernel_size in range(1, 17):
        torch._dynamo.utils.counters.clear()
        done = train(*SETTING, *COMPILED, f"model.kernel_size={kernel_size}", "data.batch_size=300")
        assert done.summary["status"] == "completed", done.summary.get("error")
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        held.append(torch.cuda.memory_reserved())
    assert graphs == [1] * 16
    assert held[-1] <= 1.1 * held[1]


def test_gradients_over_nccl_are_those_without(tmp_path: Path) -> None:
    config = checked(*SETTING, *SET, "model.norm=none", "trainer.channels_last=true")
    model = make_model(config, 3, 10).to(GPU)
    images, labels = torch.randn(8, 3, 8, 8, device=GPU), torch.arange(8, device=GPU)

    def gradients(network: nn.Module) -> list[Tensor]:
        nn.functional.cross_entropy(network(images), labels).backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    expected = gradients(copy.deepcopy(model))
    distributed.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = wrap(model, config, World(0, 2))
        assert isinstance(network, DistributedDataParallel)
        torch.testing.assert_close(gradients(network), expected)
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_the_result_of_one(tmp_path: Path) -> None:
    overrides = (*SETTING, *SET, "model.norm=none", "optimizer=sgd", "trainer.epochs=2", "data.batch_size=30")
    alone = command(*overrides, "sweep=one", cwd=tmp_path)
    ranks = torchrun(*overrides, "sweep=two", cwd=tmp_path)
    assert (alone.returncode, ranks.returncode) == (0, 0), alone.stderr + ranks.stderr
    (single,), (team,) = summaries(tmp_path / "outputs" / "one"), summaries(tmp_path / "outputs" / "two")
    assert team["test/loss"] == pytest.approx(single["test/loss"], rel=1e-2)


def test_side_by_side_on_one_gpu(tmp_path: Path) -> None:
    launcher = ("hydra/launcher=side_by_side", "hydra.launcher.n_jobs=2")
    done = command("-m", "seed=0,1", *SETTING, "trainer.epochs=1", *launcher, "sweep=s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = summaries(tmp_path / "outputs" / "s")
    assert [summary["status"] for summary in runs] == ["completed"] * 2
    assert runs[0]["layer_milliseconds"] == runs[1]["layer_milliseconds"]  # one has measured, the other waited
