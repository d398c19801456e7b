"""Training steps and inference: ConvMixer in its authors' plain form, timm's, and ours.

Every contestant works in a process of its own, with its own settings and its own memory, and they take turns.

How fast could it be? Of a layer of ConvMixer, when all that can be fused is fused, these passes over activations
remain (a batch's grid, read or written once), since BatchNorm needs its statistics before it can normalize:

    forward    depthwise      read z, write a = σ(depthwise z), statistics on the way        2
               pointwise      read a and z (normalize, add), write b = σ(pointwise …)        3
    backward   normalization  read b while the gradient of its result is written             1
               pointwise      read the gradient, b, a and z; write the gradient of z'        5
               normalization  read a on the way                                              1
               depthwise      read the gradient, a and z; write the gradient of z; add       4

16 in all (4 in inference, where the normalization is part of the weights). The floor is the time for these, or for
the multiply-accumulates (three times the forward pass's in training), whichever is longer, at the memory bandwidth
and the matrix product rate that are measured on the device first.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.setting import make_config
from comparison.findings import si
from config import schema
from config.schema import Config
from LLMConvMixer import make_activation
from runtime.console import print_table, say
from runtime.device import DTYPES, autocast, describe, keep_freed_memory, peak_memory, reset_peak_memory
from training.model import make_model, memory_format
from training.optimization import make_optimizer

ROUNDS = 5
TURN_SECONDS = 1.0
CLASSES = 10


@dataclass
class Turn:
    images_per_second: float
    peak_memory: int | None  # bytes


# The contestants.


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x


def authors_model(model: schema.Model) -> nn.Module:
    """The paper's model as plain layers in sequence (arXiv 2201.09792, figure 3)."""
    width, k = model.d_model, model.kernel_size

    def block(convolution: nn.Module) -> list[nn.Module]:
        return [convolution, make_activation(model.activation), nn.BatchNorm2d(width)]

    layers = [
        nn.Sequential(
            Residual(nn.Sequential(*block(nn.Conv2d(width, width, k, groups=width, padding="same")))),
            *block(nn.Conv2d(width, width, 1)),
        )
        for _ in range(model.depth)
    ]
    stem = block(nn.Conv2d(3, width, model.patch_size, model.patch_size))
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


def timms_model(model: schema.Model) -> nn.Module:
    from timm.models.convmixer import ConvMixer

    activation = type(make_activation(model.activation))
    return ConvMixer(
        model.d_model, model.depth, model.kernel_size, model.patch_size, num_classes=CLASSES, act_layer=activation
    )


def authors(config: Config, device: torch.device) -> nn.Module:
    config.trainer.channels_last = False
    return authors_model(config.model).to(device)


def timm(config: Config, device: torch.device) -> nn.Module:
    torch.backends.cudnn.benchmark = True
    config.trainer.channels_last = True
    return timms_model(config.model).to(device).to(memory_format=torch.channels_last)


def timm_compiled(config: Config, device: torch.device) -> nn.Module:
    mode = "max-autotune" if device.type == "cuda" else None  # on the CPU it takes very long, for nothing
    model = timm(config, device)
    model.compile(mode=mode)
    return model


def ours(config: Config, device: torch.device) -> nn.Module:
    if device.type == "cpu":
        keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    model = make_model(config, 3, CLASSES).to(device)
    if config.trainer.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.trainer.compile:
        model.compile()
    return model


def ours_toeplitz(config: Config, device: torch.device) -> nn.Module:
    config.model.backend = "toeplitz"
    return ours(config, device)


Make = Callable[[Config, torch.device], nn.Module]
CONTESTANTS: dict[str, Make] = {
    "authors' plain form": authors,
    "timm, channels last": timm,
    "timm, compiled": timm_compiled,
    "ours": ours,
    "ours, toeplitz": ours_toeplitz,
}
GPU_ONLY = ("ours, toeplitz",)


def contestant(pipe: Connection, make: Make, config: Config, device: torch.device) -> None:
    """A process: an error that ends it, e.g. out of memory or no compiler, goes through the pipe as its text."""
    try:
        compete(pipe, make, config, device)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])


def compete(pipe: Connection, make: Make, config: Config, device: torch.device) -> None:
    """For every (what, seconds) that comes through the pipe a Turn goes back, until None comes."""
    torch.manual_seed(0)
    model = make(config, device)
    optimizer = make_optimizer(model, config.optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=config.trainer.precision == "fp16")
    side = config.data.image_size or 32
    images = memory_format(torch.randn(config.data.batch_size, 3, side, side, device=device), config)
    labels = torch.arange(config.data.batch_size, device=device) % CLASSES

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

    while asked := pipe.recv():
        what, seconds = asked
        step = {"training": training, "inference": inference}[what]
        if not seconds:
            step()  # compilation
        steps = max(1, round(seconds / timed(step, 1, device)))
        reset_peak_memory(device)
        rate = steps * len(images) / timed(step, steps, device)
        pipe.send(Turn(rate, peak_memory(device)))


