"""The doctor: a report of ten lines about this machine, for bug reports.

python src/benchmark.py doctor                             measure a layer of ConvMixer-256/8
python src/benchmark.py doctor experiment=paper_cifar10    measure a layer of this run
"""

import json
import netrc
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from benchmarks import depthwise
from benchmarks.setting import layer_of, make_config
from config.errors import first_line
from config.schema import Config
from pipeline.batches import spare_cores
from runtime.console import say, si
from runtime.cores import cores
from runtime.device import describe, driver_version, keep_freed_memory, missing_kernels
from training.layer import Layer
from training.measurements import cache_file, triton_version
from training.selection import CANDIDATES, candidates

BASE = ["model=convmixer_256_8", "model.kernel_size=9", "data=cifar10"]
CPU = [*BASE, "model.patch_size=2", "data.batch_size=16"]
GPU = [*BASE, "model.patch_size=1", "data.batch_size=512", "trainer.precision=bf16"]


def run(overrides: list[str], as_json: bool = False) -> None:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    config = make_config([*(GPU if on_gpu else CPU), *overrides])
    layer = layer_of(config, device)
    torch.backends.cudnn.benchmark = True
    keep_freed_memory()
    measured: dict[str, Any] = {}

    def measure() -> str:
        measured.update(depthwise.measure_layer(layer))
        return f"{depthwise.describe_layer(layer)}: {times(measured['backends'])}"

    probes: dict[str, Callable[[], str]] = {
        "software": software, "GPU": gpu, "driver": driver, "compiler": compiler, "memory": memory, "cores": processors,
        "disk": lambda: disk(config, layer), "W&B": lambda: wandb(config), "layer": measure,
        "run": lambda: choice(layer, measured.get("auto")),
    }  # fmt: skip
    report: dict[str, Any] = {}
    for name, probe in probes.items():
        report[name] = answer(probe)
        if not as_json:
            say(f"{name:<9} {report[name]}")
    if as_json:
        print(json.dumps({**report, **measured}, indent=2))


def answer(probe: Callable[[], str]) -> str:
    """Call a probe; report its error as one line."""
    try:
        return probe()
    except Exception as error:
        return f"unknown: {type(error).__name__}: {first_line(error)}"


def software() -> str:
    versions = f"torch {torch.__version__}, triton {triton_version() or 'missing'}, hydra-core {version('hydra-core')}"
    return f"Python {platform.python_version()}, {versions}; {platform.platform()}"


def gpu() -> str:
    if not torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hint = f"; CUDA_VISIBLE_DEVICES={visible}" if visible is not None else ""
        return f"none that PyTorch can use (built for CUDA {torch.version.cuda}){hint}"
    cards = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        problem = missing_kernels((major, minor), torch.cuda.get_arch_list())
        if not problem:
            (torch.ones(2, device=f"cuda:{index}") + 1).sum().item()  # runs a kernel
        cards.append(f"{torch.cuda.get_device_name(index)}, {problem or f'compute capability {major}.{minor}'}")
    return "; ".join(cards)


def driver() -> str:
    return f"{driver_version() or 'none'}; PyTorch's CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def compiler() -> str:
    """Find the C compiler and Python's headers, with which Triton builds its launcher."""
    path = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not path:
        return "none. Fix: install gcc, or set CC"
    try:
        output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path}: {first_line(error)}. Fix: install gcc, or set CC"
    has_headers = (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()
    missing = "" if has_headers else "; Python.h is missing. Fix: install python3-dev"
    return f"{path}, {output.splitlines()[0]}{missing}"


def memory() -> str:
    parts = []
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        parts.append(f"GPU {si(free)}B free of {si(total)}B")
    with suppress(OSError):  # Linux; what the system caches of files is available, too
        kib = dict(re.findall(r"(\w+): +(\d+) kB", Path("/proc/meminfo").read_text()))
        available, total = (1024 * int(kib[name]) for name in ("MemAvailable", "MemTotal"))
        parts.append(f"RAM {si(available)}B available of {si(total)}B")
    with suppress(OSError):
        parts.append(f"/dev/shm {si(shutil.disk_usage('/dev/shm').free)}B free")
    return ", ".join(parts)


def processors() -> str:
    return f"{cores()} of {os.cpu_count()}, {torch.get_num_threads()} threads, {spare_cores()} data loading workers"


def disk(config: Config, layer: Layer) -> str:
    folders = {"results": Path(config.output_dir), "cache": cache_file(layer), "temporary": Path(tempfile.gettempdir())}
    parts = []
    for name, folder in folders.items():
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
        note = "" if os.access(place, os.W_OK) else ", not writable"
        parts.append(f"{name} {si(shutil.disk_usage(place).free)}B free in {place}{note}")
    return ", ".join(parts)


def wandb(config: Config) -> str:
    """Report W&B's version, mode, and whether a key exists, but never the key."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    has_key = "WANDB_API_KEY" in os.environ
    with suppress(OSError, netrc.NetrcParseError):
        has_key = has_key or netrc.netrc().authenticators(host) is not None
    return f"wandb {version('wandb')}, mode {config.wandb.mode}, {'a' if has_key else 'no'} key for {host}"


def times(backends: dict[str, dict[str, Any]]) -> str:
    return "; ".join(
        f"{name} {result['reason'] or '{milliseconds:.2f} ms, error {error:.1%}'.format(**result)}"
        for name, result in backends.items()
    )


def choice(layer: Layer, auto: str | None) -> str:
    """Name the backend that a run uses, and why."""
    if layer.config.model.backend != "auto":
        (backend, *_) = candidates(layer)
        return f"model.backend={backend.name}: {layer.unsupported_reason(backend) or f'uses {backend}, as configured'}"
    if auto is None:
        return "uses the reference: no backend could be measured"
    if layer.device.type not in CANDIDATES:
        return f"uses {auto} on {layer.device.type}: chosen by shape, without measuring"
    file = cache_file(layer)
    source = f"cached in {file}" if file.exists() else f"a run will measure again, and cache the times in {file}"
    return f"uses {auto} on {describe(layer.device)}: the fastest with a correct result; {source}"
