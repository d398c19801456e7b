"""The fused layer's kernels, compiled for a GPU that need not be there: what they use, move and compute.

python src/benchmark.py kernels target=sm_90,sm_80 precision=bf16,fp16,fp32 activation=relu,gelu
python src/benchmark.py kernels batch_size=512 d_model=256 side=16,32 kernel_size=5,9      # of the grid, of the kernel

Kernels are recorded with tensors that have no data (ops/launch.py) and compiled as they would be launched. Registers
and spills are those of the machine code; how many blocks fit on a multiprocessor follows from registers, shared memory
and warps. A pass is one activation read or written: each kernel goes once over each tensor that it is given.
"""

import math
import re
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.errors import ConfigError
from ops import batch_norm, depthwise_banded, pointwise
from ops.bands import build_bands
from ops.batch_norm import Through
from ops.fused_layer import grid
from ops.launch import Launch, record
from ops.pointwise import Mixed
from runtime.console import print_table, say, si
from runtime.device import DTYPES

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


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


@dataclass(frozen=True)
class Compiled:
    registers: int  # of a thread
    spilled: int  # bytes of a thread
    shared: int  # bytes of a block
    tensor_core: str  # the instruction that multiplies matrices
    blocks: int  # that fit on a multiprocessor at once


def layer_kernels(
    batch: int, channels: int, side: int, k: int, dtype: torch.dtype, activation: str
) -> dict[str, Launch]:
    """The six kernels of a layer (ops/fused_layer.py) and the small ones between them, as they would be launched."""

    def activations() -> Tensor:
        return torch.empty(channels, batch * side * side, dtype=dtype, device="meta")

    def small(*shape: int) -> Tensor:
        return torch.empty(*shape, device="meta")

    below, first, second, dz = (activations() for _ in range(4))
    norm, kernel, matrix, bias = (
        small(5, channels),
        small(channels, 1, k, k),
        small(channels, channels),
        small(channels),
    )
    x, dmixed = grid(below, side, side), grid(activations(), side, side)
    through = Through(grid(first, side, side), norm, norm, 0.5)
    through_second, mixed = Through(second, norm, norm, 0.5), Mixed(first, norm, below, norm)
    with record() as launches:
        depthwise_banded.run_forward(x, kernel, bias, norm, activation, with_parts=True)
        _, moments = pointwise.run_forward(mixed, matrix, bias, activation, with_parts=True)
        _, sums = pointwise.run_backward_input(dz, matrix, through_second, activation, first, norm)
        pointwise.run_backward_weight(mixed, dz, matrix, through_second, activation)
        depthwise_banded.run_backward_input(dmixed, kernel, through, activation, True, x, norm)
        depthwise_banded.run_backward_weight(x, dmixed, k, norm, through, activation)
    assert moments is not None and sums is not None
    bands = [launch for launch in launches if launch.kernel is build_bands]
    names = ["forward 1", "forward 2", "backward 1", "backward 2", "backward 3", "backward 4"]
    kernels = dict(zip(names, (launch for launch in launches if launch.kernel is not build_bands), strict=True))
    with record() as between:
        batch_norm.moments_to_norm(moments, bias, bias, 1e-5)
        batch_norm.sum_parts(sums)
    return kernels | dict(zip(("bands", "moments", "sums"), (bands[0], *between), strict=True))


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


def compile_ahead(launch: Launch, target: str) -> Compiled:
    """A launch's kernel as machine code for a GPU of that compute capability.

    Raises:
        Exception: Triton cannot compile it.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        kind = "constexpr"
        if isinstance(value, Tensor):
            kind = TYPES[value.dtype]
        elif not parameter.is_constexpr and isinstance(value, float):
            kind = "fp32"
        elif not parameter.is_constexpr and isinstance(value, int) and value != 1:  # as Triton's launcher does
            kind = "i32"
        if kind == "constexpr":
            constants[parameter.name] = value
        elif isinstance(value, Tensor) or (kind == "i32" and value % 16 == 0):
            attributes[(parameter.num,)] = [["tt.divisibility", 16]]
        signature[parameter.name] = kind
    compiled = triton.compile(
        ASTSource(launch.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", int(target.removeprefix("sm_")), 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    (registers, stack) = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
    found = re.search(r"wgmma\.mma_async|mma\.sync", compiled.asm["ptx"])
    shared, device = compiled.metadata.shared, TARGETS[target]
    by_registers = 65_536 // (math.ceil(registers / 8) * 256 * launch.warps)
    by_shared = device.shared // (shared + 1024) if shared <= device.most_shared else 0
    blocks = min(by_registers, by_shared, 64 // launch.warps)
    return Compiled(registers, stack, shared, found[0].split(".")[0] if found else "none", blocks)


def run(overrides: list[str]) -> None:
    header = (
        "kernel", "registers", "spilled", "shared", "instruction", "blocks/SM", "warps/SM", "passes", "moved",
        "FLOP", "roofline, ms",
    )  # fmt: skip
    for setting in settings(overrides):
        target, dtype = TARGETS[setting["target"]], DTYPES[setting["precision"]]
        batch, channels, side, k = (int(setting[key]) for key in LIMITS)
        rate = target.half if dtype.itemsize == 2 else target.tf32 / 3  # three products in TF32 for one in float32
        rows, total, time = [], 0, 0.0
        for name, launch in layer_kernels(batch, channels, side, k, dtype, setting["activation"]).items():
            compiled = compile_ahead(launch, setting["target"])
            moved = sum(tensor.numel() * tensor.itemsize for tensor in tensors_of(launch))
            seconds = max(moved / target.bandwidth, operations(launch) / rate)
            gone_over = passes(launch, batch * channels * side**2)
            total, time = total + gone_over, time + seconds
            rows.append((
                name, str(compiled.registers), str(compiled.spilled), f"{si(compiled.shared)}B", compiled.tensor_core,
                str(compiled.blocks), str(compiled.blocks * launch.warps), str(gone_over), f"{si(moved)}B",
                si(operations(launch)), f"{1000 * seconds:.3f}",
            ))  # fmt: skip
        say(f"{setting['target']} ({target.name}), {setting['precision']}, {setting['activation']}; not measured")
        title = f"{batch} × {channels} × {side}×{side}, kernel {k}: {total} passes, {1000 * time:.2f} ms a layer"
        print_table(title, header, rows)


CHOICES = {"target": list(TARGETS), "precision": list(DTYPES), "activation": ["relu", "gelu"]}
LIMITS = {"batch_size": 65_536, "d_model": 65_535, "side": 64, "kernel_size": 31}


def settings(overrides: list[str]) -> list[dict[str, str]]:
    """Every combination of the values that are given, comma-separated, or of the defaults."""
    given = {
        "target": "sm_90", "precision": "bf16", "activation": "relu",
        "batch_size": "512", "d_model": "256", "side": "16,32", "kernel_size": "5,9",
    }  # fmt: skip
    for override in overrides:
        key, _, values = override.partition("=")
        if key not in given:
            raise ConfigError(f"{override}: kernels takes {', '.join(given)}")
        for value in values.split(","):
            if key in CHOICES and value not in CHOICES[key]:
                raise ConfigError(f"{key}={value}: expected one of {', '.join(CHOICES[key])}")
            if key in LIMITS and not (value.isdecimal() and 1 <= int(value) <= LIMITS[key]):
                raise ConfigError(f"{key}={value}: expected a whole number from 1 to {LIMITS[key]}")
        given[key] = values
    return [dict(zip(given, values, strict=True)) for values in product(*(text.split(",") for text in given.values()))]
