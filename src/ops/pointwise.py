# mypy: disable-error-code=no-untyped-def
"""The pointwise convolution as one matrix product, in Triton, with all that surrounds it in a ConvMixer layer.

With activations as [channels, positions], the positions of all images of a batch in a row, it is W [outputs, inputs]
times x [inputs, positions]. On the way in x is normalized, and the normalized input of the layer added to it; on the
way out come bias, activation and the parts of BatchNorm's statistics, or in the backward pass of their gradients' sums.
So each tensor of a batch is read and written once, as often as the product itself would.

    forward           a program: OUTPUTS × POSITIONS of the result, going through the inputs, INPUTS at a time
    input gradient    the same with Wᵀ
    weight gradient   a program: OUTPUTS × INPUTS of the result for a share of the positions, going through them
                      POSITIONS at a time; the shares' parts are added in order

Cost for n = channels · positions, with as many outputs as inputs: the forward pass reads 2n and writes n values, the
input gradient reads 3n and writes n, the weight gradient reads 4n; channels multiply-accumulates a value each, on
tensor cores, in float32. Programs that need the same positions run side by side, so that all but the first find them
in the L2 cache; with up to OUTPUTS channels there is one.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ops.batch_norm import MEAN, SCALE, SHIFT, Through, activated, gradient, gradient_coefficients, stored_of
from ops.launch import launch


@triton.jit
def mixed(x, norm, skip, skip_norm, channel, position, channels, n, ACTIVATION: tl.constexpr):
    """A tile of the product's input: x, or where `norm` is given BN(σ(x)) + BN(σ(skip)), the latter if there is one."""
    wanted = channel < channels
    at = channel * n + position
    inside = wanted & (position < n)
    tile = tl.load(x + at, mask=inside, other=0.0)
    if norm is not None:
        scale = tl.load(norm + SCALE * channels + channel, mask=wanted, other=0.0)
        shift = tl.load(norm + SHIFT * channels + channel, mask=wanted, other=0.0)
        value = activated(tile, ACTIVATION) * scale + shift
        if skip is not None:
            scale = tl.load(skip_norm + SCALE * channels + channel, mask=wanted, other=0.0)
            shift = tl.load(skip_norm + SHIFT * channels + channel, mask=wanted, other=0.0)
            value += activated(tl.load(skip + at, mask=inside, other=0.0), ACTIVATION) * scale + shift
        tile = value.to(x.dtype.element_ty)
    return tile


@triton.jit
def gradient_tile(dz, stored, norm, sums, channel, position, channels, n, inverse_count, ACTIVATION: tl.constexpr):
    """A tile of the gradient before BatchNorm and σ, in float32; zero beyond the tensor."""
    wanted = channel < channels
    at = channel * n + position
    inside = wanted & (position < n)
    mean, scale, offset, slope = gradient_coefficients(norm, sums, channel, channels, wanted, inverse_count)
    dz_tile = tl.load(dz + at, mask=inside, other=0.0)
    stored_tile = tl.load(stored + at, mask=inside, other=0.0)
    return tl.where(inside, gradient(dz_tile, stored_tile, mean, scale, offset, slope, ACTIVATION), 0.0)


