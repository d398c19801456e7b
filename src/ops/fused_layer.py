"""A ConvMixer layer in six kernels, five passes over an activation forward and fifteen backward.

Activations are [channels, positions], the positions of all images of a batch in a row. Of z = BN(σ(u)) only what
σ left is stored, with a few numbers per channel (ops/batch_norm.py); z itself never is, as whoever reads the one can
make the other. A layer stores two such tensors, or one with `recompute`.

    depthwise_banded, pointwise                                             reads                        writes
    depthwise  forward          normalize, convolve, bias, σ, moments       below                        first
    pointwise  forward          normalize, add, multiply, bias, σ, moments  first, below                 second
    pointwise  backward_input   σ and BN, multiply, sums                    dz, second, first            dmixed
    pointwise  backward_weight  σ and BN, multiply                          dz, second, first, below
    depthwise  backward_weight  σ and BN, multiply                          dmixed, first, below
    depthwise  backward_input   σ and BN, convolve, add, sums               dmixed, first, below         dbelow

BatchNorm needs the sums of a gradient before that gradient can pass it. So the gradient that goes from layer to layer
is that of z, together with its sums, which autograd takes for the gradient of `norm`.

Between the kernels, sums of their parts: small, and in a fixed order. Everything runs as two operators of PyTorch, so
that torch.compile and autograd see a layer as a whole.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ops import depthwise_banded, pointwise
from ops.batch_norm import Through, moments_to_norm, norm_of, sum_parts
from ops.pointwise import Mixed


def grid(stored: Tensor, height: int, width: int) -> Tensor:
    """[channels, positions] as [batch, channels, height, width], without a copy."""
    return stored.unflatten(1, (-1, height, width)).transpose(0, 1)


def flat(x: Tensor) -> Tensor:
    """The reverse."""
    return x.transpose(0, 1).flatten(1)


def measured(parts: Tensor | None, gamma: Tensor, beta: Tensor, statistics: list[Tensor], eps: float) -> Tensor:
    """`norm` from the moments of the batch, or in eval mode from given mean and variance."""
    if parts is None:
        return norm_of(statistics[0], statistics[1], gamma, beta, eps)
    return moments_to_norm(parts, gamma, beta, eps)


def affine_gradients(sums: Tensor, norm: Tensor) -> list[Tensor]:
    """Of gamma and beta."""
    _, _, inverse_std, _, _ = norm
    return [sums[1] * inverse_std, sums[0].clone()]


def inverse_count(stored: Tensor, statistics: list[Tensor]) -> float:
    return 0.0 if statistics else 1.0 / stored.shape[1]


# The layer.


def first_half(
    below: Tensor, below_norm: Tensor, weights: list[Tensor], statistics: list[Tensor],
    height: int, width: int, eps: float, activation: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What is stored of σ(depthwise z), and its norm."""
    kernel, bias, gamma, beta = weights[:4]
    y, parts = depthwise_banded.run_forward(
        grid(below, height, width), kernel, bias, below_norm, activation, with_parts=not statistics
    )
    return flat(y), measured(parts, gamma, beta, statistics[:2], eps)


