"""How a GPU computes a ConvMixer where model.backend or trainer.channels_last is `auto`: measured, once for a setting.

Which is fastest, PyTorch's own depthwise convolution in either memory format or Triton's kernels, depends on kernel,
grid, width, batch, precision and GPU. So a model of one layer goes forward and backward with as many images as the run
has in a batch, in every way that there is. A way is out if its logits and gradients are further from float64's than the
reference's rounding explains.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from config import schema
from config.errors import first_line
from config.schema import Config
from ops import depthwise
from runtime.device import autocast, free_memory, is_gpu_lost
from runtime.distributed import World
from runtime.rng import preserve_rng_state
from runtime.timing import seconds_of
from training.measurements import Measurement, cache_file, kept_measurements
from training.model import make_model, memory_format, wrap

log = logging.getLogger(__name__)

Shape = tuple[int, int, int, int]  # batch, channels, height, width
Step = Callable[[], list[Tensor]]

TOLERANCE = 0.03  # of a relative error; one wrong tap of a 9×9 kernel makes 0.11
CLASSES = 10
GRADIENT = 64.0  # of the logits: in fp16 no gradient vanishes or overflows


class Way(NamedTuple):
    """Values of model.backend and trainer.channels_last."""

    backend: str
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.backend} {'NHWC' if self.channels_last else 'NCHW'}"

    def applied_to(self, config: Config) -> Config:
        model, trainer = config.model, config.trainer
        return replace(
            config,
            model=replace(model, backend=self.backend),
            trainer=replace(trainer, channels_last=self.channels_last),
        )


REFERENCE = Way("reference", False)
WAYS = {  # by device, to be measured; all but PyTorch's own lay the grid out by themselves
    "cuda": [REFERENCE, Way("reference", True), Way("banded", False)],
}


@dataclass(frozen=True)
class Selection:
    """What a run takes; milliseconds of forward and backward of one layer by way, where they were measured."""

    backend: str
    channels_last: bool
    layer_milliseconds: dict[str, float] | None = None

    @property
    def way(self) -> Way:
        return Way(self.backend, self.channels_last)

    def __str__(self) -> str:
        times = sorted((self.layer_milliseconds or {}).items(), key=lambda item: item[1])
        return f"takes {self.way}; one layer: " + ", ".join(f"{way} {time:.2f} ms" for way, time in times)


def select(
    config: Config, shape: Shape, device: torch.device, world: World, before: Mapping[str, Any] | None = None
) -> Selection:
    """The fastest way that the config leaves open, the same on all ranks.

    Args:
        shape: of the images that a rank computes at once.
        before: the fields of what an interrupted run took: it takes that again if it can.
    """
    ways = open_ways(config, device)
    if before and Selection(**before).way in ways:
        return Selection(**before)
    if len(ways) == 1:
        return Selection(*ways[0])
    return world.broadcast(fastest(config, shape, device, ways) if world.rank == 0 else None)


def images_at_once(config: Config, channels: int, image_size: tuple[int, int], world: World) -> Shape:
    """Of a rank, in the largest micro-batch."""
    return math.ceil(config.data.batch_size / (world.size * config.trainer.accumulation_steps)), channels, *image_size


def open_ways(config: Config, device: torch.device) -> list[Way]:
    """Those to be measured that fit what is not `auto`, else the config's own."""
    backend, channels_last = config.model.backend, config.trainer.channels_last
    ways = [
        way
        for way in WAYS.get(device.type, [])
        if backend in ("auto", way.backend) and channels_last in ("auto", way.channels_last)
    ]
    return ways or [Way(backend, memory_format(config) == torch.channels_last)]


def fastest(config: Config, shape: Shape, device: torch.device, ways: Sequence[Way]) -> Selection:
    try:
        found = measured(
            config, shape, device, [way for way in ways if not unsupported_reason(way, config, shape, device)]
        )
        times = {way: known.milliseconds for way, known in found.items() if known.milliseconds and not known.out}
        best = min(times, key=times.__getitem__, default=ways[0])
        return Selection(*best, {str(way): time for way, time in times.items()})
    except Exception as error:
        if is_gpu_lost():
            raise
        log.warning(f"{ways[0]} is taken, without measuring: {first_line(error)}")
    free_memory()  # what the error's frames have held
    return Selection(*ways[0])


def unsupported_reason(way: Way, config: Config, shape: Shape, device: torch.device) -> str | None:
    """Say why a device cannot take a way for a model; None if it can."""
    return depthwise.unsupported_reason(way.backend, *operands(config, shape, device))


