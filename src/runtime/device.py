"""The device that a run trains on: which one, how batches get there, what it remembers."""

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

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by trainer.precision


def choose_device(name: str, precision: str = "fp32") -> torch.device:
    """The device asked for; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: it is not available on this machine, or it cannot compute in this precision.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        there = ", ".join(device for device, is_there in available.items() if is_there)
        raise ConfigError(f"trainer.device={name}: not available on this machine; expected auto or {there}")
    if name == "cuda":
        rank = os.environ.get("LOCAL_RANK")  # of one run on several GPUs; each may see all of them, or its own alone
        torch.cuda.set_device(assign_gpu() if rank is None else int(rank) % torch.cuda.device_count())
        if problem := missing_kernels(torch.cuda.get_device_capability(), torch.cuda.get_arch_list()):
            raise ConfigError(f"trainer.device=cuda: {problem}. Fix: another build of PyTorch, or trainer.device=cpu")
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            gpu = torch.cuda.get_device_name()
            raise ConfigError(f"trainer.precision=bf16: {gpu} has none; expected trainer.precision=fp16 or fp32")
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    if name == "cpu":
        keep_freed_memory()
    return torch.device(name)


def missing_kernels(capability: tuple[int, int], wheel: Sequence[str]) -> str | None:
    """Say why a GPU of a compute capability runs no kernel of this PyTorch; None if it does.

    Args:
        wheel: the architectures that PyTorch was built for, as torch.cuda.get_arch_list() has them.
    """
    major, minor = capability
    for architecture in wheel:  # machine code runs on later minor versions, "compute_" on all later ones
        kind, _, digits = architecture.partition("_")
        built = int(re.sub(r"\D", "", digits)[:-1] or 0), int(re.sub(r"\D", "", digits)[-1:] or 0)
        if kind not in ("sm", "compute") or (built <= capability and (kind == "compute" or built[0] == major)):
            return None  # AMD's have other names
    return f"compute capability {major}.{minor}: this PyTorch has kernels for {', '.join(wheel)} only"


def describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def driver_version() -> str | None:
    """NVIDIA's driver; None without one."""
    with suppress(OSError):
        found = re.search(r"Module.*?\s(\d+\.[\d.]+)", Path("/proc/driver/nvidia/version").read_text())
        return found[1] if found else None
    return None


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def prefetch(batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches on the device; on CUDA the next one is copied while this one is worked on."""
    if device.type != "cuda":
        for pixels, labels in batches:
            yield pixels.to(device), labels.to(device)
        return
    copies = copy_stream(device)
    current = torch.cuda.current_stream(device)
    ready = None
    for batch in batches:
        with torch.cuda.stream(copies):
            coming = tuple(part.to(device, non_blocking=True) for part in batch)
        if ready is not None:
            yield ready
        current.wait_stream(copies)
        for part in coming:
            part.record_stream(current)
        ready = coming
    if ready is not None:
        yield ready


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for the process: the allocator keeps a cache for each stream."""
    return torch.cuda.Stream(device)


def is_gpu_lost() -> bool:
    """Whether the GPU no longer answers: after some errors every later call of the process fails as well."""
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
    """Linux: what tensors on the CPU free stays with the process, for the next ones.

    The C library gives large blocks back to the system at once and has to ask for them again, page by page:
    with activations of 16 MiB that took longer than what was done with them.
    """
    no_mmap, no_trimming = (-4, 0), (-1, -1)  # glibc's M_MMAP_MAX and M_TRIM_THRESHOLD
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(*no_mmap)
        libc.mallopt(*no_trimming)


def free_memory() -> None:
    """Between two runs: what the last one held, also in its error's frames, is the next one's, or another process's."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # its limit of recompilations, and what it has compiled, are the process's
    gc.collect()
    freeze_imports()
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # of a GPU that no longer answers
            torch.cuda.empty_cache()


@cache
def freeze_imports() -> None:
    """Spare what the first run has imported, which stays, from later collections: half a second each."""
    gc.freeze()


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: start the process's peak anew


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the run's highest: of the GPU's tensors, else of the process; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        (kib,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(kib) * 1024
    return None


def reserved_memory(device: torch.device) -> int | None:
    """Bytes of a GPU that the process held at the run's highest, with caches and CUDA graphs; None elsewhere."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
