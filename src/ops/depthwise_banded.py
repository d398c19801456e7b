# mypy: disable-error-code=no-untyped-def
"""Depthwise convolution on tensor cores, in Triton: rows of the grid times banded matrices.

For one channel the images are a matrix of rows, and an output row is the sum over the kernel's rows i of the input
row i - before further down, times the banded matrix B_i[u, v] = kernel[i, u - v + before] of width × width (a
Toeplitz matrix). Rows beyond the image and columns beyond the grid are masked; nothing is padded or copied.

    forward           a program: one channel, STRIPS strips of ROWS output rows each. It goes through the ROWS + k - 1
                      input rows of the strips, STEP at a time: [STRIPS, STEP · width] × [STEP · width, ROWS · width],
                      the right side being B_i of the kernel row i that lies between input and output row, or zero.
    input gradient    the same with the kernel turned round.
    weight gradient   a program: one channel, STEP input rows of every strip, a share of the strips:
                      [STEP · width, STRIPS] × [STRIPS, ROWS · width], accumulated in registers; its diagonals are the
                      kernel's gradient. The shares' parts are added in order.

All accumulate in float32. Memory holds B as [channels, k, width, width] in the tensors' type (4.7 MB for 256 channels,
kernel 9, width 32, bf16), written once a call; a tile of it stays in the L1 or L2 cache.

Cost for n = batch · channels · height · width: n elements read and n written (the weight gradient: 2n read), each input
element requested (ROWS + k - 1) / ROWS times, mostly from the L1 cache; (ROWS + k - 1) · width multiply-accumulates an
output, 384 for kernel 9, width 32 and ROWS 4 instead of 81, at ten times the rate.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ops.depthwise_reference import after, before
from ops.launch import launch


@triton.jit
def build_bands(weight, bands, K: tl.constexpr, COLUMNS: tl.constexpr, LEFT: tl.constexpr, FLIP: tl.constexpr):
    """A program: B_i of one channel and kernel row; FLIP turns the kernel round."""
    i, channel = tl.program_id(0), tl.program_id(1)
    u = tl.arange(0, COLUMNS)[:, None]
    v = tl.arange(0, COLUMNS)[None, :]
    j = u - v + LEFT
    tap = i * K + j
    if FLIP:
        tap = K * K - 1 - tap
    band = tl.load(weight + channel * K * K + tap, mask=(j >= 0) & (j < K), other=0.0)
    at = bands + (channel * K + i) * COLUMNS * COLUMNS + u * COLUMNS + v
    tl.store(at, band.to(bands.dtype.element_ty))


@triton.jit
def band_tile(bands, channel, step, K: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr):
    """[STEP · COLUMNS, ROWS · COLUMNS]: from the step's input rows to the strip's output rows."""
    u = tl.arange(0, STEP * COLUMNS)[:, None]
    v = tl.arange(0, ROWS * COLUMNS)[None, :]
    i = step * STEP + u // COLUMNS - v // COLUMNS
    at = bands + ((channel * K + i) * COLUMNS + u % COLUMNS) * COLUMNS + v % COLUMNS
    return tl.load(at, mask=(i >= 0) & (i < K), other=0.0)


@triton.jit
def place(
    strip, first, column, batch, channels,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Offsets of strips [STRIPS, 1], in rows counted from `first` of the strip, and whether they are in the image."""
    strips: tl.constexpr = (HEIGHT + ROWS - 1) // ROWS
    image = strip // strips
    row = strip % strips * ROWS + first + column // COLUMNS
    inside = (image < batch) & (row >= 0) & (row < HEIGHT) & (column % COLUMNS < WIDTH)
    return image * channels * HEIGHT * WIDTH + row * WIDTH + column % COLUMNS, inside


