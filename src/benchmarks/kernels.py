"""The fused layer's kernels, compiled for a GPU that need not be there: what they use, move and compute.

python src/benchmark.py kernels target=sm_90       or sm_80; precision=bf16, fp16 or fp32; activation=relu or gelu

Kernels are recorded with tensors that have no data (ops/launch.py) and compiled as they would be launched. Registers
and spills are those of the machine code; how many blocks fit on a multiprocessor follows from registers, shared memory
and warps. A pass is one activation read or written: each kernel goes once over each tensor that it is given.
"""

import math
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.errors import ConfigError
from ops import depthwise_banded, pointwise
from ops.batch_norm import Through
from ops.fused_layer import grid
from ops.launch import Launch, record
from ops.pointwise import Mixed
from runtime.console import print_table, say, si
from runtime.device import DTYPES

SHAPES = [(512, 256, 16, 5), (512, 256, 16, 9), (512, 256, 32, 5), (512, 256, 32, 9)]  # batch, channels, side, kernel
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
    """The six kernels of a layer (ops/fused_layer.py), as they would be launched."""

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
        pointwise.run_forward(mixed, matrix, bias, activation, with_parts=True)
        pointwise.run_backward_input(dz, matrix, through_second, activation, first, norm)
        pointwise.run_backward_weight(mixed, dz, matrix, through_second, activation)
        depthwise_banded.run_backward_input(dmixed, kernel, through, activation, True, x, norm)
        depthwise_banded.run_backward_weight(x, dmixed, k, norm, through, activation)
    main = [launch for launch in launches if launch.kernel is not depthwise_banded.build_bands]
    names = ["forward 1", "forward 2", "backward 1", "backward 2", "backward 3", "backward 4"]
    return dict(zip(names, main, strict=True))


def passes(launch: Launch) -> int:
    """Activations that a kernel reads or writes; as many values as the largest of its tensors has."""
    tensors = {id(value): value.numel() for value in launch.arguments.values() if isinstance(value, Tensor)}
    return sum(size == max(tensors.values()) for size in tensors.values())


def operations(launch: Launch) -> float:
    """Floating point operations of its matrix products, those with zeros of a band included."""
    given = launch.arguments
    if "K" not in given:
        return 2.0 * given["inputs"] * given["outputs"] * given["n"]
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
    given = {"target": "sm_90", "precision": "bf16", "activation": "relu"}
    given |= dict(override.split("=", 1) for override in overrides if "=" in override)
    options = {"target": list(TARGETS), "precision": list(DTYPES), "activation": ["relu", "gelu"]}
    for key, value in given.items():
        if key not in options:
            raise ConfigError(f"{key}={value}: kernels takes {', '.join(options)}")
        if value not in options[key]:
            raise ConfigError(f"{key}={value}: expected one of {', '.join(options[key])}")
    target, dtype = TARGETS[given["target"]], DTYPES[given["precision"]]
    rate = target.half if dtype.itemsize == 2 else target.tf32 / 3  # three products in TF32 for one in float32
    header = (
        "kernel", "registers", "spilled", "shared", "instruction", "blocks/SM", "warps/SM", "passes", "moved",
        "FLOP", "roofline, ms",
    )  # fmt: skip
    say(f"{given['target']} ({target.name}), {given['precision']}, {given['activation']}; compiled, not measured")
    for batch, channels, side, k in SHAPES:
        rows, total, time = [], 0, 0.0
        for name, launch in layer_kernels(batch, channels, side, k, dtype, given["activation"]).items():
            compiled = compile_ahead(launch, given["target"])
            moved = passes(launch) * batch * channels * side * side * dtype.itemsize
            seconds = max(moved / target.bandwidth, operations(launch) / rate)
            total, time = total + passes(launch), time + seconds
            rows.append((
                name, str(compiled.registers), str(compiled.spilled), f"{si(compiled.shared)}B", compiled.tensor_core,
                str(compiled.blocks), str(compiled.blocks * launch.warps), str(passes(launch)), f"{si(moved)}B",
                si(operations(launch)), f"{1000 * seconds:.3f}",
            ))  # fmt: skip
        title = f"{batch} × {channels} × {side}×{side}, kernel {k}: {total} passes, {1000 * time:.2f} ms a layer"
        print_table(title, header, rows)
