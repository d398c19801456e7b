# mypy: disable-error-code=no-untyped-def
"""The banded matrices of ops/depthwise_banded.py: B_i[u, v] = kernel[i, u - v + before], for each channel and row i."""

import triton
import triton.language as tl


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