def timed(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Seconds that the steps take on the device."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(steps):
            step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - started


# The floor.


def floors(config: Config, device: torch.device) -> dict[str, float]:
    """Images per second of training and inference that no implementation on this device can be faster than."""
    dtype, model = DTYPES[config.trainer.precision], config.model
    bandwidth, rate = measured_roofs(device, dtype)
    positions = ((config.data.image_size or 32) // model.patch_size) ** 2
    activation = positions * model.d_model * dtype.itemsize
    macs = positions * model.d_model * (model.kernel_size**2 + model.d_model) * model.depth
    passes = {"training": 16, "inference": 4}
    return {
        what: 1 / max(n * model.depth * activation / bandwidth, (3 if what == "training" else 1) * 2 * macs / rate)
        for what, n in passes.items()
    }


def measured_roofs(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes per second through memory, and floating point operations per second of matrix products."""
    n = 8192 if device.type == "cuda" else 2048
    source = torch.zeros(2**30 if device.type == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target, matrix = torch.empty_like(source), torch.randn(n, n, device=device, dtype=dtype)
    copy = min(timed(lambda: target.copy_(source), 1, device) for _ in range(5))
    product = min(timed(lambda: matrix @ matrix, 1, device) for _ in range(5))
    return 2 * len(source) / copy, 2 * n**3 / product


# The contest.


def run(overrides: list[str], as_json: bool = False) -> None:
    """ConvMixer-256/8 unless told otherwise: on a GPU kernel 9, patch 1, batches of 512 in bf16, as in the paper's
    CIFAR-10 experiments; on the CPU patch 2, batches of 64 in fp32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = ["model.patch_size=2", "data.batch_size=64"]
    if device.type == "cuda":
        size = ["model.patch_size=1", "data.batch_size=512", "trainer.precision=bf16", "trainer.compile=true"]
    config = make_config(["model=convmixer_256_8", "model.kernel_size=9", "data=cifar10", *size, *overrides])
    floor = floors(config, device)
    turns, failed = contest(config, device)
    model, side = config.model, config.data.image_size or 32
    setting = (
        f"ConvMixer-{model.d_model}/{model.depth}, kernel {model.kernel_size}, patch {model.patch_size}, "
        f"{side}×{side}, batch {config.data.batch_size}, {config.trainer.precision}"
    )
    where = f"{describe(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    if as_json:
        figures = {
            what: {name: [vars(turn) for turn in own] for name, own in by_name.items()}
            for what, by_name in turns.items()
        }
        print(json.dumps({"setting": setting, "where": where, "floor": floor, **figures, "failed": failed}, indent=2))
        return
    say(f"{setting}; {where}")
    for what, by_name in turns.items():
        plain = by_name.get(next(iter(CONTESTANTS)))
        header = (what, "images/s", "range", "× plain", "of the floor", "memory")
        print_table("", header, [row(name, own, plain, floor[what]) for name, own in by_name.items()])
    for name, error in failed.items():
        say(f"{name}: {error}", "yellow")


def contest(config: Config, device: torch.device) -> tuple[dict[str, dict[str, list[Turn]]], dict[str, str]]:
    """Every contestant's turns, of training and of inference, and what ended those that failed."""
    context = get_context("spawn")
    pipes, processes, failed = {}, [], {}
    for name in [name for name in CONTESTANTS if device.type == "cuda" or name not in GPU_ONLY]:
        pipes[name], theirs = context.Pipe()
        processes.append(
            context.Process(target=contestant, args=(theirs, CONTESTANTS[name], config, device), daemon=True)
        )
        processes[-1].start()
        theirs.close()  # here, so that its end is noticed
    turns: dict[str, dict[str, list[Turn]]] = {what: {name: [] for name in pipes} for what in ("training", "inference")}
    for what, by_name in turns.items():
        for turn in range(ROUNDS + 1):
            for name in [name for name in pipes if name not in failed]:
                try:
                    pipes[name].send((what, TURN_SECONDS if turn else 0.0))
                    answer = pipes[name].recv()
                except (EOFError, OSError):
                    answer = "its process was ended; was the machine out of memory?"
                if isinstance(answer, str):
                    failed[name] = answer
                elif turn:  # the first does not count
                    by_name[name].append(answer)
            if sys.stderr.isatty():
                print(f"\r{what}: round {turn} of {ROUNDS} ", end="", file=sys.stderr, flush=True)
    for name in pipes.keys() - failed:
        pipes[name].send(None)
    for process in processes:
        process.join()
    complete = {what: {n: own for n, own in by_name.items() if len(own) == ROUNDS} for what, by_name in turns.items()}
    return complete, failed


def row(name: str, turns: list[Turn], plain: list[Turn] | None, floor: float) -> tuple[str, ...]:
    rates = [turn.images_per_second for turn in turns]
    pairs = zip(turns, plain or [], strict=plain is not None)
    ratios = [turn.images_per_second / other.images_per_second for turn, other in pairs]
    memory = turns[-1].peak_memory
    return (
        name,
        f"{statistics.median(rates):,.0f}",
        f"{min(rates):,.0f}–{max(rates):,.0f}",
        f"{statistics.median(ratios):.2f}" if ratios else "",
        f"{statistics.median(rates) / floor:.0%}",
        f"{si(memory)}B" if memory else "",
    )
