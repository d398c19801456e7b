"""Compilation of the depthwise convolution's Triton kernels for any GPU, without one, and lower bounds of their times.

python src/benchmark.py kernels target=sm_90,sm_86 trainer.precision=bf16,fp32 model.kernel_size=3,9 model.patch_size=1

Nothing is measured. Launches are recorded with tensors without data (ops/launch.py), compiled with their arguments and
disassembled. Registers, spills and shared memory come from the machine code; they limit the blocks on a multiprocessor.
A kernel takes at least the longest of three times, at the rates of the GPU's data sheet: for reading and writing its
tensors once, for its matrix products, and for issuing its instructions.
"""

import math
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from benchmarks.setting import make_configs, shape_of
from config.errors import ConfigError
from config.schema import Config
from ops import depthwise_banded
from ops.depthwise import unsupported_reason
from ops.depthwise_reference import after, before
from ops.launch import Launch, record
from runtime.console import print_table, say, si
from runtime.device import DTYPES

LAYER = ["model=convmixer_256_8", "data=cifar10", "data.batch_size=512", "trainer.precision=bf16"]
LAYER += ["model.patch_size=2,1", "model.kernel_size=5,9"]


@dataclass(frozen=True)
class Target:
    """A GPU's figures in NVIDIA's data sheets and CUDA programming guide."""

    name: str
    bandwidth: float  # bytes/s
    half: float  # FLOP/s of dense matrix products in bf16 and fp16, accumulated in fp32
    tf32: float
    multiprocessors: int
    clock: float  # 1/s
    warps: int  # most on a multiprocessor
    shared: int  # bytes of shared memory on a multiprocessor; a block can use 1 KiB less


# The architectures of PyTorch's wheel from 8.0 on, and sm_89, which runs code for sm_86.
TARGETS = {
    "sm_80": Target("A100 SXM 80 GB", 2.04e12, 312e12, 156e12, 108, 1.41e9, 64, 164 * 1024),
    "sm_86": Target("RTX 3090", 0.936e12, 71e12, 35.6e12, 82, 1.70e9, 48, 100 * 1024),
    "sm_89": Target("RTX 4090", 1.008e12, 165e12, 82.6e12, 128, 2.52e9, 48, 100 * 1024),
    "sm_90": Target("H200 SXM", 4.8e12, 989e12, 494e12, 132, 1.83e9, 64, 228 * 1024),
    "sm_100": Target("B200", 8.0e12, 2250e12, 1125e12, 148, 1.85e9, 64, 228 * 1024),
    "sm_120": Target("RTX 5090", 1.792e12, 209e12, 105e12, 170, 2.41e9, 48, 100 * 1024),
}
HALF_RATE = re.compile(  # integers, logic, comparisons and conversions use 16 lanes for 32 threads
    r"I?MOV|U?SEL|FSEL|LOP3|SHF|PRMT|IADD|IABS|[IF]SETP|LEA|PLOP3|V?[IF]M(NM|AX)|F2F|I2F|F2I|SGXT|BMSK|FLO|POPC|IMAD"
)


@dataclass(frozen=True)
class Compiled:
    """Figures of a kernel's machine code."""

    registers: int  # for each thread
    spilled: int  # bytes of a thread that do not fit into registers
    shared: int  # bytes of shared memory of a block
    product: str  # the instruction that multiplies matrices
    issued: float  # the fewest scheduler slots that a warp takes
    requested: float  # bytes that a warp loads and stores, from any cache


def layer_kernels(batch: int, channels: int, side: int, k: int, dtype: torch.dtype) -> dict[str, Launch]:
    """Record the launches of a depthwise convolution in training."""
    with torch.device("meta"), torch.no_grad(), record() as launches:
        x, dy = torch.empty(2, batch, channels, side, side, dtype=dtype)
        weight, bias = torch.empty(channels, 1, k, k, dtype=dtype), torch.empty(channels, dtype=dtype)
        depthwise_banded.run_convolution(x, weight, bias, before(k))
        depthwise_banded.run_convolution(dy, weight, None, after(k), flip=True)
        depthwise_banded.run_correlation(x, dy, k)
    _, convolution, _, input_gradient, weight_gradient = launches  # bands are built before either convolution
    return {"convolution": convolution, "input_gradient": input_gradient, "weight_gradient": weight_gradient}


def moved(launch: Launch) -> int:
    return sum(value.nbytes for value in launch.arguments.values() if isinstance(value, Tensor))


def turns(launch: Launch) -> int:
    """Count the matrix products of a program's loop."""
    return launch.arguments.get("STEPS") or launch.arguments["blocks"]


def operations(launch: Launch) -> float:
    """Count floating point operations of all products, including zeros of a band and padding."""
    sizes = launch.arguments
    size = sizes["STRIPS"] * sizes["STEP"] * sizes["ROWS"] * sizes["COLUMNS"] ** 2
    return 2.0 * math.prod(launch.grid) * turns(launch) * size * (3 if precision_of(launch) == "tf32x3" else 1)


def precision_of(launch: Launch) -> str:
    half = next(value for value in launch.arguments.values() if isinstance(value, Tensor)).itemsize == 2
    return "half" if half else launch.arguments["PRECISION"]


