"""How fast a ConvMixer could be trained and evaluated on this device at best.

BatchNorm needs the statistics of a whole batch before it can normalize, so a layer's training takes four kernels,
however much is fused into each. An activation is a batch's grid; a pass reads or writes it once. z, the layer's input,
is never stored: it is BatchNorm's affine map of b, the activation that the layer below stores.

    forward    depthwise   read z; write a = σ(depthwise z), and sum up a's statistics                   2 passes
               pointwise   read a, z; write b = σ(pointwise(BN(a) + z)), and sum up b's statistics       3
    backward   pointwise   read dz, b, a, z; write dz', and sum up what BatchNorm's gradients of a need  5
               depthwise   read dz', a, z; write dz of the layer below, and its sums                     4

14 passes; the gradients of both kernels are summed up on the way. In inference BatchNorm is part of the weights, and a
layer one kernel of 2 passes.

A kernel takes as long as its passes, or as its arithmetic if that takes longer. On a GPU the pointwise convolution runs
on tensor cores; whether the depthwise convolution does as well is the question, so there is a roofline for either.
"""

from dataclasses import dataclass

import torch

from benchmarks.setting import shape_of
from config.schema import Config
from runtime.device import DTYPES
from runtime.timing import seconds_of


@dataclass(frozen=True)
class Rates:
    """What the device was measured to do.

    Attributes:
        bandwidth: bytes per second that a copy reads and writes.
        matrix: floating point operations per second of a matrix product in the run's precision; in fp32 on a GPU
            with TF32, as PyTorch's convolutions do by default.
        plain: the same in fp32 without tensor cores.
        cache: bytes of the last cache before memory; 0 where unknown.
    """

    bandwidth: float
    matrix: float
    plain: float
    cache: int = 0


@dataclass(frozen=True)
class Kernel:
    passes: int
    depthwise: int = 0  # how often it does the forward pass's multiply-accumulates
    pointwise: int = 0


TRAINING = (
    Kernel(2, depthwise=1),
    Kernel(3, pointwise=1),
    Kernel(5, pointwise=2),  # gradients of its input and of its weights
    Kernel(4, depthwise=2),
)
INFERENCE = (Kernel(2, depthwise=1, pointwise=1),)


def roofline(config: Config, rates: Rates, depthwise_apart: bool = False) -> dict[str, float]:
    """Images per second of "training" and "inference" that no implementation exceeds.

    The patch embedding and the head, which are small, count as nothing.

    Args:
        depthwise_apart: the depthwise convolution has no part in tensor cores, and may run beside them.
    """
    model, dtype = config.model, DTYPES[config.trainer.precision]
    values = positions(config) * model.d_model

    def seconds(kernel: Kernel) -> float:
        memory = kernel.passes * values * dtype.itemsize / rates.bandwidth
        depthwise = 2 * kernel.depthwise * values * model.kernel_size**2
        pointwise = 2 * kernel.pointwise * values * model.d_model
        if depthwise_apart:
            return max(memory, depthwise / rates.plain, pointwise / rates.matrix)
        return max(memory, (depthwise + pointwise) / rates.matrix)

    kernels = {"training": TRAINING, "inference": INFERENCE}
    return {what: 1 / (model.depth * sum(map(seconds, kernels[what]))) for what in kernels}


def positions(config: Config) -> int:
    """Of an image's grid."""
    return (shape_of(config)[-1] // config.model.patch_size) ** 2


def activation_bytes(config: Config) -> int:
    """Of a whole batch. Where the last cache holds twice that, a kernel may find what the one before it wrote, and
    the bound by memory is not strict."""
    return shape_of(config)[0] * positions(config) * config.model.d_model * DTYPES[config.trainer.precision].itemsize


def measure_rates(config: Config, device: torch.device) -> Rates:
    on_gpu = device.type == "cuda"
    n, size = (8192, 2**30) if on_gpu else (2048, 2**28)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = seconds_of(lambda: target.copy_(source), device)

    def operations_per_second(dtype: torch.dtype, tf32: bool) -> float:
        matrix = torch.randn(n, n, device=device, dtype=dtype)
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            return 2 * n**3 / seconds_of(lambda: matrix @ matrix, device)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed

    return Rates(
        bandwidth=2 * size / copy,
        matrix=operations_per_second(DTYPES[config.trainer.precision], torch.backends.cudnn.allow_tf32),
        plain=operations_per_second(torch.float32, tf32=False),
        cache=torch.cuda.get_device_properties(device).L2_cache_size if on_gpu else 0,
    )
