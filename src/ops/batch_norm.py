# mypy: disable-error-code=no-untyped-def
"""Activation and BatchNorm as parts of other kernels: applied where a tile is read, measured where it is written.

Of z = scale · σ(u) + shift one tensor is stored: with ReLU σ(u), which is also its mask, with GELU u. The rest follows
from it and from a few numbers per channel in float32:

    norm    [5, channels]   mean and variance of σ(u), 1 / standard deviation, scale, shift
    sums    [5, channels]   the sum of the gradient dz, and that of dz · (σ(u) - mean); three rows of zeros make it
                            the shape of `norm`, whose gradient it is to autograd (ops/fused.py)

A kernel that writes a tile leaves its part of these sums, and the parts are joined in a fixed order, without atomics:
the same run gives the same bits. Moments are joined as in Chan, Golub and LeVeque (1979), which loses no digits where a
mean is large. A part is 8 or 12 bytes a channel: for the 64 positions of a pointwise kernel's tile in bf16 9 % of what
is written there, for the 8192 of a depthwise one's less than 0.1 %.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ops.launch import launch

MEAN = tl.constexpr(0)
VARIANCE = tl.constexpr(1)
INVERSE_STD = tl.constexpr(2)
SCALE = tl.constexpr(3)
SHIFT = tl.constexpr(4)
SUM = tl.constexpr(0)
SUM_CENTERED = tl.constexpr(1)


class Through(NamedTuple):
    """What a gradient needs to go back through BatchNorm and σ; nothing where it is that of a plain convolution."""

    stored: Tensor | None = None
    norm: Tensor | None = None
    sums: Tensor | None = None
    inverse_count: float = 0.0  # 1 / values that mean and variance were taken of; 0 where they are constants


PLAIN = Through()


@triton.jit
def stored_of(u, ACTIVATION: tl.constexpr):
    """What is stored of σ(u)."""
    if ACTIVATION == "relu":
        u = tl.where(u < 0.0, 0.0, u)  # tl.maximum would hide that a value is not a number
    return u


@triton.jit
def activated(stored, ACTIVATION: tl.constexpr):
    """σ(u)."""
    value = stored.to(tl.float32)
    if ACTIVATION == "gelu":
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    return value


@triton.jit
def gradient_coefficients(norm, sums, channel, channels, mask, inverse_count):
    """The numbers that `gradient` needs; `inverse_count` is 0 where mean and variance are constants (eval mode)."""
    mean = tl.load(norm + MEAN * channels + channel, mask=mask, other=0.0)
    inverse_std = tl.load(norm + INVERSE_STD * channels + channel, mask=mask, other=0.0)
    scale = tl.load(norm + SCALE * channels + channel, mask=mask, other=0.0)
    by_mean = tl.load(sums + SUM * channels + channel, mask=mask, other=0.0) * inverse_count
    by_std = tl.load(sums + SUM_CENTERED * channels + channel, mask=mask, other=0.0) * inverse_count
    return mean, scale, -scale * by_mean, -scale * by_std * inverse_std * inverse_std


@triton.jit
def gradient(dz, stored, mean, scale, offset, slope, ACTIVATION: tl.constexpr):
    """The gradient of u from that of z = BN(σ(u))."""
    value = activated(stored, ACTIVATION)
    da = dz.to(tl.float32) * scale + (value - mean) * slope + offset
    if ACTIVATION == "relu":
        da = tl.where(value <= 0.0, 0.0, da)
    elif ACTIVATION == "gelu":
        u = stored.to(tl.float32)
        density = 0.3989422804014327 * tl.exp(-0.5 * u * u)
        da = da * (0.5 * (1.0 + tl.erf(u * 0.7071067811865476)) + u * density)
    return da


@triton.jit
def combine_moments(parts, gamma, beta, norm, blocks, channels, eps, BLOCKS: tl.constexpr, CHANNELS: tl.constexpr):
    """parts [blocks, 3, channels]: count, mean and sum of squared differences from it → norm."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    wanted = channel < channels
    count = tl.zeros((BLOCKS, CHANNELS), tl.float32)
    total = tl.zeros((BLOCKS, CHANNELS), tl.float32)
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)[:, None]
        at = parts + block * 3 * channels + channel
        inside = (block < blocks) & wanted
        n = tl.load(at, mask=inside, other=0.0)
        count += n
        total += n * tl.load(at + channels, mask=inside, other=0.0)
    n_all = tl.maximum(tl.sum(count, axis=0, keep_dims=True), 1.0)  # none beyond the last channel
    mean = tl.sum(total, axis=0, keep_dims=True) / n_all
    squares = tl.zeros((BLOCKS, CHANNELS), tl.float32)
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)[:, None]
        at = parts + block * 3 * channels + channel
        inside = (block < blocks) & wanted
        n = tl.load(at, mask=inside, other=0.0)
        difference = tl.load(at + channels, mask=inside, other=0.0) - mean
        squares += tl.load(at + 2 * channels, mask=inside, other=0.0) + n * difference * difference
    variance = tl.sum(squares, axis=0, keep_dims=True) / n_all
    inverse_std = 1.0 / tl.sqrt(variance + eps)
    scale = tl.load(gamma + channel, mask=wanted, other=0.0).to(tl.float32) * inverse_std
    shift = tl.load(beta + channel, mask=wanted, other=0.0).to(tl.float32) - mean * scale
    tl.store(norm + MEAN * channels + channel, mean, mask=wanted)
    tl.store(norm + VARIANCE * channels + channel, variance, mask=wanted)
    tl.store(norm + INVERSE_STD * channels + channel, inverse_std, mask=wanted)
    tl.store(norm + SCALE * channels + channel, scale, mask=wanted)
    tl.store(norm + SHIFT * channels + channel, shift, mask=wanted)


def moments_to_norm(parts: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    blocks, _, channels = parts.shape
    norm = parts.new_empty(5, channels)
    # Few programs, each on a long way: many loads at once, or it waits for each of them.
    launch(
        combine_moments, (triton.cdiv(channels, 8),), num_warps=8, num_stages=2, BLOCKS=512, CHANNELS=8,
        parts=parts, gamma=gamma, beta=beta, norm=norm, blocks=blocks, channels=channels, eps=eps,
    )  # fmt: skip
    return norm


def sum_parts(parts: Tensor) -> Tensor:
    """parts [blocks, 2, channels] → `sums`."""
    sums = parts.new_zeros(5, parts.shape[2])
    torch.sum(parts, 0, out=sums[:2])
    return sums


def norm_of(mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """`norm` of given statistics, in eval mode."""
    inverse_std = torch.rsqrt(variance + eps)
    scale = gamma * inverse_std
    return torch.stack([mean, variance, inverse_std, scale, beta - mean * scale]).float()
