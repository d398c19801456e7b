"""The device of a run: its choice, copies of batches to it, its memory."""

import ctypes
import gc
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.errors import ConfigError
from runtime.claims import assign_gpu

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # keys are values of trainer.precision


def choose_device(name: str, precision: str = "fp32") -> torch.device:
    """Make the device of trainer.device; `auto` prefers CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: The device is not available on this machine, or does not support the precision.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_available in available.items() if is_available)
    if not available[name]:
        names = ", ".join(device for device, is_available in available.items() if is_available)
        raise ConfigError(f"trainer.device={name}: not available on this machine; expected auto or {names}")
    if name == "cuda":
        rank = os.environ.get("LOCAL_RANK")  # set if the run has several ranks; each sees all GPUs or only its own
        torch.cuda.set_device(assign_gpu() if rank is None else int(rank) % torch.cuda.device_count())
        if problem := missing_kernels(torch.cuda.get_device_capability(), torch.cuda.get_arch_list()):
            raise ConfigError(f"trainer.device=cuda: {problem}. Fix: another build of PyTorch, or trainer.device=cpu")
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            gpu = torch.cuda.get_device_name()
            raise ConfigError(f"trainer.precision=bf16: {gpu} has none; expected trainer.precision=fp16 or fp32")
    torch.backends.cudnn.benchmark = True  # all steps have the same shapes
    if name == "cpu":
        keep_freed_memory()
    return torch.device(name)


def missing_kernels(capability: tuple[int, int], wheel: Sequence[str]) -> str | None:
    """Explain why this PyTorch has no kernels for a GPU's compute capability; None if it has them.

    Args:
        wheel: The architectures that PyTorch was built for, from torch.cuda.get_arch_list().
    """
    major, minor = capability
    for architecture in wheel:  # sm_80 runs on 8.0 to 8.9; compute_80 runs on 8.0 and all later ones
        kind, _, digits = architecture.partition("_")
        built = int(re.sub(r"\D", "", digits)[:-1] or 0), int(re.sub(r"\D", "", digits)[-1:] or 0)
        if kind not in ("sm", "compute") or (built <= capability and (kind == "compute" or built[0] == major)):
            return None  # AMD's architectures have other names and are not checked
    return f"compute capability {major}.{minor}: this PyTorch has kernels for {', '.join(wheel)} only"


def describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def driver_version() -> str | None:
    """Read the version of NVIDIA's driver; None without one."""
    with suppress(OSError):
        version = re.search(r"Module.*?\s(\d+\.[\d.]+)", Path("/proc/driver/nvidia/version").read_text())
        return version[1] if version else None
    return None


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def prefetch(batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches on the device; on CUDA, copy the next batch while the current one is used."""
    if device.type != "cuda":
        for pixels, labels in batches:
            yield pixels.to(device), labels.to(device)
        return
    copies = copy_stream(device)
    current = torch.cuda.current_stream(device)
    ready = None
    for batch in batches:
        with torch.cuda.stream(copies):
            following = tuple(part.to(device, non_blocking=True) for part in batch)
        if ready is not None:
            yield ready
        current.wait_stream(copies)
        for part in following:
            part.record_stream(current)
        ready = following
    if ready is not None:
        yield ready


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Make the process's stream for copies, once, because PyTorch's allocator caches memory for each stream."""
    return torch.cuda.Stream(device)


def is_gpu_lost() -> bool:
    """Check if the CUDA context is broken: after some errors, all later CUDA calls of the process fail."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


# Memory.


@cache
def keep_freed_memory() -> None:
    """Let glibc keep freed memory in the process for later CPU tensors.

    By default glibc returns large blocks to the system at once, and each new block costs page faults. With activations
    of 16 MiB these took longer than the computation.
    """
    no_mmap, no_trimming = (-4, 0), (-1, -1)  # glibc's M_MMAP_MAX and M_TRIM_THRESHOLD
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(*no_mmap)
        libc.mallopt(*no_trimming)


def free_memory() -> None:
    """Release the memory of the last run, including what its traceback refers to, before the next run."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # compiled code and the recompilation limit are kept for the whole process
    gc.collect()
    freeze_imports()
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # the CUDA context may be broken
            torch.cuda.empty_cache()


@cache
def freeze_imports() -> None:
    """Exclude imported modules from later garbage collections, which saves half a second each."""
    gc.freeze()


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: reset VmHWM


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory in bytes: of tensors on CUDA, of the whole process on the CPU; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        (kib,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(kib) * 1024
    return None


def reserved_memory(device: torch.device) -> int | None:
    """Return the peak CUDA memory of the process in bytes, with caches and CUDA graphs; None on other devices."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