def operands(config: Config, shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of a depthwise convolution: its grid and its kernels, without memory of their own."""
    channels, patch, k = config.model.d_model, config.model.patch_size, config.model.kernel_size
    batch, _, height, width = shape
    anything = torch.empty(1, device=device)
    grid = anything.expand(batch, channels, height // patch, width // patch)
    return grid, nn.Parameter(anything.expand(channels, 1, k, k))


def measured(config: Config, shape: Shape, device: torch.device, ways: Sequence[Way]) -> dict[Way, Measurement]:
    """What is known of the ways; what is not is measured now and kept, but for a want of memory."""
    with kept_measurements(cache_file(device), setting_of(config, shape)) as known:
        found = {way: known[str(way)] for way in ways if str(way) in known}
        for way, measurement in measure(config, shape, device, [way for way in ways if way not in found]):
            found[way] = measurement
            if not measurement.retry:
                known[str(way)] = measurement
            if measurement.out:
                log.warning(f"{way} is out: {measurement.out}")
                if is_gpu_lost():
                    raise RuntimeError(f"{way} has cost the GPU, and is not tried again: {measurement.out}")
        return found


def setting_of(config: Config, shape: Shape) -> str:
    """All that the time of a layer depends on, beside the device."""
    model, trainer = asdict(config.model), one_layer(config).trainer
    for key in ("depth", "pretrained", "backend"):
        del model[key]
    compiled = trainer.compile and trainer.compile_mode
    how = {"precision": trainer.precision, "compiled": compiled, "recomputed": trainer.checkpoint_activations}
    return json.dumps({"images": shape, **model, **how})


# Measuring.


def measure(
    config: Config, shape: Shape, device: torch.device, ways: Sequence[Way]
) -> Iterator[tuple[Way, Measurement]]:
    """The time and the error of each way, as soon as it is measured."""
    if not ways:
        return
    eager = replace(config, trainer=replace(config.trainer, compile=False))
    in_float64 = replace(eager, trainer=replace(eager.trainer, precision="fp32"))
    exact = make_step(REFERENCE, in_float64, shape, device, torch.float64)()
    own = error_of(make_step(REFERENCE, eager, shape, device)(), exact)
    values = operands(config, shape, device)[0][:, 0].numel()  # of a channel; one beyond ReLU's kink is not a mistake
    allowed = 2 * own + TOLERANCE + 2 / math.sqrt(values)
    for way in ways:
        yield way, measure_way(way, config, shape, device, exact, allowed)
        if config.trainer.compile:
            free_memory()  # CUDA graphs keep theirs until they are forgotten
    free_memory()


def measure_way(
    way: Way, config: Config, shape: Shape, device: torch.device, exact: list[Tensor], allowed: float
) -> Measurement:
    """
    Args:
        exact: logits and gradients in float64.
        allowed: the largest error that is not a mistake.
    """
    try:
        step = make_step(way, config, shape, device)
        error = error_of(step(), exact)
        if not error <= allowed:  # NaN is not
            return Measurement(error=error, out=f"wrong by {error:.1%} of float64's result; expected {allowed:.1%}")
        return Measurement(1000 * seconds_of(step, device), error)
    except Exception as error:  # out of memory, no compiler
        return Measurement(out=first_line(error), retry=isinstance(error, torch.OutOfMemoryError))


def make_step(way: Way, config: Config, shape: Shape, device: torch.device, dtype: torch.dtype = torch.float32) -> Step:
    """Forward and backward of a model of one layer, to its logits and its weights' gradients; the same each time."""
    config = one_layer(way.applied_to(config))
    with preserve_rng_state():
        torch.random.default_generator.manual_seed(0)
        model = make_model(config, shape[1], CLASSES)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):  # whose ones and zeros hide mistakes
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.uniform_(norm.bias, 0.5, 1.5)
        images = torch.randn(shape) + torch.randn(*shape[:2], 1, 1)
        dlogits = GRADIENT * torch.randn(shape[0], CLASSES)
    model = model.to(device, dtype).to(memory_format=memory_format(config))
    network, weights = wrap(model, config, World(), device), list(model.parameters())
    images = images.to(device, dtype).to(memory_format=memory_format(config))
    dlogits = dlogits.to(device)

    def step() -> list[Tensor]:
        if config.trainer.compile:
            torch.compiler.cudagraph_mark_step_begin()
        with autocast(device, config.trainer.precision):
            logits = network(images)
        return [logits, *torch.autograd.grad(logits, weights, dlogits.to(logits.dtype))]

    return step


def one_layer(config: Config) -> Config:
    """Without dropout, which draws other numbers each way, and the minutes that tuning of matrix products takes."""
    mode = "reduce-overhead" if config.trainer.compile_mode == "max-autotune" else config.trainer.compile_mode
    return replace(
        config,
        model=replace(config.model, depth=1),
        dropout=schema.Dropout(),
        trainer=replace(config.trainer, compile_mode=mode),
    )


@torch.no_grad()
def error_of(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest relative error of a tensor, by its norm; where activations have a kink it is not small in bf16."""
    pairs = zip(found, exact, strict=True)
    return float(torch.stack([(tensor.double() - true).norm() / true.norm() for tensor, true in pairs]).max())