def run_forward(
    below: Tensor, below_norm: Tensor, weights: list[Tensor], statistics: list[Tensor],
    height: int, width: int, eps: float, activation: str, residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What is stored of both halves, with their norms.

    `weights`: kernel, bias, gamma and beta of the first half, then of the second; `statistics`: mean and variance of
    both in evaluation mode, nothing in training.
    """
    first, first_norm = first_half(below, below_norm, weights, statistics, height, width, eps, activation)
    kernel, bias, gamma, beta = weights[4:]
    mixed = Mixed(first, first_norm, *((below, below_norm) if residual else ()))
    second, parts = pointwise.run_forward(mixed, kernel.flatten(1), bias, activation, with_parts=not statistics)
    return first, first_norm, second, measured(parts, gamma, beta, statistics[2:], eps)


def run_backward(
    dz: Tensor, sums: Tensor, below: Tensor, below_norm: Tensor, first: Tensor | None, first_norm: Tensor,
    second: Tensor, second_norm: Tensor, weights: list[Tensor], statistics: list[Tensor],
    height: int, width: int, eps: float, activation: str, residual: bool,
) -> list[Tensor]:  # fmt: skip
    """dbelow and its sums, and the gradients of the weights, in float32."""
    if first is None:  # recomputed
        first, _ = first_half(below, below_norm, weights, statistics, height, width, eps, activation)
    kernel, matrix = weights[0], weights[4].flatten(1)
    through = Through(second, second_norm, sums, inverse_count(second, statistics))
    dmixed, parts = pointwise.run_backward_input(dz, matrix, through, activation, first, first_norm)
    assert parts is not None
    first_sums = sum_parts(parts)
    mixed = Mixed(first, first_norm, *((below, below_norm) if residual else ()))
    dmatrix, dbias = pointwise.run_backward_weight(mixed, dz, matrix, through, activation)
    of_second = [dmatrix.view_as(weights[4]), dbias, *affine_gradients(sums, second_norm)]
    dy, x = grid(dmixed, height, width), grid(below, height, width)
    through = Through(grid(first, height, width), first_norm, first_sums, inverse_count(first, statistics))
    dkernel, dbias = depthwise_banded.run_backward_weight(x, dy, kernel.shape[-1], below_norm, through, activation)
    of_first = [dkernel, dbias, *affine_gradients(first_sums, first_norm)]
    dbelow, parts = depthwise_banded.run_backward_input(dy, kernel, through, activation, residual, x, below_norm)
    assert parts is not None
    return [flat(dbelow), sum_parts(parts), *of_first, *of_second]


layer_forward = torch.library.custom_op("convmixer::layer", run_forward, mutates_args=())
layer_backward = torch.library.custom_op("convmixer::layer_backward", run_backward, mutates_args=())


@layer_forward.register_fake
def _(below, below_norm, *_):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(tensor) for tensor in (below, below_norm, below, below_norm))


@layer_backward.register_fake
def _(dz, sums, below, below_norm, first, first_norm, second, second_norm, weights, *_):  # type: ignore[no-untyped-def]
    of_weights = [sums.new_empty(weight.shape) for weight in weights]
    return [torch.empty_like(below), torch.empty_like(below_norm), *of_weights]


class Layer(Function):
    """(below, below_norm) → (second, second_norm), and first_norm for BatchNorm's running statistics."""

    @staticmethod
    def forward(
        ctx: Any, below: Tensor, below_norm: Tensor, statistics: list[Tensor],
        options: tuple[int, int, float, str, bool], recompute: bool, *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        first, first_norm, second, second_norm = layer_forward(below, below_norm, list(weights), statistics, *options)
        ctx.options, ctx.evaluated = options, len(statistics)
        kept = (None if recompute else first, below, below_norm, first_norm, second, second_norm)
        ctx.save_for_backward(*kept, *statistics, *weights)
        ctx.mark_non_differentiable(first_norm)
        return second, second_norm, first_norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor, sums: Tensor, _: None) -> tuple[Tensor | None, ...]:
        first, below, below_norm, first_norm, second, second_norm, *rest = ctx.saved_tensors
        statistics, weights = rest[: ctx.evaluated], rest[ctx.evaluated :]
        dbelow, below_sums, *gradients = layer_backward(
            dz.contiguous(), sums, below, below_norm, first, first_norm, second, second_norm, weights, statistics,
            *ctx.options,
        )  # fmt: skip
        return dbelow, below_sums, None, None, None, *in_types_of(weights, gradients)


def in_types_of(weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    return [gradient.to(weight.dtype) for gradient, weight in zip(gradients, weights, strict=True)]


# Patch embeddings: a patch is a column, and their convolution a pointwise one.


def patches_of(images: Tensor, patch_size: int) -> Tensor:
    """[batch, channels, height, width] → [channels · patch_size², positions], without what is no whole patch."""
    cut = images.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return cut.permute(1, 4, 5, 0, 2, 3).flatten(3).flatten(0, 2).contiguous()


@torch.library.custom_op("convmixer::embed", mutates_args=())
def embed_forward(
    patches: Tensor, weights: list[Tensor], statistics: list[Tensor], eps: float, activation: str
) -> tuple[Tensor, Tensor]:
    kernel, bias, gamma, beta = weights
    stored, parts = pointwise.run_forward(Mixed(patches), kernel.flatten(1), bias, activation, not statistics)
    return stored, measured(parts, gamma, beta, statistics, eps)


@torch.library.custom_op("convmixer::embed_backward", mutates_args=())
def embed_backward(
    dz: Tensor, sums: Tensor, patches: Tensor, stored: Tensor, norm: Tensor, weights: list[Tensor],
    statistics: list[Tensor], activation: str, needs_patches: bool,
) -> list[Tensor]:  # fmt: skip
    matrix = weights[0].flatten(1)
    through = Through(stored, norm, sums, inverse_count(stored, statistics))
    dpatches = dz.new_empty(0)
    if needs_patches:
        dpatches, _ = pointwise.run_backward_input(dz, matrix, through, activation)
    dmatrix, dbias = pointwise.run_backward_weight(Mixed(patches), dz, matrix, through, activation)
    return [dpatches, dmatrix.view_as(weights[0]), dbias, *affine_gradients(sums, norm)]


@embed_forward.register_fake
def _(patches, weights, *_):  # type: ignore[no-untyped-def]
    channels = len(weights[0])
    return patches.new_empty(channels, patches.shape[1]), weights[0].new_empty(5, channels, dtype=torch.float32)


@embed_backward.register_fake
def _(dz, sums, patches, stored, norm, weights, statistics, activation, needs_patches):  # type: ignore[no-untyped-def]
    dpatches = torch.empty_like(patches) if needs_patches else dz.new_empty(0)
    return [dpatches, *(sums.new_empty(weight.shape) for weight in weights)]


class Embed(Function):
    """patches → (stored, norm)."""

    @staticmethod
    def forward(
        ctx: Any, patches: Tensor, statistics: list[Tensor], eps: float, activation: str, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        stored, norm = embed_forward(patches, list(weights), statistics, eps, activation)
        ctx.activation, ctx.evaluated = activation, len(statistics)
        ctx.save_for_backward(patches, stored, norm, *statistics, *weights)
        return stored, norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor, sums: Tensor) -> tuple[Tensor | None, ...]:
        patches, stored, norm, *rest = ctx.saved_tensors
        statistics, weights = rest[: ctx.evaluated], rest[ctx.evaluated :]
        needs_dpatches, *_ = ctx.needs_input_grad
        dpatches, *gradients = embed_backward(
            dz.contiguous(), sums, patches, stored, norm, weights, statistics, ctx.activation, needs_dpatches
        )
        return dpatches if needs_dpatches else None, None, None, None, *in_types_of(weights, gradients)


# The average over positions, before the classifier.


class Pool(Function):
    """(stored, norm) → the average of z over an image's positions, [batch, channels], in float32."""

    @staticmethod
    def forward(ctx: Any, stored: Tensor, norm: Tensor, positions: int, activation: str) -> Tensor:
        value = F.gelu(stored) if activation == "gelu" else stored
        averages = value.unflatten(1, (-1, positions)).mean(2, dtype=torch.float32)
        ctx.positions, ctx.dtype = positions, stored.dtype
        ctx.save_for_backward(averages, norm)
        _, _, _, scale, shift = norm
        return averages.t() * scale + shift

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor, Tensor, None, None]:
        averages, norm = ctx.saved_tensors
        mean, *_ = norm
        each = (dz.t() / ctx.positions).to(ctx.dtype)  # [channels, batch]
        total = each.float() * ctx.positions
        sums = torch.zeros_like(norm)
        sums[0], sums[1] = total.sum(1), (total * (averages - mean[:, None])).sum(1)
        return each.unsqueeze(2).expand(-1, -1, ctx.positions).flatten(1), sums, None, None
