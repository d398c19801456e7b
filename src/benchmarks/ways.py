"""What `auto` takes, and why: one layer, forward and backward, in every way to compute it, setting by setting."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Record, describe_machine, keep, read
from benchmarks.setting import expand, make_config
from config.schema import Config
from ops import depthwise
from runtime.device import autocast, keep_freed_memory
from runtime.distributed import World
from training import selection
from training.selection import Shape, Way, images_at_once

BASE = ["model=convmixer_256_8", "data=cifar10"]
CPU = [*BASE, "data.batch_size=64", "model.patch_size=2,4", "model.kernel_size=3,5,7,9,15"]
GPU = [*BASE, "data.batch_size=512", "trainer.precision=bf16", "model.patch_size=2,1,4", "model.kernel_size=5,9,3,7,15"]
CPU_WAYS = [Way(backend, nhwc) for backend in ("reference", "stacked", "toeplitz") for nhwc in (False, True)]


def run(overrides: list[str], results: Path | None, seconds: float) -> Iterator[Record]:
    """
    Args:
        overrides: of the config, a sweep's as well; without any, settings of the paper's CIFAR-10 experiments.
        results: a file of JSON lines; what it has already is not measured again.
        seconds: nothing is begun later.

    Yields:
        A setting's milliseconds, errors and what is out by way, and what `auto` takes, as soon as they are there.
    """
    deadline = time.monotonic() + seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    keep_freed_memory()
    where = describe_machine(device)
    known = {record.get("depthwise") for record in read(results) if record["where"] == where}
    for swept in expand(overrides or (GPU if device.type == "cuda" else CPU)):
        config = make_config(swept)
        side = config.data.image_size or 32
        shape = images_at_once(config, 3, (side, side), World())
        setting = describe(config, shape)
        if setting not in known and time.monotonic() < deadline:
            yield keep({"where": where, "depthwise": setting, **measure(config, shape, device)}, results)


def describe(config: Config, shape: Shape) -> str:
    model, trainer, (batch, _, height, width) = config.model, config.trainer, shape
    grid = f"{height // model.patch_size}×{width // model.patch_size}"
    compiled = f", compiled {trainer.compile_mode}" if trainer.compile else ""
    return f"{batch} × {model.d_model} × {grid}, kernel {model.kernel_size}, {trainer.precision}{compiled}"


def measure(config: Config, shape: Shape, device: torch.device) -> Record:
    ways = selection.WAYS.get(device.type, CPU_WAYS)
    out = {way: reason for way in ways if (reason := selection.why_not(way, config, shape, device))}
    milliseconds: dict[Way, float] = {}
    errors: dict[Way, float] = {}
    for way, found in selection.measure(config, shape, device, [way for way in ways if way not in out]):
        if found.error is not None:
            errors[way] = found.error
        if found.milliseconds is not None:
            milliseconds[way] = found.milliseconds
        if found.out:
            out[way] = found.out
    if device.type in selection.WAYS:
        auto = min(milliseconds, key=milliseconds.__getitem__, default=selection.REFERENCE)
    else:
        with autocast(device, config.trainer.precision):
            auto = Way(depthwise.fastest(*selection.operands(config, shape, device)), True)
    return {
        "auto": str(auto),
        "milliseconds": by_name(milliseconds),
        "errors": by_name(errors),
        "out": by_name(out),
    }


def by_name(values: Mapping[Way, Any]) -> dict[str, Any]:
    return {str(way): value for way, value in values.items()}
