"""Selection of the backend: if the config says auto, the fastest on this GPU, measured once for a layer and software.

The fastest backend depends on kernel, grid, width, batch size, precision and GPU. So one layer runs forward and
backward with each backend in turns, with the run's batch size. A backend is excluded if its result differs from
float64 by more than the reference's rounding explains. The cache keeps times, wrong results, and backends that ended
their process or the CUDA context. It never keeps errors that may pass: no compiler, memory or space, a busy GPU.
"""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from config.errors import ConfigError, first_line
from config.schema import Config
from runtime.device import describe, free_memory, is_gpu_lost
from runtime.distributed import World
from runtime.timing import steps_within, timed, warm_up
from training.layer import CUDA_GRAPHS, REFERENCE, TOLERANCE, Backend, Layer, Shape, Step
from training.measurements import Measurement, Measurements, cached_measurements

log = logging.getLogger(__name__)

CANDIDATES = {"cuda": [REFERENCE, Backend("reference", True), Backend("banded", False)]}  # by device type
ROUNDS, TRIES = 5, 3  # rounds in which each backend has a turn; tries if their times vary too much
ROUND_SECONDS = 0.05
SPREAD = 0.1  # slowest over fastest round of a backend, minus 1; times that vary more are not cached
SECONDS = {False: 5, True: 40}  # estimated time to measure a backend, eager and compiled


@dataclass(frozen=True)
class Selection:
    """The selected backend of a run.

    Attributes:
        layer: The layer that was measured, with the run's config.
        backend: The backend to train with.
        milliseconds: Forward and backward of one layer with each backend; empty if nothing was measured.
    """

    layer: Layer
    backend: Backend
    milliseconds: dict[str, float] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        return self.backend.applied_to(self.layer.config)

    @property
    def summary(self) -> dict[str, Any]:
        name, channels_last, compile_mode = self.backend
        keys = {"backend": name, "channels_last": channels_last, "compile_mode": compile_mode}
        return {**keys, "layer_milliseconds": self.milliseconds or None}

    @property
    def state(self) -> dict[str, Any]:
        """The part of a checkpoint with which a resumed run uses the same backend."""
        return {**self.summary, "device": describe(self.layer.device)}

    def __str__(self) -> str:
        times = sorted(self.milliseconds.items(), key=lambda item: item[1])
        return f"takes {self.backend}; one layer: " + ", ".join(f"{name} {time:.2f} ms" for name, time in times)


def images_at_once(
    config: Config, images: int, channels: int, image_size: tuple[int, int], world: World | None = None
) -> Shape:
    """Compute the shape of a rank's largest micro-batch; `images` is the number of training images."""
    parts = (world or World()).size * config.trainer.accumulation_steps
    return math.ceil(min(images, config.data.batch_size) / parts), channels, *image_size


def select(
    layer: Layer, world: World, before: Mapping[str, Any] | None = None, excluded: Collection[Backend] = ()
) -> Selection:
    """Select the fastest backend that the config allows, the same on all ranks.

    Args:
        before: `Selection.state` of the interrupted run, whose backend is used again on the same GPU.
        excluded: Backends with which the run's network failed.

    Raises:
        ConfigError: The device does not support the config's backend.
    """
    backends = candidates(layer)
    reasons = {backend: layer.unsupported_reason(backend) for backend in backends}
    if all(reasons.values()):
        backend, reason = next(iter(reasons.items()))
        raise ConfigError(f"model.backend={backend.name}: {reason}. Fix: model.backend=auto")
    backends = [backend for backend in backends if not reasons[backend] and backend not in excluded] or backends[:1]
    if len(backends) == 1 and not with_cuda_graphs(layer, backends[0]):
        return Selection(layer, backends[0])
    chosen = before_or_fastest(layer, backends, before, excluded) if world.rank == 0 else None
    return Selection(layer, *world.broadcast(chosen))