@triton.jit
def forward(
    x, x_norm, skip, skip_norm, weight, bias, y, parts, inputs, outputs, n,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, POSITIONS: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y = stored(σ(weight · mixed(x) + bias)), and the parts of its moments."""
    blocks_out = tl.cdiv(outputs, OUTPUTS)
    block = tl.program_id(0) // blocks_out
    output = tl.program_id(0) % blocks_out * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
    position = block * POSITIONS + tl.arange(0, POSITIONS)[None, :]
    total = tl.zeros((OUTPUTS, POSITIONS), tl.float32)
    for first in range(0, inputs, INPUTS):
        channel = first + tl.arange(0, INPUTS)
        rows, columns = channel[:, None], channel[None, :]
        tile = mixed(x, x_norm, skip, skip_norm, rows, position, inputs, n, ACTIVATION)
        inside = (output < outputs) & (columns < inputs)
        total = tl.dot(
            tl.load(weight + output * inputs + columns, mask=inside, other=0.0), tile, total, input_precision=PRECISION
        )
    wanted = output < outputs
    total += tl.load(bias + output, mask=wanted, other=0.0).to(tl.float32)
    result = stored_of(total, ACTIVATION).to(y.dtype.element_ty)
    inside = wanted & (position < n)
    tl.store(y + output * n + position, result, mask=inside)
    if parts is not None:
        value = activated(result, ACTIVATION)
        count = tl.sum(tl.where(position < n, 1.0, 0.0))
        mean = tl.sum(tl.where(inside, value, 0.0), axis=1, keep_dims=True) / count
        difference = tl.where(inside, value - mean, 0.0)
        parts += block * 3 * outputs + output
        tl.store(parts, mean * 0.0 + count, mask=wanted)
        tl.store(parts + outputs, mean, mask=wanted)
        tl.store(parts + 2 * outputs, tl.sum(difference * difference, axis=1, keep_dims=True), mask=wanted)


@triton.jit
def backward_input(
    dz, stored, norm, sums, weight, dx, below, below_norm, parts, inputs, outputs, n, inverse_count,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, POSITIONS: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dx = weightᵀ · gradient(dz), and with `below`, which x is the normalization of, the parts of its sums."""
    blocks_in = tl.cdiv(inputs, INPUTS)
    block = tl.program_id(0) // blocks_in
    channel = tl.program_id(0) % blocks_in * INPUTS + tl.arange(0, INPUTS)[:, None]
    position = block * POSITIONS + tl.arange(0, POSITIONS)[None, :]
    wanted = channel < inputs
    total = tl.zeros((INPUTS, POSITIONS), tl.float32)
    for first in range(0, outputs, OUTPUTS):
        output = first + tl.arange(0, OUTPUTS)
        rows, columns = output[:, None], output[None, :]
        du = gradient_tile(dz, stored, norm, sums, rows, position, outputs, n, inverse_count, ACTIVATION)
        transposed = tl.load(weight + columns * inputs + channel, mask=wanted & (columns < outputs), other=0.0)
        total = tl.dot(transposed, du.to(dz.dtype.element_ty), total, input_precision=PRECISION)
    result = total.to(dx.dtype.element_ty)
    inside = wanted & (position < n)
    at = channel * n + position
    tl.store(dx + at, result, mask=inside)
    if below is not None:
        value = activated(tl.load(below + at, mask=inside, other=0.0), ACTIVATION)
        centered = value - tl.load(below_norm + MEAN * inputs + channel, mask=wanted, other=0.0)
        rounded = tl.where(inside, result.to(tl.float32), 0.0)
        parts += block * 2 * inputs + channel
        tl.store(parts, tl.sum(rounded, axis=1, keep_dims=True), mask=wanted)
        tl.store(parts + inputs, tl.sum(rounded * centered, axis=1, keep_dims=True), mask=wanted)


@triton.jit
def backward_weight(
    x, x_norm, skip, skip_norm, dz, stored, norm, sums, parts, bias_parts, inputs, outputs, n, blocks, inverse_count,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, POSITIONS: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """parts [shares, outputs, inputs] of the weight's gradient, bias_parts [shares, outputs] of the bias's."""
    blocks_in = tl.cdiv(inputs, INPUTS)
    share = tl.program_id(1)
    first_input = tl.program_id(0) % blocks_in * INPUTS
    output = tl.program_id(0) // blocks_in * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros((OUTPUTS, INPUTS), tl.float32)
    bias_total = tl.zeros((OUTPUTS,), tl.float32)
    for block in range(blocks):
        position = (share * blocks + block) * POSITIONS + tl.arange(0, POSITIONS)[None, :]
        rows = first_input + tl.arange(0, INPUTS)[:, None]
        tile = mixed(x, x_norm, skip, skip_norm, rows, position, inputs, n, ACTIVATION)
        du = gradient_tile(dz, stored, norm, sums, output[:, None], position, outputs, n, inverse_count, ACTIVATION)
        bias_total += tl.sum(du, axis=1)
        total = tl.dot(du.to(dz.dtype.element_ty), tl.trans(tile), total, input_precision=PRECISION)
    tl.store(bias_parts + share * outputs + output, bias_total, mask=(output < outputs) & (first_input == 0))
    rows, columns = output[:, None], first_input + tl.arange(0, INPUTS)[None, :]
    to = parts + (share * outputs + rows) * inputs + columns
    tl.store(to, total, mask=(rows < outputs) & (columns < inputs))


# Launching: as in depthwise_banded.py, by shape and type alone. GELU takes more registers than ReLU.


def tiles(weight: Tensor, x: Tensor, half: tuple[int, int, int], full: tuple[int, int, int]) -> dict[str, Any]:
    """OUTPUTS, INPUTS and POSITIONS at most, for tensors of 2 and of 4 bytes a value, and the tensors' sizes."""
    outputs, inputs = weight.shape
    most_out, most_in, positions = half if x.element_size() == 2 else full
    return {
        "OUTPUTS": min(most_out, max(16, triton.next_power_of_2(outputs))),
        "INPUTS": min(most_in, max(16, triton.next_power_of_2(inputs))),
        "POSITIONS": positions,
        "PRECISION": "tf32x3",  # of float32, which nothing else depends on
        "inputs": inputs,
        "outputs": outputs,
        "n": x.shape[1],
        "num_warps": 8,
        "num_stages": 2,
    }


class Mixed(NamedTuple):
    """A layer's pointwise input: BN(σ(x)) + BN(σ(skip)) of what is stored of them; without norms x as it is."""

    x: Tensor  # [inputs, positions]
    x_norm: Tensor | None = None
    skip: Tensor | None = None
    skip_norm: Tensor | None = None


def run_forward(
    mixed: Mixed, weight: Tensor, bias: Tensor, activation: str, with_parts: bool
) -> tuple[Tensor, Tensor | None]:
    """What is stored of σ(weight · mixed + bias) [outputs, positions], and the parts of its moments."""
    cut = tiles(weight, mixed.x, half=(256 if activation == "relu" else 128, 32, 64), full=(128, 16, 64))
    outputs, n = cut["outputs"], cut["n"]
    blocks = triton.cdiv(n, cut["POSITIONS"])
    y = mixed.x.new_empty(outputs, n)
    parts = y.new_empty(blocks, 3, outputs, dtype=torch.float32) if with_parts else None
    launch(
        forward, (blocks * triton.cdiv(outputs, cut["OUTPUTS"]),), **cut, ACTIVATION=activation,
        **mixed._asdict(), weight=weight.to(y.dtype).contiguous(), bias=bias, y=y, parts=parts,
    )  # fmt: skip
    return y, parts


def run_backward_input(
    dz: Tensor,
    weight: Tensor,
    through: Through,
    activation: str,
    below: Tensor | None = None,
    below_norm: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of the product's input, and with `below` the parts of its sums."""
    cut = tiles(weight, dz, half=(32, 256, 64), full=(16, 128, 64))
    inputs, n = cut["inputs"], cut["n"]
    blocks = triton.cdiv(n, cut["POSITIONS"])
    dx = dz.new_empty(inputs, n)
    parts = dx.new_empty(blocks, 2, inputs, dtype=torch.float32) if below is not None else None
    launch(
        backward_input, (blocks * triton.cdiv(inputs, cut["INPUTS"]),), **cut, ACTIVATION=activation,
        dz=dz, **through._asdict(), weight=weight.to(dz.dtype).contiguous(), dx=dx,
        below=below, below_norm=below_norm, parts=parts,
    )  # fmt: skip
    return dx, parts


def run_backward_weight(
    mixed: Mixed, dz: Tensor, weight: Tensor, through: Through, activation: str
) -> tuple[Tensor, Tensor]:
    """The gradients of weight [outputs, inputs] and bias [outputs] in float32."""
    cut = tiles(weight, dz, half=(128, 128 if activation == "relu" else 64, 32), full=(64, 32, 32))
    outputs, inputs = weight.shape
    tiles_of_result = triton.cdiv(outputs, cut["OUTPUTS"]) * triton.cdiv(inputs, cut["INPUTS"])
    blocks = triton.cdiv(cut["n"], cut["POSITIONS"])
    shares = min(blocks, triton.cdiv(PROGRAMS, tiles_of_result))
    blocks = triton.cdiv(blocks, shares)
    parts = dz.new_empty(shares, outputs, inputs, dtype=torch.float32)
    bias_parts = dz.new_empty(shares, outputs, dtype=torch.float32)
    launch(
        backward_weight, (tiles_of_result, shares), **cut, ACTIVATION=activation,
        **mixed._asdict(), dz=dz, **through._asdict(), parts=parts, bias_parts=bias_parts, blocks=blocks,
    )  # fmt: skip
    return parts.sum(0), bias_parts.sum(0)


PROGRAMS = 512  # a few for each multiprocessor of a large GPU; each leaves a part as large as its tile