@triton.jit
def convolve(
    x, bands, bias, y, batch, channels,
    K: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    STEP: tl.constexpr, STRIPS: tl.constexpr, LEFT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = convolution(x) + bias, with LEFT zeros before the grid."""
    block, channel = tl.program_id(0), tl.program_id(1)
    strip = block * STRIPS + tl.arange(0, STRIPS)[:, None]
    x += channel * HEIGHT * WIDTH
    y += channel * HEIGHT * WIDTH
    total = tl.zeros((STRIPS, ROWS * COLUMNS), tl.float32)
    for step in range((ROWS + K - 1 + STEP - 1) // STEP):
        column = tl.arange(0, STEP * COLUMNS)[None, :]
        at, inside = place(strip, step * STEP - LEFT, column, batch, channels, HEIGHT, WIDTH, COLUMNS, ROWS)
        tile = tl.load(x + at, mask=inside, other=0.0)
        band = band_tile(bands, channel, step, K, COLUMNS, ROWS, STEP)
        total = tl.dot(tile, band, total, input_precision=PRECISION)
    if bias is not None:
        total += tl.load(bias + channel).to(tl.float32)
    column = tl.arange(0, ROWS * COLUMNS)[None, :]
    at, inside = place(strip, 0, column, batch, channels, HEIGHT, WIDTH, COLUMNS, ROWS)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def correlate(
    x, dy, parts, batch, channels, blocks,
    K: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    STEP: tl.constexpr, STRIPS: tl.constexpr, TAPS: tl.constexpr, LEFT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """parts [shares, ROWS, channels, K, K] of the kernel's gradient."""
    step, channel, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    x += channel * HEIGHT * WIDTH
    dy += channel * HEIGHT * WIDTH
    column = tl.arange(0, STEP * COLUMNS)[None, :]
    out = tl.arange(0, ROWS * COLUMNS)[None, :]
    total = tl.zeros((STEP * COLUMNS, ROWS * COLUMNS), tl.float32)
    for block in range(blocks):
        strip = (share * blocks + block) * STRIPS + tl.arange(0, STRIPS)[:, None]
        at, inside = place(strip, step * STEP - LEFT, column, batch, channels, HEIGHT, WIDTH, COLUMNS, ROWS)
        tile = tl.load(x + at, mask=inside, other=0.0)
        at, inside = place(strip, 0, out, batch, channels, HEIGHT, WIDTH, COLUMNS, ROWS)
        gradient = tl.load(dy + at, mask=inside, other=0.0)
        total = tl.dot(tl.trans(tile), gradient, total, input_precision=PRECISION)
    # Diagonal j of a block of the product is where its input column is its output column + j - LEFT.
    u = tl.arange(0, STEP * COLUMNS)[:, None] % COLUMNS
    j = tl.arange(0, TAPS)[None, :]
    v = u - j + LEFT
    inside = (v >= 0) & (v < COLUMNS) & (j < K)
    i = step * STEP + tl.arange(0, STEP)[:, None]
    for row in range(ROWS):
        diagonals = tl.gather(total, tl.where(inside, row * COLUMNS + v, 0), axis=1)
        taps = tl.sum(tl.reshape(tl.where(inside, diagonals, 0.0), (STEP, COLUMNS, TAPS)), axis=1)
        to = parts + ((share * ROWS + row) * channels + channel) * K * K + (i - row) * K + j
        tl.store(to, taps, mask=(i >= row) & (i < row + K) & (j < K))


# Launching. What a program takes is chosen by shape and type alone: a resumed run must add up in the same order. The
# choice keeps all in registers on compute capability 8.0 and 9.0 (src/benchmark.py kernels).


def tiles(x: Tensor, k: int, rows: int, step: int) -> dict[str, Any]:
    """The grid, and how it is cut: `rows` and `step` are positions, in the output and the input of a product."""
    height, width = x.shape[2:]
    columns = triton.next_power_of_2(width)
    return {
        "K": k,
        "HEIGHT": height,
        "WIDTH": width,
        "COLUMNS": columns,
        "ROWS": max(triton.cdiv(16, columns), min(rows // columns, triton.next_power_of_2(height))),
        "STEP": max(1, step // columns),
        "STRIPS": 64 if x.element_size() == 2 else 32,
        "PRECISION": "tf32x3",  # of float32, which nothing else depends on
        "batch": x.shape[0],
        "channels": x.shape[1],
        "num_warps": 8,
        "num_stages": 2,
    }


def strips_in(x: Tensor, cut: dict[str, Any]) -> int:
    return x.shape[0] * triton.cdiv(x.shape[2], cut["ROWS"])


def bands_of(weight: Tensor, columns: int, dtype: torch.dtype, left: int, flip: bool = False) -> Tensor:
    """[channels, 1, k, k] → [channels, k, columns, columns]."""
    channels, _, k, _ = weight.shape
    bands = weight.new_empty(channels, k, columns, columns, dtype=dtype)
    launch(
        build_bands, (k, channels), num_warps=4, num_stages=1,
        weight=weight.contiguous(), bands=bands, K=k, COLUMNS=columns, LEFT=left, FLIP=flip,
    )  # fmt: skip
    return bands


def run_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, left: int, flip: bool = False) -> Tensor:
    k = weight.shape[-1]
    cut = tiles(x, k, rows=128 if x.element_size() == 2 else 64, step=32)
    y = torch.empty_like(x)
    launch(
        convolve, (triton.cdiv(strips_in(x, cut), cut["STRIPS"]), x.shape[1]), **cut, LEFT=left,
        x=x, bands=bands_of(weight, cut["COLUMNS"], x.dtype, left, flip), bias=bias, y=y,
    )  # fmt: skip
    return y


def run_weight_gradient(x: Tensor, dy: Tensor, k: int) -> Tensor:
    """The shares' parts are added in a fixed order, without atomics: the same run gives the same bits."""
    cut = tiles(x, k, rows=64, step=128 if x.element_size() == 2 else 64)
    channels, steps = x.shape[1], triton.cdiv(cut["ROWS"] + k - 1, cut["STEP"])
    blocks = triton.cdiv(strips_in(x, cut), cut["STRIPS"])
    shares = min(blocks, triton.cdiv(PROGRAMS, channels * steps))
    parts = x.new_empty(shares, cut["ROWS"], channels, k, k, dtype=torch.float32)
    launch(
        correlate, (steps, channels, shares), **cut, TAPS=triton.next_power_of_2(k), LEFT=before(k),
        x=x, dy=dy, parts=parts, blocks=triton.cdiv(blocks, shares),
    )  # fmt: skip
    return parts.sum((0, 1)).unsqueeze(1).to(x.dtype)


PROGRAMS = 2048  # enough for every GPU to be busy, few enough that the parts are small


# The backend.


@torch.library.custom_op("convmixer::banded", mutates_args=())
def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return run_convolution(x.contiguous(), weight, bias, before(weight.shape[-1]))


@torch.library.custom_op("convmixer::banded_input_gradient", mutates_args=())
def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    return run_convolution(dy.contiguous(), weight, None, after(weight.shape[-1]), flip=True)


@torch.library.custom_op("convmixer::banded_weight_gradient", mutates_args=())
def weight_gradient(x: Tensor, dy: Tensor, k: int) -> Tensor:
    return run_weight_gradient(x.contiguous(), dy.contiguous(), k)


for operator in (convolution, input_gradient):
    operator.register_fake(lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format))
weight_gradient.register_fake(lambda x, _, k: x.new_empty(x.shape[1], 1, k, k))
