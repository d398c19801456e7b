"""Benchmark of one layer with each backend, forward and backward, and the backend that `auto` selects."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.report import Record, describe_machine, read_results, save_record
from benchmarks.setting import layer_of, make_configs
from ops import depthwise
from runtime.device import autocast, keep_freed_memory
from training import selection
from training.layer import REFERENCE, Backend, Layer
from training.measurements import Measurement, Measurements

BASE = ["model=convmixer_256_8", "data=cifar10"]
CPU = [*BASE, "data.batch_size=64", "model.patch_size=2,4", "model.kernel_size=3,5,7,9,15"]
GPU = [*BASE, "data.batch_size=512", "trainer.precision=bf16", "model.patch_size=2,1,4", "model.kernel_size=5,9,3,7,15"]
CPU_BACKENDS = [Backend(name, channels_last) for name in ("reference", "stacked") for channels_last in (False, True)]


def run(overrides: list[str], results: Path | None) -> Iterator[Record]:
    """Measure the backends of each setting, and yield the results with the backend that `auto` selects.

    Args:
        overrides: Config overrides, also of a grid; without any, settings of the paper's CIFAR-10 experiments.
        results: A file of JSON lines. Settings in it are not measured again.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    keep_freed_memory()
    where = describe_machine(device)
    measured = {record.get("depthwise") for record in read_results(results) if record["where"] == where}
    for config in make_configs(overrides or (GPU if device.type == "cuda" else CPU)):
        layer = layer_of(config, device)
        if describe_layer(layer) not in measured:
            yield save_record({"where": where, "depthwise": describe_layer(layer), **measure_layer(layer)}, results)


def describe_layer(layer: Layer) -> str:
    trainer, (batch, channels, height, width) = layer.config.trainer, layer.grid
    compiled = f", compiled {trainer.compile_mode}" if trainer.compile else ""
    kernel_size = layer.config.model.kernel_size
    return f"{batch} × {channels} × {height}×{width}, kernel {kernel_size}, {trainer.precision}{compiled}"


def measure_layer(layer: Layer) -> Record:
    backends = selection.CANDIDATES.get(layer.device.type, CPU_BACKENDS)
    reasons = {backend: layer.unsupported_reason(backend) for backend in backends}
    results = {backend: Measurement(reason=reason) for backend, reason in reasons.items() if reason}
    results |= selection.measure(layer, [backend for backend in backends if backend not in results], Measurements())
    times = {backend: result.milliseconds for backend, result in results.items() if result.milliseconds}
    auto = min(times, key=times.__getitem__, default=REFERENCE)
    if layer.device.type not in selection.CANDIDATES:
        with autocast(layer.device, layer.config.trainer.precision):
            auto = Backend(depthwise.fastest(*layer.operands()), True)
    return {"auto": str(auto), "backends": {str(backend): asdict(result) for backend, result in results.items()}}
