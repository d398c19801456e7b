"""What `auto` takes, and why: one layer, forward and backward, in every way to compute it, setting by setting."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.report import Record, describe_machine, keep, read
from benchmarks.setting import make_configs, shape_of
from config.schema import Config
from ops import depthwise
from runtime.device import autocast, keep_freed_memory
from training import selection
from training.measurements import Measurement
from training.selection import Way

BASE = ["model=convmixer_256_8", "data=cifar10"]
CPU = [*BASE, "data.batch_size=64", "model.patch_size=2,4", "model.kernel_size=3,5,7,9,15"]
GPU = [*BASE, "data.batch_size=512", "trainer.precision=bf16", "model.patch_size=2,1,4", "model.kernel_size=5,9,3,7,15"]
CPU_WAYS = [Way(backend, nhwc) for backend in ("reference", "stacked") for nhwc in (False, True)]


def run(overrides: list[str], results: Path | None) -> Iterator[Record]:
    """
    Args:
        overrides: of the config, a sweep's as well; without any, settings of the paper's CIFAR-10 experiments.
        results: a file of JSON lines; what it has already is not measured again.

    Yields:
        What was measured of a setting's ways, and the one that `auto` takes, as soon as it is there.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    keep_freed_memory()
    where = describe_machine(device)
    known = {record.get("depthwise") for record in read(results) if record["where"] == where}
    for config in make_configs(overrides or (GPU if device.type == "cuda" else CPU)):
        setting = describe(config)
        if setting not in known:
            yield keep({"where": where, "depthwise": setting, **measure(config, device)}, results)


def describe(config: Config) -> str:
    model, trainer, (batch, _, height, width) = config.model, config.trainer, shape_of(config)
    grid = f"{height // model.patch_size}×{width // model.patch_size}"
    compiled = f", compiled {trainer.compile_mode}" if trainer.compile else ""
    return f"{batch} × {model.d_model} × {grid}, kernel {model.kernel_size}, {trainer.precision}{compiled}"


def measure(config: Config, device: torch.device) -> Record:
    shape, ways = shape_of(config), selection.WAYS.get(device.type, CPU_WAYS)
    reasons = {way: selection.unsupported_reason(way, config, shape, device) for way in ways}
    found = {way: Measurement(out=reason) for way, reason in reasons.items() if reason}
    found |= selection.measure(config, shape, device, [way for way in ways if way not in found])
    if device.type in selection.WAYS:
        times = {way: each.milliseconds for way, each in found.items() if each.milliseconds}
        auto = min(times, key=times.__getitem__, default=selection.REFERENCE)
    else:
        with autocast(device, config.trainer.precision):
            auto = Way(depthwise.fastest(*selection.operands(config, shape, device)), True)
    return {"auto": str(auto), "ways": {str(way): asdict(each) for way, each in found.items()}}
