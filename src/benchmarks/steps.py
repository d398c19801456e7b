"""Training steps and inference: ConvMixer in its authors' plain form, timm's, and ours, as each is run best.

Every implementation is measured in a process of its own, with the device and its memory to itself. What was found is
kept at once, so that none is lost by one that fails, and a file of results can be added to from call to call.
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
from benchmarks.report import Record, describe_machine, keep, read
from benchmarks.setting import make_configs, shape_of
from config.errors import first_line
from config.schema import Config
from runtime.device import autocast, peak_memory, reserved_memory, reset_peak_memory
from runtime.timing import steps_within, timed
from training.model import memory_format
from training.optimization import make_optimizer

ROUNDS = 5
ROUND_SECONDS = {"cpu": 1.0, "cuda": 0.3}
TIMEOUT = 200.0  # seconds for an implementation, most of which go into its compilation

PROCESSES = get_context("spawn")


def run(overrides: list[str], results: Path | None, patterns: Sequence[str] = ("*",)) -> Iterator[Record]:
    """ConvMixer-256/8 unless told otherwise: on a GPU kernel 9, patch 1, batches of 512 in bf16, as in the paper's
    CIFAR-10 experiments; on the CPU patch 2, batches of 64 in fp32.

    Args:
        overrides: of the config; `model.kernel_size=5,9` measures both.
        results: a file of JSON lines; what it has already is not measured again, failures included.
        patterns: as of file names, for the names of the implementations; all of one's before those of the next.

    Yields:
        What is measured, as soon as it is there.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = ["model.patch_size=2", "data.batch_size=64"]
    if device.type == "cuda":
        size = ["model.patch_size=1", "data.batch_size=512", "trainer.precision=bf16"]
    defaults = ["model=convmixer_256_8", "model.kernel_size=9", "data=cifar10", *size]
    known = read(results)
    for pattern, config in product(patterns, make_configs([*defaults, *overrides])):
        for record in missing(config, device, pattern, known):
            known.append(record)
            yield keep(record, results)


def missing(config: Config, device: torch.device, pattern: str, known: list[Record]) -> Iterator[Record]:
    """Measure the implementations that the pattern fits and that are not known of a setting."""
    setting = {"setting": describe_setting(config), "where": describe_machine(device)}
    found = [record for record in known if setting.items() <= record.items()]
    names = {record.get("name") for record in found}
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
    """Images per second, round by round, and memory, in training and in inference; or the error."""
    pipe, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=measure_here, args=(theirs, implementation, config, device), daemon=True)
    process.start()
    theirs.close()  # here, so that its end is noticed
    try:
        return pipe.recv() if pipe.poll(TIMEOUT) else {"error": f"took longer than {TIMEOUT:.0f} s"}
    except EOFError:
        return {"error": "its process was ended; was the machine out of memory?"}
    finally:
        process.kill()
        process.join()


def measure_here(pipe: Connection, implementation: Implementation, config: Config, device: torch.device) -> None:
    """In a process of its own: an error, e.g. out of memory or no compiler, goes through the pipe as its first line."""
    try:
        training, inference = steps_of(implementation, config, device)
        pipe.send({"training": rates(training, config, device), "inference": rates(inference, config, device)})
    except Exception as error:
        pipe.send({"error": first_line(error)})


def steps_of(
    implementation: Implementation, config: Config, device: torch.device
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step and a forward pass in eval mode, over the same random images."""
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
    for _ in range(3):  # compilation, cuDNN's choice, CUDA graphs
        step()
    steps = steps_within(ROUND_SECONDS[device.type], step, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what compilation and cuDNN's choice needed
    reset_peak_memory(device)
    images = steps * shape_of(config)[0]
    return {
        "images_per_second": [images / timed(step, steps, device) for _ in range(ROUNDS)],
        "memory": peak_memory(device),
        "reserved": reserved_memory(device),
    }
