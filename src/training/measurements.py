"""A cache of backend timings per GPU and software version: a file for each layer.

FOLDER/GPU-SOFTWARE/
    LAYER.json              milliseconds of each backend, or why its result is wrong
    LAYER.GPU.lock          held by the process that measures this layer on this GPU
    LAYER.GPU.attempt       the backend that this process tries; left behind if the process dies
    BACKEND.dead            a backend that ended its process or the CUDA context, and is not tried again
"""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from config.errors import first_line
from runtime.device import describe, driver_version, is_gpu_lost
from runtime.files import read_json, write_text
from training.layer import Backend, Layer

log = logging.getLogger(__name__)

SRC = Path(__file__).parents[1]
# The code that measures, and that writes and reads the cache.
CODE = ("LLMConvMixer.py", "ops/*.py", "runtime/*.py", "training/*.py")
WAIT_SECONDS = 600.0  # for a process that measures the same layer on the same GPU


@dataclass(frozen=True)
class Measurement:
    """The measurement of one backend.

    Attributes:
        milliseconds: Forward and backward of the layer; None if the backend must not be used.
        error: The largest relative error of logits and gradients, compared with float64.
        reason: Why the backend must not be used.
    """

    milliseconds: float | None = None
    error: float | None = None
    reason: str | None = None


@dataclass
class Measurements:
    """Measurements of one layer, by backend.

    Attributes:
        by_backend: Measurements by str(backend).
        dead: Backends that ended their process, and the file that records each.
        attempts: The file that names the backend being tried; None without a cache.
    """

    by_backend: dict[str, Measurement] = field(default_factory=dict)
    dead: dict[str, Path] = field(default_factory=dict)
    attempts: Path | None = None

    @contextmanager
    def attempt(self, backend: Backend) -> Iterator[None]:
        """Name a backend on disk while it computes. The file stays if the process dies or the CUDA context is lost."""
        if self.attempts is None or backend.name == "reference":  # the reference is always available
            yield
            return
        with log_write_errors():
            write_text(self.attempts, str(backend))
        is_lost = False
        try:
            yield
        except Exception:
            is_lost = is_gpu_lost()
            raise
        finally:
            if not is_lost:
                self.attempts.unlink(missing_ok=True)


@contextmanager
def cached_measurements(layer: Layer) -> Iterator[Measurements]:
    """Read a layer's measurements and save additions; hold the lock of this layer and GPU meanwhile."""
    path = cache_file(layer)
    gpu = str(torch.cuda.get_device_properties(layer.device).uuid) if layer.device.type == "cuda" else "cpu"
    lock = FileLock(path.with_suffix(f".{gpu}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=WAIT_SECONDS)
    except OSError as error:  # filelock's Timeout is an OSError
        log.warning(f"{path.parent}: cannot be used, so this run measures for itself: {first_line(error)}")
        yield Measurements()
        return
    with lock:
        attempts = Path(lock.lock_file).with_suffix(".attempt")
        measurements = Measurements(read_measurements(path), dead_backends(path.parent, attempts), attempts)
        before = dict(measurements.by_backend)
        yield measurements
        if measurements.by_backend != before:
            kept = {backend: asdict(measurement) for backend, measurement in measurements.by_backend.items()}
            with log_write_errors():
                write_text(path, json.dumps({"layer": json.loads(layer.key), "backends": kept}, indent=2) + "\n")


@contextmanager
def log_write_errors() -> Iterator[None]:
    """Go on without the cache where it cannot be written."""
    try:
        yield
    except OSError as error:
        log.warning(f"not kept for the next run: {first_line(error)}")


def forget(layer: Layer) -> None:
    """Delete the measurements of a layer."""
    with suppress(OSError):
        cache_file(layer).unlink()


def cache_file(layer: Layer) -> Path:
    """Locate the cache of this layer, GPU, driver, software and code in $XDG_CACHE_HOME or ~/.cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "convmixer-sweeps"
    files = sorted(path for pattern in CODE for path in SRC.glob(pattern))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]
    versions = f"torch{torch.__version__}-cudnn{torch.backends.cudnn.version()}-triton{triton_version()}"
    machine = f"{describe(layer.device)}-{driver_version()}-{versions}-{code}"
    name = hashlib.sha256(layer.key.encode()).hexdigest()[:16]
    return folder / re.sub(r"[^\w.+-]+", "_", machine) / f"{name}.json"


def triton_version() -> str | None:
    with suppress(ImportError):
        import triton

        return triton.__version__
    return None


def read_measurements(path: Path) -> dict[str, Measurement]:
    """Read a layer's file without damaged entries."""
    content: Any = read_json(path, dict)
    backends = content.get("backends")
    if not isinstance(backends, dict):
        return {}
    return {name: Measurement(**values) for name, values in backends.items() if is_measurement(values)}


def is_measurement(values: Any) -> bool:
    """Check for a time and an error, or for a reason not to use the backend."""
    if not isinstance(values, dict) or values.keys() != Measurement.__dataclass_fields__.keys():
        return False
    numbers = [values["milliseconds"], values["error"]]
    if isinstance(values["reason"], str):
        return numbers[0] is None and (numbers[1] is None or isinstance(numbers[1], float))
    is_number = (isinstance(number, float) and math.isfinite(number) and number >= 0 for number in numbers)
    return values["reason"] is None and all(is_number) and numbers[0] > 0


def dead_backends(folder: Path, held: Path) -> dict[str, Path]:
    """Find backends whose attempt file exists without a process that holds its lock; this process holds `held`'s."""
    for attempt in folder.glob("*.attempt"):
        try:
            with FileLock(attempt.with_suffix(".lock")).acquire(blocking=False) if attempt != held else nullcontext():
                name = attempt.read_text()
                attempt.replace(folder / f"{re.sub(r'[^A-Za-z0-9]+', '_', name)[:100]}.dead")
        except (Timeout, OSError, ValueError):  # another process tries it, or has renamed the file first
            continue
    dead = {}
    for path in folder.glob("*.dead"):
        with suppress(OSError, ValueError):
            dead[path.read_text()] = path
    return dead
