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

from bench.kernels.floats import FAST, as_array, exp_of_negative, like, to_float
from bench.kernels.rows import for_ranges, num_parts

Order = Literal["norm-relu", "elu-norm"]
BLOCK = 4_096  # values summed as float32, before float64 adds the sums


def map_norm(x_BK: Tensor, weight_K: Tensor, bias_K: Tensor, eps: float, order: Order) -> Tensor:
    """Return relu(norm(x)) or norm(elu(x)) of maps on the CPU, in their number format: bfloat16 or float32.

    `norm` takes mean and biased variance over all values of a map, and has one float32 weight and bias per value.
    """
    result_BK: Tensor = _MapNorm.apply(x_BK.contiguous(), weight_K, bias_K, eps, order == "elu-norm")
    return result_BK


class _MapNorm(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x_BK: Tensor, weight_K: Tensor, bias_K: Tensor, eps: float, is_elu: bool) -> Tensor:
        out_BK, moments_B2 = torch.empty_like(x_BK), torch.empty(len(x_BK), 2)
        x, weight, bias, out, moments = map(as_array, (x_BK, weight_K, bias_K, out_BK, moments_B2))
        for_ranges(lambda first, end, _: _forward(x, weight, bias, eps, is_elu, out, moments, first, end), len(x))
        context.save_for_backward(x_BK, weight_K, bias_K, moments_B2)
        context.is_elu = is_elu
        return out_BK

    @staticmethod
    def backward(context: Any, *gradient_BK: Tensor) -> Any:
        x_BK, weight_K, bias_K, moments_B2 = context.saved_tensors
        by_x_BK = torch.empty_like(x_BK)
        by_weight_PK, by_bias_PK = torch.zeros(2, num_parts(), len(weight_K))
        saved = map(as_array, (gradient_BK[0].contiguous(), x_BK, weight_K, bias_K, moments_B2))
        given, found = tuple(saved), tuple(map(as_array, (by_x_BK, by_weight_PK, by_bias_PK)))
        is_elu = context.is_elu
        for_ranges(lambda first, end, part: _backward(*given, is_elu, *found, first, end, part), len(x_BK))
        return by_x_BK, by_weight_PK.sum(dim=0), by_bias_PK.sum(dim=0), None, None


@njit(inline="always", fastmath=FAST)
def _elu(value: Any) -> Any:
    below = np.float32(0) if value > np.float32(0) else value
    above = value if value > np.float32(0) else np.float32(0)
    return above + (exp_of_negative(below) - np.float32(1))


# The loops run over one-dimensional slices from 0 on: an index that could be negative keeps LLVM from using all lanes.


@njit(nogil=True, cache=True, fastmath=FAST)
def _forward(x_BK, weight_K, bias_K, eps, is_elu, out_BK, moments_B2, first, end):  # type: ignore[no-untyped-def]
    num_values = x_BK.shape[1]
    value_K = np.empty(num_values, np.float32)
    for b in range(first, end):
        total, squares = 0.0, 0.0
        for start in range(0, num_values, BLOCK):
            block = slice(start, start + BLOCK)
            block_total, block_squares = _activate(x_BK[b, block], value_K[block], is_elu)
            total += block_total
            squares += block_squares
        mean = total / num_values
        scale = 1 / np.sqrt(max(squares / num_values - mean * mean, 0.0) + eps)
        moments_B2[b, 0], moments_B2[b, 1] = mean, scale
        _normalise(value_K, np.float32(mean), np.float32(scale), weight_K, bias_K, not is_elu, out_BK[b])


@njit(nogil=True, cache=True, fastmath=FAST)
def _activate(x_K, value_K, is_elu):  # type: ignore[no-untyped-def]
    """Write the values that are normalised; return their sum and that of their squares."""
    total, squares = np.float32(0), np.float32(0)
    for k in range(len(x_K)):
        value = to_float(x_K[k])
        value = _elu(value) if is_elu else value
        value_K[k] = value
        total += value
        squares += value * value
    return total, squares


@njit(nogil=True, cache=True, fastmath=FAST)
def _normalise(value_K, mean, scale, weight_K, bias_K, is_relu, out_K):  # type: ignore[no-untyped-def]
    for k in range(len(value_K)):
        normed = (value_K[k] - mean) * scale * weight_K[k] + bias_K[k]
        normed = np.float32(0) if is_relu and normed < np.float32(0) else normed
        out_K[k] = like(normed, out_K[k])


@njit(nogil=True, cache=True, fastmath=FAST)
def _backward(  # type: ignore[no-untyped-def]
    gradient_BK, x_BK, weight_K, bias_K, moments_B2, is_elu, by_x_BK, by_weight_PK, by_bias_PK, first, end, part
):
    num_values = x_BK.shape[1]
    by_weight_K, by_bias_K = by_weight_PK[part], by_bias_PK[part]
    for b in range(first, end):
        mean, scale = moments_B2[b, 0], moments_B2[b, 1]
        total, product = 0.0, 0.0
        for start in range(0, num_values, BLOCK):
            block = slice(start, start + BLOCK)
            given = (gradient_BK[b, block], x_BK[b, block], weight_K[block], bias_K[block])
            block_total, block_product = _add_up(*given, mean, scale, is_elu, by_weight_K[block], by_bias_K[block])
            total += block_total
            product += block_product
        total, product = np.float32(total / num_values), np.float32(product / num_values)
        _pass_back(gradient_BK[b], x_BK[b], weight_K, bias_K, mean, scale, is_elu, total, product, by_x_BK[b])


@njit(nogil=True, cache=True, fastmath=FAST)
def _add_up(gradient_K, x_K, weight_K, bias_K, mean, scale, is_elu, by_weight_K, by_bias_K):  # type: ignore[no-untyped-def]
    """Add to the gradients by weight and bias; return the sums of what flows to the mean and to the variance."""
    total, product = np.float32(0), np.float32(0)
    for k in range(len(x_K)):
        value = to_float(x_K[k])
        value = _elu(value) if is_elu else value
        normed = (value - mean) * scale
        gradient = to_float(gradient_K[k])
        passes = is_elu or normed * weight_K[k] + bias_K[k] > np.float32(0)
        gradient = gradient if passes else np.float32(0)
        by_weight_K[k] += gradient * normed
        by_bias_K[k] += gradient
        weighted = gradient * weight_K[k]
        total += weighted
        product += weighted * normed
    return total, product


@njit(nogil=True, cache=True, fastmath=FAST)
def _pass_back(gradient_K, x_K, weight_K, bias_K, mean, scale, is_elu, mean_slope, mean_product, by_x_K):  # type: ignore[no-untyped-def]
    """Write the gradient by the input."""
    for k in range(len(x_K)):
        x = to_float(x_K[k])
        value = _elu(x) if is_elu else x
        normed = (value - mean) * scale
        gradient = to_float(gradient_K[k])
        passes = is_elu or normed * weight_K[k] + bias_K[k] > np.float32(0)
        gradient = gradient if passes else np.float32(0)
        by_value = (gradient * weight_K[k] - mean_slope - normed * mean_product) * scale
        below = value if value < np.float32(0) else np.float32(0)
        rise = below + np.float32(1) if is_elu else np.float32(1)  # of ELU: e^x below 0, so its value + 1
        by_x_K[k] = like(by_value * rise, by_x_K[k])
