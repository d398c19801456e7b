"""What was measured of ways to compute a layer, kept from run to run: a file for each GPU and what computes on it."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from config.errors import first_line
from runtime.device import describe
from runtime.files import write_text

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
    with locked(path):
        known = read(path)
        of_setting = known.setdefault(setting, {})
        before = dict(of_setting)
        try:
            yield of_setting
        finally:  # also after an error: what has cost the GPU must not do so again
            if of_setting != before:
                write(known, path)


def locked(path: Path) -> AbstractContextManager[Any]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_suffix(".lock")).acquire()
    except OSError:  # a place that cannot be written
        return nullcontext()


def read(path: Path) -> dict[str, dict[str, Measurement]]:
    """By setting and way; nothing where the file is damaged."""
    try:
        content = json.loads(path.read_text()) if path.exists() else {}
        return {
            setting: {way: Measurement(**measurement) for way, measurement in ways.items()}
            for setting, ways in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning(f"{path} is damaged, so it is measured anew: {first_line(error)}")
        return {}


def write(known: dict[str, dict[str, Measurement]], path: Path) -> None:
    try:
        write_text(path, json.dumps(known, default=asdict, indent=2) + "\n")
    except OSError as error:
        log.warning(f"{path} cannot be written, so it will be measured anew: {first_line(error)}")
