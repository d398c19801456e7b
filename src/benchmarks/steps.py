"""Benchmark of training steps and inference: the authors' plain model, timm's and ours, each in its best form.

Every implementation is measured in a separate process, which has the device for itself. Results are saved one by one,
so that a failure loses none, and a file of results can be extended by later calls.
"""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.implementations import CLASSES, Implementation, build, configured, implementations
from benchmarks.report import Record, describe_machine, read_results, save_record
from benchmarks.setting import make_configs, shape_of
from config.errors import first_line
from config.schema import Config
from runtime.device import autocast, peak_memory, reserved_memory, reset_peak_memory
from runtime.timing import steps_within, timed
from training.model import memory_format
from training.optimization import make_optimizer

ROUNDS = 5
ROUND_SECONDS = {"cpu": 1.0, "cuda": 0.3}
TIMEOUT = 200.0  # seconds for an implementation, most of them for its compilation

PROCESSES = get_context("spawn")


def run(overrides: list[str], results: Path | None, patterns: Sequence[str] = ("*",)) -> Iterator[Record]:
    """Yield results for ConvMixer-256/8, kernel 9; GPU: patch 1, batch 512, bf16; CPU: patch 2, batch 64, fp32.

    Args:
        overrides: Config overrides; `model.kernel_size=5,9` measures both.
        results: A file of JSON lines. Implementations in it are not measured again, including failed ones.
        patterns: Patterns of implementation names, as of file names, measured in this order.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = ["model.patch_size=2", "data.batch_size=64"]
    if device.type == "cuda":
        size = ["model.patch_size=1", "data.batch_size=512", "trainer.precision=bf16"]
    defaults = ["model=convmixer_256_8", "model.kernel_size=9", "data=cifar10", *size]
    records = read_results(results)
    for pattern, config in product(patterns, make_configs([*defaults, *overrides])):
        for record in measure_missing(config, device, pattern, records):
            records.append(record)
            yield save_record(record, results)


def measure_missing(config: Config, device: torch.device, pattern: str, records: list[Record]) -> Iterator[Record]:
    """Measure the implementations that match the pattern and have no record of this setting."""
    setting = {"setting": describe_setting(config), "where": describe_machine(device)}
    names = {record.get("name") for record in records if setting.items() <= record.items()}
    for implementation in implementations(device):
        if implementation.name not in names and fnmatch(implementation.name, pattern):
            yield setting | {"name": implementation.name} | measure(implementation, config, device)


def describe_setting(config: Config) -> str:
    model, (batch, _, height, width) = config.model, shape_of(config)
    return (
        f"ConvMixer-{model.d_model}/{model.depth}, kernel {model.kernel_size}, patch {model.patch_size}, "
        f"{height}×{width}, batch {batch}, {config.trainer.precision}"
    )


def measure(implementation: Implementation, config: Config, device: torch.device) -> Record:
    """Measure images per second of each round, and memory, in training and inference; or return the error."""
    pipe, child_pipe = PROCESSES.Pipe()
    process = PROCESSES.Process(target=measure_here, args=(child_pipe, implementation, config, device), daemon=True)
    process.start()
    child_pipe.close()  # so that the end of the process ends pipe.recv
    try:
        return pipe.recv() if pipe.poll(TIMEOUT) else {"error": f"took longer than {TIMEOUT:.0f} s"}
    except EOFError:
        return {"error": "its process was ended; was the machine out of memory?"}
    finally:
        process.kill()
        process.join()


def measure_here(pipe: Connection, implementation: Implementation, config: Config, device: torch.device) -> None:
    """Measure in this process, and send the result, or the first line of an error, through the pipe."""
    try:
        training, inference = steps_of(implementation, config, device)
        pipe.send({"training": rates(training, config, device), "inference": rates(inference, config, device)})
    except Exception as error:
        pipe.send({"error": first_line(error)})


def steps_of(
    implementation: Implementation, config: Config, device: torch.device
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Make functions for a training step and a forward pass in eval mode, on the same random images."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = implementation.tuned
    config = configured(implementation, config, device)
    model = build(implementation, config, device)
    optimizer = make_optimizer(model, config.optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=config.trainer.precision == "fp16")
    images = torch.randn(shape_of(config), device=device).to(memory_format=memory_format(config))
    labels = torch.arange(len(images), device=device) % CLASSES

    def training() -> None:
        model.train()
        with autocast(device, config.trainer.precision):
            loss = F.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    @torch.no_grad()
    def inference() -> None:
        model.eval()
        with autocast(device, config.trainer.precision):
            model(images)

    return training, inference


def rates(step: Callable[[], None], config: Config, device: torch.device) -> dict[str, Any]:
    for _ in range(3):  # compilation, cuDNN's algorithm search, CUDA graphs
        step()
    steps = steps_within(ROUND_SECONDS[device.type], step, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # memory of compilation and cuDNN's algorithm search
    reset_peak_memory(device)
    images = steps * shape_of(config)[0]
    return {
        "images_per_second": [images / timed(step, steps, device) for _ in range(ROUNDS)],
        "memory": peak_memory(device),
        "reserved": reserved_memory(device),
    }
