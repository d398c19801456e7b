# mypy: disable-error-code=no-untyped-def
"""Depthwise convolution on tensor cores, in Triton: rows of the grid times banded matrices.

In one channel, the images are a matrix of rows. Kernel row i contributes to output row r the product of input row
r + i - before and the banded (Toeplitz) matrix B_i[u, v] = kernel[i, u - v + before] of size width × width. An output
row is the sum over all i. Rows and columns outside the image are masked; nothing is padded or copied.

    convolve     A program computes STRIPS strips of ROWS output rows in one channel. It multiplies STEP input rows at a
                 time: [STRIPS, STEP · width] × [STEP · width, ROWS · width]. The right side holds B_i, where i is the
                 kernel row between input and output row, or zeros. The input gradient is the same computation with the
                 kernel rotated by 180 degrees.
    correlate    A program computes the weight gradient of one channel from STEP input rows of a share of the strips:
                 [STEP · width, STRIPS] × [STRIPS, ROWS · width], accumulated in registers. The sums of its diagonals
                 are the gradient. The parts of all shares are added in a fixed order, without atomics.

All products accumulate in float32. The bands of a channel are contiguous in memory, [u, i, v] with i descending and
zeros on both sides, so that the right side of each product is a rectangle of them.

Cost for n = batch · channels · height · width: n elements are read and n written (correlate: 2n read). Each input
element is requested (ROWS + k - 1) / ROWS times, mostly from a cache. An output takes (ROWS + k - 1) · width
multiply-accumulates: 384 for kernel 9, width 32 and ROWS 4 instead of 81, at ten times the rate.
`python src/benchmark.py kernels` counts them.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ops.depthwise_reference import after, before
from ops.launch import launch


@triton.jit
def build_bands(
    weight, bands,
    K: tl.constexpr, COLUMNS: tl.constexpr, LEFT: tl.constexpr, LAST: tl.constexpr, BANDS: tl.constexpr,
    FLIP: tl.constexpr,
):  # fmt: skip
    """Write bands [channels, COLUMNS, BANDS, COLUMNS] of kernel rows LAST, LAST - 1, …; FLIP rotates the kernel."""
    band, channel = tl.program_id(0), tl.program_id(1)
    u = tl.arange(0, COLUMNS)[:, None]
    v = tl.arange(0, COLUMNS)[None, :]
    i, j = LAST - band, u - v + LEFT
    tap = i * K + j
    if FLIP:
        tap = K * K - 1 - tap
    values = tl.load(weight + channel * K * K + tap, mask=(i >= 0) & (i < K) & (j >= 0) & (j < K), other=0.0)
    at = bands + ((channel * COLUMNS + u) * BANDS + band) * COLUMNS + v
    tl.store(at, values.to(bands.dtype.element_ty))


@triton.jit
def place(
    column, channels,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, STRIPS: tl.constexpr,
):  # fmt: skip
    """Compute image, row and offset of positions [STRIPS, columns]; a masked position has a row far outside."""
    strips: tl.constexpr = (HEIGHT + ROWS - 1) // ROWS  # of an image
    strip = tl.arange(0, STRIPS)[:, None]
    image, row = strip // strips, strip % strips * ROWS + column // COLUMNS
    at = image * channels * HEIGHT * WIDTH + row * WIDTH + column % COLUMNS
    if STRIPS % strips or WIDTH < COLUMNS:
        row = tl.where((image < STRIPS // strips) & (column % COLUMNS < WIDTH), row, -65536)
    return image, row, at


@triton.jit(do_not_specialize=["batch"])
def convolve(
    x, bands, bias, y, batch, channels,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    STEPS: tl.constexpr, FIRST: tl.constexpr, STRIPS: tl.constexpr, IMAGES: tl.constexpr, BANDS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute y = convolution(x) + bias for a block of IMAGES; strips read the input rows from FIRST on."""
    block, channel = tl.program_id(0), tl.program_id(1)
    start = (block * IMAGES * channels + channel) * HEIGHT * WIDTH
    column = tl.arange(0, STEP * COLUMNS)
    out = tl.arange(0, ROWS * COLUMNS)[None, :]
    band = (STEPS * STEP - 1 - column // COLUMNS)[:, None]  # first column of the first step's rectangle
    bands += ((channel * COLUMNS + column % COLUMNS)[:, None] * BANDS + band) * COLUMNS + out
    image, row, at = place(column[None, :], channels, HEIGHT, WIDTH, COLUMNS, ROWS, STRIPS)
    row = tl.where(image < batch - block * IMAGES, row + FIRST, -65536)
    x += start + at + FIRST * WIDTH
    total = tl.zeros((STRIPS, ROWS * COLUMNS), tl.float32)
    for step in range(STEPS):
        inside = (row + step * STEP >= 0) & (row + step * STEP < HEIGHT)
        rows = tl.load(x + step * STEP * WIDTH, mask=inside, other=0.0)
        total = tl.dot(rows, tl.load(bands - step * STEP * COLUMNS), total, input_precision=PRECISION)
    if bias is not None:
        total += tl.load(bias + channel).to(tl.float32)
    image, row, at = place(out, channels, HEIGHT, WIDTH, COLUMNS, ROWS, STRIPS)
    inside = (image < batch - block * IMAGES) & (row >= 0) & (row < HEIGHT)
    tl.store(y + start + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch", "blocks"])
def correlate(
    x, dy, parts, batch, channels, blocks,
    K: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    STEP: tl.constexpr, FIRST: tl.constexpr, LEFT: tl.constexpr, STRIPS: tl.constexpr, IMAGES: tl.constexpr,
    TAPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write parts [shares, ROWS, channels, K, K] of the weight gradient; a share is `blocks` blocks of IMAGES."""
    step, channel, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = FIRST + step * STEP
    stride = IMAGES * channels * HEIGHT * WIDTH
    remaining = batch - share * blocks * IMAGES
    x += share * blocks * stride + channel * HEIGHT * WIDTH
    dy += share * blocks * stride + channel * HEIGHT * WIDTH
    column = tl.arange(0, STEP * COLUMNS)[None, :]
    image, row, at = place(column, channels, HEIGHT, WIDTH, COLUMNS, ROWS, STRIPS)
    images_in = tl.where((row + first >= 0) & (row + first < HEIGHT), remaining - image, 0)
    x += at + first * WIDTH
    out = tl.arange(0, ROWS * COLUMNS)[None, :]
    image, row, at = place(out, channels, HEIGHT, WIDTH, COLUMNS, ROWS, STRIPS)
    images_out = tl.where((row >= 0) & (row < HEIGHT), remaining - image, 0)
    dy += at
    total = tl.zeros((STEP * COLUMNS, ROWS * COLUMNS), tl.float32)
    for block in range(blocks):
        rows = tl.load(x + block * stride, mask=block * IMAGES < images_in, other=0.0)
        gradients = tl.load(dy + block * stride, mask=block * IMAGES < images_out, other=0.0)
        total = tl.dot(tl.trans(rows), gradients, total, input_precision=PRECISION)
    # On diagonal j of a block of the product, input column = output column + j - LEFT.
    u = tl.arange(0, STEP * COLUMNS)[:, None] % COLUMNS
    tap = tl.arange(0, ROWS * TAPS)[None, :]
    row, j = tap // TAPS, tap % TAPS
    v = u - j + LEFT
    inside = (v >= 0) & (v < COLUMNS) & (j < K)
    diagonals = tl.gather(total, tl.where(inside, row * COLUMNS + v, 0), axis=1)
    taps = tl.sum(tl.reshape(tl.where(inside, diagonals, 0.0), (STEP, COLUMNS, ROWS * TAPS)), axis=1)
    i = first + LEFT + tl.arange(0, STEP)[:, None] - row
    to = parts + ((share * ROWS + row) * channels + channel) * K * K + i * K + j
    tl.store(to, taps, mask=(i >= 0) & (i < K) & (j < K))


# Launching. Tile sizes depend on shape and type only, so that a resumed run adds up in the same order. They fit into
# registers from compute capability 8.0 to 9.0 (src/benchmark.py kernels).


def tiles(x: Tensor, k: int, left: int, rows: int, step: int, strips: int, warps: int) -> dict[str, Any]:
    """Choose tile sizes: `rows` and `step` are output and input positions of a product of `strips` strips."""
    height, width = x.shape[2:]
    precision: str = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    columns = max(4, triton.next_power_of_2(width))
    rows = max(triton.cdiv(16, columns), min(rows // columns, triton.next_power_of_2(height)))
    whole = rows >= height  # a strip is a whole image, and reads only its rows
    step = max(triton.cdiv(16, columns), min(step // columns, triton.next_power_of_2(height)))
    return {
        "HEIGHT": height,
        "WIDTH": width,
        "COLUMNS": columns,
        "ROWS": rows,
        "STEP": step,
        "STEPS": triton.cdiv(height if whole else rows + k - 1, step),
        "FIRST": 0 if whole else -left,
        "STRIPS": strips,
        "IMAGES": strips // triton.cdiv(height, rows),
        "PRECISION": "tf32" if precision == "tf32" else "tf32x3",  # for float32
        "batch": x.shape[0],
        "channels": x.shape[1],
        "num_warps": warps,
    }


def run_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, left: int, flip: bool = False) -> Tensor:
    """Convolve with `left` zeros to the left and above the grid, and k - 1 - left to the right and below."""
    channels, _, k, _ = weight.shape
    cut = tiles(x, k, left, *CONVOLVE[x.element_size() == 2])
    columns, input_rows = cut["COLUMNS"], cut["STEPS"] * cut["STEP"]
    bands = x.new_empty(channels, columns, input_rows + cut["ROWS"] - 1, columns)
    launch(
        build_bands, (bands.shape[2], channels), num_warps=4, num_stages=1,
        weight=weight.contiguous(), bands=bands, K=k, COLUMNS=columns, LEFT=left,
        LAST=cut["FIRST"] + left + input_rows - 1, BANDS=bands.shape[2], FLIP=flip,
    )  # fmt: skip
    y = torch.empty_like(x)
    launch(
        convolve, (triton.cdiv(x.shape[0], cut["IMAGES"]), channels), **cut, num_stages=1,
        x=x, bands=bands, bias=bias, y=y, BANDS=bands.shape[2],
    )  # fmt: skip
    return y


def run_correlation(x: Tensor, dy: Tensor, k: int) -> Tensor:
    """Compute the weight gradient [channels, 1, k, k]; parts are added in a fixed order."""
    cut = tiles(x, k, before(k), *CORRELATE[x.element_size() == 2])
    channels, steps = x.shape[1], cut.pop("STEPS")
    blocks = triton.cdiv(x.shape[0], cut["IMAGES"])
    shares = min(blocks, triton.cdiv(PROGRAMS, channels * steps))
    parts = x.new_zeros(shares, cut["ROWS"], channels, k, k, dtype=torch.float32)
    launch(
        correlate, (steps, channels, shares), **cut, num_stages=3, K=k, TAPS=triton.next_power_of_2(k), LEFT=before(k),
        x=x, dy=dy, parts=parts, blocks=triton.cdiv(blocks, shares),
    )  # fmt: skip
    return parts.sum((0, 1)).unsqueeze(1).to(x.dtype)


# Output positions, input positions, strips and warps, for values of 2 bytes (True) and of 4 bytes.
CONVOLVE = {True: (128, 64, 128, 8), False: (64, 32, 128, 8)}
CORRELATE = {True: (128, 128, 64, 8), False: (64, 64, 64, 4)}
PROGRAMS = 512  # enough to keep a GPU busy, few enough that the sums of diagonals take little time


@torch.library.triton_op("convmixer::banded", mutates_args=())
def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return run_convolution(x.contiguous(), weight, bias, before(weight.shape[-1]))


@torch.library.triton_op("convmixer::banded_input_gradient", mutates_args=())
def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    return run_convolution(dy.contiguous(), weight, None, after(weight.shape[-1]), flip=True)


@torch.library.triton_op("convmixer::banded_weight_gradient", mutates_args=())
def weight_gradient(x: Tensor, dy: Tensor, k: int) -> Tensor:
    return run_correlation(x.contiguous(), dy.contiguous(), k)
