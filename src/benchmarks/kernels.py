"""The fused layer's kernels, compiled for a GPU that need not be there: what they use, move and compute.

python src/benchmark.py kernels target=sm_90,sm_80 trainer.precision=bf16,fp16,fp32 model.activation=relu,gelu
python src/benchmark.py kernels target=sm_90 model.kernel_size=7 data.batch_size=256

Kernels are recorded with tensors that have no data (ops/launch.py) and compiled as they would be launched. Registers
and spills are those of the machine code; how many warps fit on a multiprocessor follows from registers and shared
memory. A pass is one activation read or written: each kernel goes once over each tensor that it is given.
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
from LLMConvMixer import ConvMixerLayer
from ops import fused, fused_layer
from ops.launch import Launch, record
from runtime.console import print_table, say, si
from runtime.device import DTYPES
from training.model import make_model

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


def layer_kernels(
    batch: int, channels: int, side: int, k: int, dtype: torch.dtype, activation: str
) -> dict[str, Launch]:
    """The kernels of a layer in training, by file and function, as they would be launched."""
    with torch.device("meta"), torch.no_grad(), record() as launches:
        weights: list[Tensor] = list(ConvMixerLayer(channels, k).parameters())
        below, dz = torch.empty(2, channels, batch * side * side, dtype=dtype)
        norm = torch.empty(5, channels)
        options = (side, side, 1e-5, activation, True)
        first, first_norm, second, second_norm = fused_layer.run_forward(below, norm, weights, [], *options)
        fused_layer.run_backward(dz, norm, below, norm, first, first_norm, second, second_norm, weights, [], *options)
    named = [(launch.kernel.fn, launch) for launch in launches]
    return {f"{fn.__module__.removeprefix('ops.')}.{fn.__name__}": launch for fn, launch in named}


def tensors_of(launch: Launch) -> list[Tensor]:
    return list({id(value): value for value in launch.arguments.values() if isinstance(value, Tensor)}.values())


def passes(launch: Launch, values: int) -> int:
    """Activations, of so many values, that a kernel reads or writes."""
    return sum(tensor.numel() == values for tensor in tensors_of(launch))


def operations(launch: Launch) -> float:
    """Floating point operations of its matrix products, those with zeros of a band included."""
    given = launch.arguments
    if "n" in given:
        return 2.0 * given["inputs"] * given["outputs"] * given["n"]
    if "STRIPS" not in given:
        return 0.0
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
    target, model, (batch, channels, height, width) = TARGETS[name], config.model, shape_of(config)
    with torch.device("meta"):
        whole = make_model(config, channels, 10)
    if reason := fused.why_not(whole, torch.empty(1).expand(batch, channels, height, width)):
        raise ConfigError(f"there are no fused kernels for this model: {reason}")
    dtype, side = DTYPES[config.trainer.precision], height // model.patch_size
    rate = target.half if dtype.itemsize == 2 else target.tf32 / 3  # three products in TF32 for one in float32
    rows, total, time = [], 0, 0.0
    launches = layer_kernels(batch, model.d_model, side, model.kernel_size, dtype, model.activation)
    for kernel, launch in launches.items():
        moved = sum(tensor.numel() * tensor.itemsize for tensor in tensors_of(launch))
        seconds = max(moved / target.bandwidth, operations(launch) / rate)
        gone_over = passes(launch, batch * model.d_model * side**2)
        total, time = total + gone_over, time + seconds
        rows.append({
            "kernel": kernel, **compile_ahead(launch, name), "passes": gone_over, "moved": f"{si(moved)}B",
            "FLOP": si(operations(launch)), "roofline, ms": f"{1000 * seconds:.3f}",
        })  # fmt: skip
    say(f"{name} ({target.name}), {config.trainer.precision}, {model.activation}; not measured")
    size = f"{batch} × {model.d_model} × {side}×{side}, kernel {model.kernel_size}"
    cells = [[str(value) for value in row.values()] for row in rows]
    print_table(f"{size}: {total} passes, {1000 * time:.2f} ms a layer", list(rows[0]), cells)
