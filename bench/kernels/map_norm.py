"""Layer norm over whole maps with the activation before or after it, in one pass each way.

Torch writes the map after the activation, reads it twice for the norm, and does as much again in the backward pass; its
ELU alone takes longer than the norm. Here a map is read once, and everything between stays in the processor's cache.

Shape legend: B maps, K values of a map, P ranges of maps.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.kernels.floats import FAST, as_array, exp_of_negative, kernel, like, to_float
from bench.kernels.rows import for_ranges, num_parts

Order = Literal["norm-relu", "elu-norm"]
BLOCK = 4_096  # values summed as float32, before float64 adds the sums


def map_norm(x_BK: Tensor, weight_K: Tensor, bias_K: Tensor, eps: float, order: Order) -> Tensor:
    """Return relu(norm(x)) or norm(elu(x)) of maps on the CPU, in their number format: bfloat16 or float32.

    `norm` takes mean and biased variance over all values of a map, and has one float32 weight and bias per value.
    """
    keeps = torch.is_grad_enabled()
    result_BK: Tensor = _MapNorm.apply(  # type: ignore[no-untyped-call]
        x_BK.contiguous(), weight_K, bias_K, eps, order == "elu-norm", keeps
    )
    return result_BK


class _MapNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, x_BK: Tensor, weight_K: Tensor, bias_K: Tensor, eps: float, is_elu: bool, keeps: bool
    ) -> Tensor:
        out_BK, moments_B2 = torch.empty_like(x_BK), torch.empty(len(x_BK), 2)
        # What the backward pass needs is the input of the norm: it has ELU's slope, which is its value + 1 below 0.
        value_BK = x_BK.new_empty(len(x_BK) if keeps else num_parts(), x_BK.shape[1]) if is_elu else x_BK
        given = tuple(map(as_array, (x_BK, weight_K, bias_K)))
        found = tuple(map(as_array, (value_BK, out_BK, moments_B2)))
        rest = eps, is_elu, keeps or not is_elu, *found
        for_ranges(lambda first, end, part: _forward(*given, *rest, first, end, part), len(x_BK))
        context.save_for_backward(value_BK, weight_K, bias_K, moments_B2)
        context.is_elu = is_elu
        return out_BK

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradient_BK: Tensor) -> Any:
        value_BK, weight_K, bias_K, moments_B2 = context.saved_tensors
        by_x_BK = torch.empty_like(value_BK)
        by_weight_PK, by_bias_PK = torch.zeros(2, num_parts(), len(weight_K))
        given = tuple(map(as_array, (gradient_BK[0].contiguous(), value_BK, weight_K, bias_K, moments_B2)))
        found = tuple(map(as_array, (by_x_BK, by_weight_PK, by_bias_PK)))
        is_elu = context.is_elu
        for_ranges(lambda first, end, part: _backward(*given, is_elu, *found, first, end, part), len(value_BK))
        return by_x_BK, by_weight_PK.sum(dim=0), by_bias_PK.sum(dim=0), None, None, None


@njit(inline="always", fastmath=FAST)
def _elu(value: Any) -> Any:
    below = np.float32(0) if value > np.float32(0) else value
    above = value if value > np.float32(0) else np.float32(0)
    return above + (exp_of_negative(below) - np.float32(1))


# The loops run over one-dimensional slices from 0 on: an index that could be negative keeps LLVM from using all lanes.


@kernel
def _forward(  # type: ignore[no-untyped-def]
    x_BK, weight_K, bias_K, eps, is_elu, keeps, value_XK, out_BK, moments_B2, first, end, part
):
    """Write the output; what is normalised goes into row b if it is kept, else into one row of each range."""
    num_values = x_BK.shape[1]
    for b in range(first, end):
        value_K = value_XK[b if keeps else part]
        total, squares = 0.0, 0.0
        for start in range(0, num_values, BLOCK):
            block = slice(start, start + BLOCK)
            if is_elu:
                _activate(x_BK[b, block], value_K[block])
            block_total, block_squares = _add_up(value_K[block])
            total += block_total
            squares += block_squares
        mean = total / num_values
        scale = 1 / np.sqrt(max(squares / num_values - mean * mean, 0.0) + eps)
        moments_B2[b, 0], moments_B2[b, 1] = mean, scale
        _normalise(value_K, np.float32(mean), np.float32(scale), weight_K, bias_K, not is_elu, out_BK[b])


@kernel
def _activate(x_K, value_K):  # type: ignore[no-untyped-def]
    for k in range(len(x_K)):
        value_K[k] = like(_elu(to_float(x_K[k])), value_K[k])


@kernel
def _add_up(value_K):  # type: ignore[no-untyped-def]
    """Return the sum of the values and that of their squares."""
    total, squares = np.float32(0), np.float32(0)
    for k in range(len(value_K)):
        value = to_float(value_K[k])
        total += value
        squares += value * value
    return total, squares


@kernel
def _normalise(value_K, mean, scale, weight_K, bias_K, is_relu, out_K):  # type: ignore[no-untyped-def]
    for k in range(len(value_K)):
        normed = (to_float(value_K[k]) - mean) * scale * weight_K[k] + bias_K[k]
        normed = np.float32(0) if is_relu and normed < np.float32(0) else normed
        out_K[k] = like(normed, out_K[k])


@kernel
def _backward(  # type: ignore[no-untyped-def]
    gradient_BK, value_BK, weight_K, bias_K, moments_B2, is_elu, by_x_BK, by_weight_PK, by_bias_PK, first, end, part
):
    num_values = value_BK.shape[1]
    by_weight_K, by_bias_K = by_weight_PK[part], by_bias_PK[part]
    for b in range(first, end):
        moments = moments_B2[b, 0], moments_B2[b, 1]
        total, product = 0.0, 0.0
        for start in range(0, num_values, BLOCK):
            block = slice(start, start + BLOCK)
            given = (gradient_BK[b, block], value_BK[b, block], weight_K[block], bias_K[block])
            block_total, block_product = _collect(*given, moments, is_elu, by_weight_K[block], by_bias_K[block])
            total += block_total
            product += block_product
        means = np.float32(total / num_values), np.float32(product / num_values)
        _pass_back(gradient_BK[b], value_BK[b], weight_K, bias_K, moments, is_elu, means, by_x_BK[b])


@kernel
def _collect(gradient_K, value_K, weight_K, bias_K, moments, is_elu, by_weight_K, by_bias_K):  # type: ignore[no-untyped-def]
    """Add to the gradients by weight and bias; return the sums of what flows to the mean and to the variance."""
    total, product = np.float32(0), np.float32(0)
    for k in range(len(value_K)):
        normed = (to_float(value_K[k]) - moments[0]) * moments[1]
        gradient = to_float(gradient_K[k])
        passes = is_elu or normed * weight_K[k] + bias_K[k] > np.float32(0)
        gradient = gradient if passes else np.float32(0)
        by_weight_K[k] += gradient * normed
        by_bias_K[k] += gradient
        weighted = gradient * weight_K[k]
        total += weighted
        product += weighted * normed
    return total, product


@kernel
def _pass_back(gradient_K, value_K, weight_K, bias_K, moments, is_elu, means, by_x_K):  # type: ignore[no-untyped-def]
    """Write the gradient by the input; `means` are those of what flows to the mean and to the variance."""
    for k in range(len(value_K)):
        value = to_float(value_K[k])
        normed = (value - moments[0]) * moments[1]
        gradient = to_float(gradient_K[k])
        passes = is_elu or normed * weight_K[k] + bias_K[k] > np.float32(0)
        gradient = gradient if passes else np.float32(0)
        by_value = (gradient * weight_K[k] - means[0] - normed * means[1]) * moments[1]
        below = value if is_elu and value < np.float32(0) else np.float32(0)
        by_x_K[k] = like(by_value * (below + np.float32(1)), by_x_K[k])
