"""What was measured of ways to compute a layer, kept from run to run: a file for each GPU and what computes on it."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock

from config.errors import first_line
from runtime.device import describe
from runtime.files import read_json, write_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """
    Attributes:
        milliseconds: forward and backward of a model of one layer.
        error: of its logits and gradients against float64, relative; the largest.
        out: why this way must not be taken.
        retry: whether that may change: the GPU's memory was short.
    """

    milliseconds: float | None = None
    error: float | None = None
    out: str | None = None
    retry: bool = False


def cache_file(device: torch.device) -> Path:
    """In $XDG_CACHE_HOME, else ~/.cache; for this GPU, PyTorch, cuDNN and src/ops."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parents[1].glob("ops/*.py")))
    versions = f"torch{torch.__version__}-cudnn{torch.backends.cudnn.version()}-{hashlib.sha256(code).hexdigest()[:8]}"
    gpu = re.sub(r"[^\w.+-]+", "_", describe(device))
    return folder / "convmixer-sweeps" / f"{gpu}-{versions}.json"


@contextmanager
def kept_measurements(path: Path, setting: str) -> Iterator[dict[str, Measurement]]:
    """What is known of a setting, by way; what is added is kept. Others who ask wait, and need not measure."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock")).acquire()
    except OSError as error:
        log.warning(f"{path.parent} cannot be written, so every run measures for itself: {first_line(error)}")
        yield {}
        return
    with lock:
        known = read_json(path)
        of_setting = {way: Measurement(**measurement) for way, measurement in known.get(setting, {}).items()}
        try:
            yield of_setting
        finally:  # also after an error: what has cost the GPU must not do so again
            known[setting] = {way: asdict(measurement) for way, measurement in of_setting.items()}
            write_text(path, json.dumps(known, indent=2) + "\n")