def compile_ahead(launch: Launch, target: str) -> Compiled:
    """Compile a launch's kernel for a GPU of a compute capability; Triton raises exceptions of many classes."""
    capability = int(target.removeprefix("sm_"))
    gpu = SimpleNamespace(  # the part of the driver that Triton's compiler calls; kernels are cached by device
        get_current_device=lambda: capability,
        get_current_stream=lambda _: 0,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
    )
    triton.runtime.driver.set_active(gpu)
    compiled = launch.kernel.warmup(**launch.arguments, grid=launch.grid)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([tool.path, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (
                (triton.knobs.nvidia.cuobjdump, "--dump-resource-usage"),
                (triton.knobs.nvidia.nvdisasm, "--print-code"),
            )
        )
    (registers, stack) = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
    of_warp = operations(launch) / math.prod(launch.grid) / launch.arguments["num_warps"]
    executed = executions(code, of_warp, turns(launch))
    return Compiled(
        registers, stack, compiled.metadata.shared,
        next((name.partition(".")[0] for name in executed if "MMA" in name), "none"),
        max(executed.total(), sum(2 * n for name, n in executed.items() if HALF_RATE.match(name))),
        sum(32 * n * width(name) for name, n in executed.items() if re.match(r"LDG|STG", name)),
    )  # fmt: skip


def executions(code: str, operations: float, turns: int) -> Counter[str]:
    """Count how often a warp executes each instruction.

    The loop with matrix products is repeated until it has done the operations, or `turns` times if the machine code
    does not show the size of a product (sm_100). Other loops wait for something and count once.

    Raises:
        ValueError: There are several loops with products.
    """
    names, labels, loops = list[str](), dict[str, int](), list[Counter[str]]()
    for line in code.splitlines():
        if label := re.match(r"\.(L_\w+):", line):
            labels[label[1]] = len(names)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*);", line):
            names.append(instruction[1])
            to = re.search(r"\(\.(L_\w+)\)", instruction[2])
            if to and instruction[1].startswith("BRA") and to[1] in labels:
                loops.append(Counter(names[labels[to[1]] :]))
    executed, loops = Counter(names), [loop for loop in loops if any("MMA" in name for name in loop)]
    if len(loops) > 1:
        raise ValueError(f"{len(loops)} loops with matrix products in a kernel's machine code, expected one at most")
    for loop in loops:
        rounds = 1 + (operations - products(executed)) / products(loop) if products(loop) else turns
        for name, n in loop.items():
            executed[name] += round(n * (rounds - 1))
    return executed


def products(instructions: Counter[str]) -> float:
    """Count floating point operations of a warp's matrix products; four warps share an HGMMA."""
    total = 0.0
    for name, n in instructions.items():
        if shape := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", name):
            total += 2 * n * int(shape[1]) * int(shape[2]) * int(shape[3]) / 4
        elif shape := re.match(r"HMMA\.16(8)(\d+)", name):
            total += 2 * n * 16 * 8 * int(shape[2])
    return total


def width(name: str) -> int:
    """Return the bytes that a thread loads or stores."""
    bits = re.search(r"\.[US]?(128|64|16|8)\b", name)
    return int(bits[1]) // 8 if bits else 4


def run(overrides: list[str]) -> None:
    """Show the kernels of ConvMixer-256/8, by default kernel 5 and 9, patch 2 and 1, batches of 512 in bf16."""
    named = ",".join(text.removeprefix("target=") for text in overrides if text.startswith("target="))
    targets = (named or "sm_90").split(",")
    configs = make_configs([*LAYER, *(text for text in overrides if not text.startswith("target="))])
    for target in targets:
        if target not in TARGETS:
            raise ConfigError(f"target={target}: expected one of {', '.join(TARGETS)}, from compute capability 8.0 on")
    for target, config in product(targets, configs):
        show(config, target)


def show(config: Config, name: str) -> None:
    target, model, (batch, _, height, _) = TARGETS[name], config.model, shape_of(config)
    dtype, side, k = DTYPES[config.trainer.precision], height // model.patch_size, model.kernel_size
    x = torch.empty(batch, model.d_model, side, side, dtype=dtype, device="meta")
    if reason := unsupported_reason("banded", x, torch.empty(1, 1, k, k)):
        raise ConfigError(f"model.kernel_size={k}: backend banded {reason}")
    rows, total = [], 0.0
    for kernel, launch in layer_kernels(batch, model.d_model, side, k, dtype).items():
        compiled, warps = compile_ahead(launch, name), launch.arguments["num_warps"]
        milliseconds = times(launch, compiled, target)
        total += max(milliseconds.values())
        rows.append({
            "kernel": kernel, "registers": compiled.registers, "spilled": compiled.spilled,
            "shared": f"{si(compiled.shared)}B", "blocks": blocks_at_once(compiled, warps, target),
            "product": compiled.product, "requested": f"{si(compiled.requested * warps * math.prod(launch.grid))}B",
            **{f"{bound}, ms": f"{time:.3f}" for bound, time in milliseconds.items()},
        })  # fmt: skip
    say(f"{name} ({target.name}), {config.trainer.precision}; counted, not measured")
    cells = [[str(value) for value in row.values()] for row in rows]
    print_table(f"{batch} × {model.d_model} × {side}×{side}, kernel {k}: {total:.2f} ms", list(rows[0]), cells)


def times(launch: Launch, compiled: Compiled, target: Target) -> dict[str, float]:
    """Compute a kernel's least milliseconds by each bound."""
    slots = 4 * target.multiprocessors * target.clock
    rate = target.half if precision_of(launch) == "half" else target.tf32
    return {
        "memory": 1000 * moved(launch) / target.bandwidth,
        "products": 1000 * operations(launch) / rate,
        "instructions": 1000 * compiled.issued * launch.arguments["num_warps"] * math.prod(launch.grid) / slots,
    }


def blocks_at_once(compiled: Compiled, warps: int, target: Target) -> int:
    """Compute the number of blocks that fit on a multiprocessor."""
    by_registers = 65_536 // (-(-compiled.registers // 8) * 8 * 32 * warps)
    by_shared = target.shared // (compiled.shared + 1024) if compiled.shared <= target.shared - 1024 else 0
    return min(by_registers, by_shared, target.warps // warps)
