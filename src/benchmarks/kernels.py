"""The banded depthwise convolution's kernels, compiled for a GPU that need not be there: what they use and move.

python src/benchmark.py kernels target=sm_90,sm_80 trainer.precision=bf16,fp16,fp32
python src/benchmark.py kernels target=sm_90 model.kernel_size=7 data.batch_size=256

Kernels are recorded with tensors that have no data (ops/launch.py) and compiled as they would be launched. Registers
and spills are those of the machine code; how many warps fit on a multiprocessor follows from registers and shared
memory.
"""

import math
import re
import subprocess
import tempfile
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from benchmarks.setting import make_configs, shape_of
from config.errors import ConfigError
from config.schema import Config
from ops import depthwise_banded
from ops.depthwise_reference import after, before
from ops.launch import Launch, record, unsupported_reason
from runtime.console import print_table, say, si
from runtime.device import DTYPES

BASE = ["model=convmixer_256_8", "data=cifar10", "data.batch_size=512", "trainer.precision=bf16"]
GRID = ["model.patch_size=2,1", "model.kernel_size=5,9"]


@dataclass(frozen=True)
class Target:
    """From NVIDIA's data sheets and its CUDA programming guide."""

    name: str
    bandwidth: float  # bytes/s
    half: float  # FLOP/s of dense matrix products in bf16 and fp16
    tf32: float
    shared: int  # bytes on a multiprocessor
    most_shared: int  # bytes of a block


TARGETS = {
    "sm_90": Target("H100 SXM", 3.35e12, 989e12, 494e12, 233_472, 232_448),
    "sm_80": Target("A100 40 GB", 1.555e12, 312e12, 156e12, 167_936, 166_912),
}


def layer_kernels(batch: int, channels: int, side: int, k: int, dtype: torch.dtype) -> dict[str, Launch]:
    """The kernels of a depthwise convolution in training as they would be launched."""
    with torch.device("meta"), torch.no_grad(), record() as launches:
        x, dy = torch.empty(2, batch, channels, side, side, dtype=dtype)
        weight, bias = torch.empty(channels, 1, k, k, dtype=dtype), torch.empty(channels, dtype=dtype)
        depthwise_banded.run_convolution(x, weight, bias, before(k))
        depthwise_banded.run_convolution(dy, weight, None, after(k), flip=True)
        depthwise_banded.run_weight_gradient(x, dy, k)
    _, forward, _, backward_input, backward_weight = launches  # bands are built before either convolution
    return {"convolution": forward, "input_gradient": backward_input, "weight_gradient": backward_weight}


def tensors_of(launch: Launch) -> list[Tensor]:
    return list({id(value): value for value in launch.arguments.values() if isinstance(value, Tensor)}.values())


def operations(launch: Launch) -> float:
    """Floating point operations of its matrix products, those with zeros of a band included."""
    given = launch.arguments
    steps = -(-(given["ROWS"] + given["K"] - 1) // given["STEP"])
    strips = given["batch"] * -(-given["HEIGHT"] // given["ROWS"])
    return 2.0 * given["channels"] * strips * steps * given["STEP"] * given["ROWS"] * given["COLUMNS"] ** 2


def compile_ahead(launch: Launch, target: str) -> dict[str, int | str]:
    """What a launch's kernel uses as machine code for a GPU of that compute capability, by column of the table.

    Raises:
        Exception: Triton cannot compile it.
    """
    capability = int(target.removeprefix("sm_"))
    gpu = SimpleNamespace(  # what Triton asks its driver before it compiles; it keeps kernels by device
        get_current_device=lambda: capability,
        get_current_stream=lambda _: 0,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
    )
    triton.runtime.driver.set_active(gpu)
    compiled = launch.kernel.warmup(**launch.arguments, grid=launch.grid)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    (registers, stack) = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
    found = re.search(r"(wgmma)\.mma_async|(mma)\.sync", compiled.asm["ptx"])
    shared, warps, device = compiled.metadata.shared, launch.arguments["num_warps"], TARGETS[target]
    by_registers = 65_536 // (math.ceil(registers / 8) * 256 * warps)
    by_shared = device.shared // (shared + 1024) if shared <= device.most_shared else 0
    blocks = min(by_registers, by_shared, 64 // warps)
    return {
        "registers": registers,  # of a thread
        "spilled": stack,  # bytes of a thread
        "shared": f"{si(shared)}B",  # of a block
        "instruction": found[found.lastindex or 0] if found else "none",  # that multiplies matrices
        "warps/SM": blocks * warps,  # that fit on a multiprocessor at once
    }


def run(overrides: list[str]) -> None:
    """ConvMixer-256/8 unless told otherwise, in batches of 512 in bf16: kernels 5 and 9 on grids of 16×16 and 32×32."""
    targets = ",".join(each.removeprefix("target=") for each in overrides if each.startswith("target=")) or "sm_90"
    configs = make_configs([*BASE, *GRID, *(each for each in overrides if not each.startswith("target="))])
    for target in targets.split(","):
        if target not in TARGETS:
            raise ConfigError(f"target={target}: expected one of {', '.join(TARGETS)}")
        for config in configs:
            show(config, target)


def show(config: Config, name: str) -> None:
    target, model, (batch, _, height, _) = TARGETS[name], config.model, shape_of(config)
    dtype, side, k = DTYPES[config.trainer.precision], height // model.patch_size, model.kernel_size
    x = torch.empty(1, dtype=dtype).expand(batch, model.d_model, side, side)
    if reason := unsupported_reason(side, side, k, x.numel(), dtype):
        raise ConfigError(f"model.kernel_size={k}: there are no kernels: {reason}")
    rate = target.half if dtype.itemsize == 2 else target.tf32 / 3  # three products in TF32 for one in float32
    rows, time = [], 0.0
    for kernel, launch in layer_kernels(batch, model.d_model, side, k, dtype).items():
        moved = sum(tensor.numel() * tensor.itemsize for tensor in tensors_of(launch))
        seconds = max(moved / target.bandwidth, operations(launch) / rate)
        time += seconds
        rows.append({
            "kernel": kernel, **compile_ahead(launch, name), "moved": f"{si(moved)}B",
            "FLOP": si(operations(launch)), "roofline, ms": f"{1000 * seconds:.3f}",
        })  # fmt: skip
    say(f"{name} ({target.name}), {config.trainer.precision}; not measured")
    cells = [[str(value) for value in row.values()] for row in rows]
    print_table(f"{batch} × {model.d_model} × {side}×{side}, kernel {k}: {1000 * time:.2f} ms", list(rows[0]), cells)
