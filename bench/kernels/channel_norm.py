"""Batch normalisation of maps whose channels are the fastest axis in memory, after an optional ReLU, on the CPU.

Torch computes with one pixel at a time, which is slow if channels are few. Here a *tile* of many pixels is one vector,
whatever the number of channels, and the ReLU costs no pass of its own.

Shape legend: B batch, C channels, F bands, W frames, N all numbers of a map in the order of memory, L lanes (numbers of
a tile: whole pixels, so that lane l always belongs to channel l modulo C), P ranges of the map, one per thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.kernels.floats import as_array, is_for_kernels, kernel, like, to_float
from bench.kernels.rows import for_ranges, num_parts

LANES = 512
BLOCK_TILES = 64  # numbers added up in float32 before they go into a sum in float64


def norm_channels(x_BCFW: Tensor, norm: nn.BatchNorm2d, relu: bool) -> Tensor:
    """Return norm(x), or norm(relu(x)), and update the statistics of `norm` as it does itself; may overwrite x.

    The kernels are for float32 and bfloat16 on the CPU, channels last, in training or without gradients. All else (a
    GPU, SyncBatchNorm, another kind of average) goes through torch.
    """
    if not _is_for_norm(x_BCFW, norm):
        normed_BCFW: Tensor = norm(functional.relu_(x_BCFW) if relu else x_BCFW)
        return normed_BCFW
    floor = np.float32(0 if relu else -np.inf)  # a ReLU is a maximum with 0, and with -infinity none
    if not norm.training:
        assert norm.running_mean is not None and norm.running_var is not None
        scale_C = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return _scaled(x_BCFW, floor, scale_C, norm.bias - norm.running_mean * scale_C)
    out_BCFW, mean_C, var_C = _TrainingNorm.apply(  # type: ignore[no-untyped-call]
        x_BCFW, norm.weight, norm.bias, floor, norm.eps
    )
    _update_statistics(norm, mean_C, var_C, x_BCFW.numel() // len(mean_C))
    result_BCFW: Tensor = out_BCFW
    return result_BCFW


def is_channels_last_on_cpu(x_BCFW: Tensor) -> bool:
    """Return whether the kernels can compute with a map, which must also be of a format they know, and not empty."""
    last = x_BCFW.is_contiguous(memory_format=torch.channels_last)
    return is_for_kernels(x_BCFW) and last and x_BCFW.numel() > 0


def pixels(x_BCFW: Tensor) -> Any:
    """Return a map as an array (B, F, W, C) that shares its memory if it is channels_last, and otherwise is a copy."""
    return as_array(x_BCFW.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))


def _is_for_norm(x_BCFW: Tensor, norm: nn.BatchNorm2d) -> bool:
    per_channel = x_BCFW.numel() // max(1, x_BCFW.shape[1])
    return (
        is_channels_last_on_cpu(x_BCFW)
        and type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.weight.dtype == torch.float32
        and norm.track_running_stats
        and norm.momentum is not None
        and (per_channel > 1 if norm.training else not torch.is_grad_enabled())
    )


@torch.no_grad()
def _update_statistics(norm: nn.BatchNorm2d, mean_C: Tensor, var_C: Tensor, per_channel: int) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None and norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean_C, norm.momentum)
    norm.running_var.lerp_(var_C * (per_channel / (per_channel - 1)), norm.momentum)


class _TrainingNorm(torch.autograd.Function):
    """Normalises with the statistics of the batch; returns them too, which are computed in float64."""

    @staticmethod
    def forward(
        context: Any, x_BCFW: Tensor, weight_C: Tensor, bias_C: Tensor, floor: np.float32, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_pixels = x_BCFW.numel() // x_BCFW.shape[1]
        # The sums are of differences from any value of the channel: no digits are lost where its mean is far from 0.
        pivot_C = x_BCFW[0, :, 0, 0].float().clamp(min=float(floor))
        mean_C, square_C = _sums(_add_map, (_numbers(x_BCFW),), floor, pivot_C) / num_pixels
        var_C = (square_C - mean_C**2).clamp(min=0)
        mean_C += pivot_C
        scale_C = weight_C / torch.sqrt(var_C + eps)
        out_BCFW = _scaled(x_BCFW, floor, scale_C, bias_C - mean_C * scale_C)
        context.save_for_backward(x_BCFW, weight_C, mean_C, var_C)
        context.floor, context.eps = floor, eps
        mean_C, var_C = mean_C.float(), var_C.float()
        context.mark_non_differentiable(mean_C, var_C)
        return out_BCFW, mean_C, var_C

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradient_BCFW: Tensor) -> Any:
        x_BCFW, weight_C, mean_C, var_C = context.saved_tensors
        num_pixels, floor = x_BCFW.numel() // len(mean_C), context.floor
        x_N, gradient_N = _numbers(x_BCFW), _numbers(gradient_BCFW[0])
        by_bias_C, product_C = _sums(_add_gradient, (x_N, gradient_N), floor, mean_C)
        rstd_C = 1 / torch.sqrt(var_C + context.eps)
        scale_C = weight_C * rstd_C
        factors_C = scale_C, -scale_C * rstd_C**2 * product_C / num_pixels, -scale_C * by_bias_C / num_pixels
        by_x_BCFW = torch.empty_like(x_BCFW)
        given, by_x_N = (x_N, gradient_N, floor, *map(_lanes, (mean_C, *factors_C))), _numbers(by_x_BCFW)
        _for_blocks(lambda first, end, _: _pass_back(*given, by_x_N, first, end), x_N, given[-1])
        return by_x_BCFW, (product_C * rstd_C).to(weight_C), by_bias_C.to(weight_C), None, None


def _scaled(x_BCFW: Tensor, floor: np.float32, scale_C: Tensor, shift_C: Tensor) -> Tensor:
    out_BCFW = torch.empty_like(x_BCFW)
    x_N, out_N, scale_L, shift_L = _numbers(x_BCFW), _numbers(out_BCFW), _lanes(scale_C), _lanes(shift_C)
    _for_blocks(lambda first, end, _: _scale(x_N, floor, scale_L, shift_L, out_N, first, end), x_N, scale_L)
    return out_BCFW


def _sums(kernel: Any, maps: tuple[Any, ...], floor: np.float32, pivot_C: Tensor) -> Tensor:
    """Return the two sums (2, C) over all pixels, in float64, that a kernel adds up by lanes."""
    pivot_L = _lanes(pivot_C)
    sums_P2L = np.zeros((num_parts(), 2, len(pivot_L)))
    _for_blocks(lambda first, end, part: kernel(*maps, floor, pivot_L, sums_P2L[part], first, end), maps[0], pivot_L)
    return torch.from_numpy(sums_P2L.reshape(len(sums_P2L), 2, -1, len(pivot_C)).sum(axis=(0, 2)))


def _numbers(x_BCFW: Tensor) -> Any:
    return pixels(x_BCFW).reshape(-1)


def _lanes(vector_C: Tensor) -> Any:
    """Return the values of the channels once for every pixel of a tile (L)."""
    return np.tile(vector_C.detach().float().numpy(), max(1, LANES // len(vector_C)))


def _for_blocks(kernel: Any, x_N: Any, example_L: Any) -> None:
    for_ranges(kernel, -(-len(x_N) // (BLOCK_TILES * len(example_L))))


# The loops run over slices from 0 on: an index that could be negative keeps LLVM from using all lanes. So does writing
# to two of more than five arrays, since it then no longer checks whether they overlap.


@kernel
def _add_map(x_N, floor, pivot_L, sums_2L, first, end):  # type: ignore[no-untyped-def]
    """Add up the differences from the pivot, and their squares."""
    lanes = len(pivot_L)
    for block in range(first, end):
        sum_L, square_L = np.zeros(lanes, np.float32), np.zeros(lanes, np.float32)
        for tile in range(block * BLOCK_TILES, (block + 1) * BLOCK_TILES):
            x_L = x_N[tile * lanes : (tile + 1) * lanes]  # the last one may be shorter, or empty
            for lane in range(len(x_L)):
                value = to_float(x_L[lane])
                # Comparisons of NaN are false: written so, it stays NaN.
                value = (floor if value < floor else value) - pivot_L[lane]
                sum_L[lane] += value
                square_L[lane] += value * value
        sums_2L[0] += sum_L
        sums_2L[1] += square_L


@kernel
def _scale(x_N, floor, scale_L, shift_L, out_N, first, end):  # type: ignore[no-untyped-def]
    lanes = len(scale_L)
    for tile in range(first * BLOCK_TILES, end * BLOCK_TILES):
        x_L, out_L = x_N[tile * lanes : (tile + 1) * lanes], out_N[tile * lanes : (tile + 1) * lanes]
        for lane in range(len(x_L)):
            value = to_float(x_L[lane])
            value = floor if value < floor else value
            out_L[lane] = like(value * scale_L[lane] + shift_L[lane], x_L[lane])


@kernel
def _add_gradient(x_N, gradient_N, floor, mean_L, sums_2L, first, end):  # type: ignore[no-untyped-def]
    """Add up the gradients, and their products with the differences from the mean."""
    lanes = len(mean_L)
    for block in range(first, end):
        sum_L, product_L = np.zeros(lanes, np.float32), np.zeros(lanes, np.float32)
        for tile in range(block * BLOCK_TILES, (block + 1) * BLOCK_TILES):
            tile_L = slice(tile * lanes, (tile + 1) * lanes)
            x_L, gradient_L = x_N[tile_L], gradient_N[tile_L]
            for lane in range(len(x_L)):
                value, gradient = to_float(x_L[lane]), to_float(gradient_L[lane])
                value = floor if value < floor else value
                sum_L[lane] += gradient
                product_L[lane] += gradient * (value - mean_L[lane])
        sums_2L[0] += sum_L
        sums_2L[1] += product_L


@kernel
def _pass_back(  # type: ignore[no-untyped-def]
    x_N, gradient_N, floor, mean_L, by_gradient_L, by_value_L, constant_L, by_x_N, first, end
):
    """Write the gradient by x: a factor times the gradient, one times the difference from the mean, and a constant."""
    lanes = len(mean_L)
    for tile in range(first * BLOCK_TILES, end * BLOCK_TILES):
        tile_L = slice(tile * lanes, (tile + 1) * lanes)
        x_L, gradient_L, by_x_L = x_N[tile_L], gradient_N[tile_L], by_x_N[tile_L]
        for lane in range(len(x_L)):
            value = to_float(x_L[lane])
            slope = by_gradient_L[lane] * to_float(gradient_L[lane]) + by_value_L[lane] * (value - mean_L[lane])
            by_x_L[lane] = like(np.float32(0) if value <= floor else slope + constant_L[lane], x_L[lane])