def candidates(layer: Layer) -> list[Backend]:
    """List the backends that the config allows and that are measured on this device; else the configured one."""
    model, trainer = layer.config.model, layer.config.trainer
    mode = "default" if trainer.compile_mode == "auto" else trainer.compile_mode
    fitting = [
        backend._replace(compile_mode=mode)
        for backend in CANDIDATES.get(layer.device.type, [])
        if model.backend in ("auto", backend.name) and trainer.channels_last in ("auto", backend.channels_last)
    ]
    channels_last = trainer.channels_last in ("auto", True)  # the faster one on the CPU
    return fitting or [Backend(model.backend, channels_last, mode)]


def with_cuda_graphs(layer: Layer, backend: Backend) -> list[Backend]:
    """List the backend with CUDA graphs if the config allows them. They would overwrite accumulated gradients."""
    trainer = layer.config.trainer
    is_allowed = trainer.compile and trainer.compile_mode == "auto" and trainer.accumulation_steps == 1
    return [backend._replace(compile_mode=CUDA_GRAPHS)] if is_allowed and layer.device.type in CANDIDATES else []


def before_or_fastest(
    layer: Layer, backends: Sequence[Backend], before: Mapping[str, Any] | None, excluded: Collection[Backend]
) -> tuple[Backend, dict[str, float]]:
    """Use the interrupted run's backend, otherwise the fastest; return it with the milliseconds of each."""
    if before and not excluded:
        saved = before.get("backend"), before.get("channels_last"), before.get("compile_mode", "default")
        allowed = [*backends, *(graphs for backend in backends for graphs in with_cuda_graphs(layer, backend))]
        times = before.get("layer_milliseconds")
        if before.get("device") == describe(layer.device) and saved in allowed:
            backend = Backend(*saved)
            if isinstance(times, dict) and isinstance(times.get(str(backend)), float):
                return backend, times
            return backend, {}
        log.warning(
            f"resumes on {describe(layer.device)}, where {saved[0]} (chosen on {before.get('device')}) is not "
            "available or not measured: the backend is chosen again"
        )
    try:
        times = measured(layer, backends)
        if times:
            best = min(times, key=times.__getitem__)
            if graphs := [backend for backend in with_cuda_graphs(layer, best) if backend not in excluded]:
                times |= measured(layer, [best, *graphs])
        by_name = {str(backend): milliseconds for backend, milliseconds in times.items()}
        return min(times, key=times.__getitem__, default=backends[0]), by_name
    except Exception as error:
        if is_gpu_lost():
            raise
        log.warning(f"{backends[0]} is taken, without measuring: {first_line(error)}")
    free_memory()  # held by the traceback's frames
    return backends[0], {}


def measured(layer: Layer, backends: Sequence[Backend]) -> dict[Backend, float]:
    """Return the milliseconds of each backend with a correct result, from the cache or measured now.

    The result is empty if nothing is cached and the run is shorter than the measurement.
    """
    with cached_measurements(layer) as cache:
        for name, file in cache.dead.items():
            if name in map(str, backends):
                log.warning(f"{name}: ended its process or lost the GPU before, so it is left out. Fix: delete {file}")
        backends = [backend for backend in backends if str(backend) not in cache.dead]
        results = {backend: cache.by_backend[str(backend)] for backend in backends if str(backend) in cache.by_backend}
        missing = [backend for backend in backends if backend not in results]
        if missing and is_worth_measuring(layer, missing):
            usable = {backend: result.milliseconds for backend, result in results.items() if result.milliseconds}
            rivals = [min(usable, key=usable.__getitem__)] if usable else []  # in the same rounds
            results |= measure(layer, [*rivals, *missing], cache)
            free_memory()
    return {backend: result.milliseconds for backend, result in results.items() if result.milliseconds}


def is_worth_measuring(layer: Layer, backends: Sequence[Backend]) -> bool:
    """Compare the time to measure the backends with the time of the run, and log the decision."""
    seconds = len(backends) * SECONDS[layer.config.trainer.compile]
    if layer.passes < math.inf:
        step = layer.eager.step(REFERENCE, layer.shape[0])
        warm_up(step)
        steps = steps_within(ROUND_SECONDS, step, layer.device)
        run_seconds = timed(step, steps, layer.device) / steps * layer.config.model.depth * layer.passes
        if run_seconds < seconds:
            log.info(f"{backends[0]} is taken: the run takes about {run_seconds:.0f} s, measuring about {seconds} s")
            return False
    log.info(
        f"measures {', '.join(map(str, backends))} with one layer, once for this GPU and software: about {seconds} s"
    )
    return True


def measure(layer: Layer, backends: Sequence[Backend], cache: Measurements) -> dict[Backend, Measurement]:
    """Check each backend's result, time the correct ones in turns, and cache what will hold in later runs.

    Raises:
        RuntimeError: The reference's result is wrong, or a backend broke the CUDA context.
    """
    exact = layer.in_float64()
    rounding = layer.error(layer.eager.step(REFERENCE, layer.checked_images), exact)
    if not rounding < 1:
        raise RuntimeError(f"the reference differs from float64's result by {rounding:.1%}")
    values = layer.distinct_images * math.prod(layer.grid[2:])  # in a channel; one of them may cross ReLU's kink
    allowed = 2 * rounding + TOLERANCE + 2 / math.sqrt(values)
    results: dict[Backend, Measurement] = {}
    lasting: dict[Backend, Measurement] = {}
    steps: dict[Backend, Step] = {}
    errors: dict[Backend, float] = {}
    for backend in backends:
        try:
            with cache.attempt(backend):
                step = layer.step(backend, layer.checked_images)
                errors[backend] = layer.error(step, exact)
                if errors[backend] <= allowed:
                    if layer.checked_images != layer.shape[0]:
                        step = layer.step(backend, layer.shape[0])
                    warm_up(step)
                    steps[backend] = step
                    continue
        except Exception as error:  # e.g. no memory, no compiler
            if is_gpu_lost():
                raise RuntimeError(
                    f"{backend} has cost the GPU, and is not tried again: {first_line(error)}"
                ) from error
            log.warning(f"{backend}: left out of this run: {first_line(error)}")
            results[backend] = Measurement(reason=first_line(error))
            continue
        reason = f"wrong by {errors[backend]:.1%} of float64's result; expected {allowed:.1%}"  # or NaN
        log.warning(f"{backend}: left out: {reason}")
        results[backend] = lasting[backend] = Measurement(reason=reason)
    seconds = in_turns(layer, steps, cache)
    timings = {backend: Measurement(1000 * median(times), errors[backend]) for backend, times in seconds.items()}
    if spread(seconds) <= SPREAD:
        lasting |= timings
    references = [backend for backend in backends if backend.name == "reference"]
    if not references or any(backend in steps for backend in references):  # otherwise the machine may be at fault
        cache.by_backend |= {str(backend): measurement for backend, measurement in lasting.items()}
    return results | timings


def in_turns(layer: Layer, steps: Mapping[Backend, Step], cache: Measurements) -> dict[Backend, list[float]]:
    """Measure seconds of a step with each backend, round by round; repeat if they vary too much."""
    numbers = {backend: steps_within(ROUND_SECONDS, step, layer.device) for backend, step in steps.items()}
    for _ in range(TRIES):
        seconds: dict[Backend, list[float]] = {backend: [] for backend in steps}
        for _ in range(ROUNDS):
            for backend, step in steps.items():
                with cache.attempt(backend):
                    seconds[backend].append(timed(step, numbers[backend], layer.device) / numbers[backend])
        if spread(seconds) <= SPREAD:
            return seconds
    log.warning(
        f"the rounds' times differ by {spread(seconds):.0%}: is the machine busy? They are not kept for later runs"
    )
    return seconds


def spread(seconds: Mapping[Backend, Sequence[float]]) -> float:
    return max((max(times) / min(times) - 1 for times in seconds.values()), default=0.0)
