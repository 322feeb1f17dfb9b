"""Batch normalisation of maps whose channels are the fastest axis in memory, after an optional ReLU, on the CPU.

Torch normalises such maps slowly if they have few channels, since it computes with one pixel at a time. Here a *tile* of
many pixels is one vector, whatever the number of channels, and the ReLU costs no pass of its own.

Shape legend: B batch, C channels, F bands, W frames, N all numbers of a map in the order of memory, L lanes (the numbers
of a tile: whole pixels, so that lane l always belongs to channel l modulo C), P ranges of the map, one per thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numba import njit
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.kernels.floats import FAST, as_array, like, to_float
from bench.kernels.rows import for_ranges, num_parts

LANES = 512
BLOCK_TILES = 64  # numbers added up in float32 before they go into a sum in float64


def norm_channels(x_BCFW: Tensor, norm: nn.BatchNorm2d, relu: bool) -> Tensor:
    """Return norm(x), or norm(relu(x)), and update the statistics of `norm` as it does itself; may overwrite x.

    The kernels take float32 and bfloat16 on the CPU, channels last, in training and where no gradients are wanted. All
    else (a GPU, SyncBatchNorm, other settings of the norm) goes through torch.
    """
    if not _is_for_kernels(x_BCFW, norm):
        normed_BCFW: Tensor = norm(functional.relu_(x_BCFW) if relu else x_BCFW)
        return normed_BCFW
    floor = np.float32(0 if relu else -np.inf)  # a ReLU is a maximum with 0, and with -infinity none
    if not norm.training:
        assert norm.running_mean is not None and norm.running_var is not None
        scale_C = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        out_BCFW = torch.empty_like(x_BCFW)
        _scale_map(x_BCFW, floor, scale_C, norm.bias - norm.running_mean * scale_C, out_BCFW)
        return out_BCFW
    out_BCFW, mean_C, var_C = _TrainingNorm.apply(x_BCFW, norm.weight, norm.bias, floor, norm.eps)
    _update_statistics(norm, mean_C, var_C, x_BCFW.numel() // len(mean_C))
    result_BCFW: Tensor = out_BCFW
    return result_BCFW


def is_channels_last(x_BCFW: Tensor) -> bool:
    """Return whether the kernels can compute with a map: on the CPU, channels last, not empty, of a format they know."""
    return (
        x_BCFW.device.type == "cpu"
        and x_BCFW.dtype in (torch.float32, torch.bfloat16)
        and x_BCFW.numel() > 0
        and x_BCFW.is_contiguous(memory_format=torch.channels_last)
    )


def pixels(x_BCFW: Tensor) -> Any:
    """Return a map as an array (B, F, W, C) that shares its memory if it is channels_last, and otherwise is a copy."""
    return as_array(x_BCFW.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))


def _is_for_kernels(x_BCFW: Tensor, norm: nn.BatchNorm2d) -> bool:
    per_channel = x_BCFW.numel() // max(1, x_BCFW.shape[1])
    return (
        is_channels_last(x_BCFW)
        and type(norm) is nn.BatchNorm2d
        and norm.affine
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
    """Normalises with the statistics of the batch, and returns them too (without gradients)."""

    @staticmethod
    def forward(
        ctx: Any, x_BCFW: Tensor, weight_C: Tensor, bias_C: Tensor, floor: np.float32, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_N, count = pixels(x_BCFW).reshape(-1), x_BCFW.numel() // x_BCFW.shape[1]
        # Sums of differences from any value of the channel lose no digits where the mean is far from 0.
        pivot_C = x_BCFW[0, :, 0, 0].float().clamp(min=float(floor))
        sum_C, square_C = _sums(_add_map, len(pivot_C), x_N, floor, _lanes(pivot_C))
        mean_C = pivot_C + sum_C / count
        var_C = (square_C / count - (sum_C / count) ** 2).clamp(min=0)
        rstd_C = 1 / torch.sqrt(var_C + eps)
        out_BCFW = torch.empty_like(x_BCFW)
        _scale_map(x_BCFW, floor, weight_C * rstd_C, bias_C - mean_C * weight_C * rstd_C, out_BCFW)
        ctx.save_for_backward(x_BCFW, weight_C, mean_C, rstd_C)
        ctx.floor = floor
        mean_C, var_C = mean_C.float(), var_C.float()
        ctx.mark_non_differentiable(mean_C, var_C)
        return out_BCFW, mean_C, var_C

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_BCFW: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x_BCFW, weight_C, mean_C, rstd_C = ctx.saved_tensors
        x_N, grad_N, count = pixels(x_BCFW).reshape(-1), pixels(grad_BCFW).reshape(-1), x_BCFW.numel() // len(mean_C)
        mean_L = _lanes(mean_C)
        sum_C, product_C = _sums(_add_gradient, len(mean_C), x_N, grad_N, ctx.floor, mean_L)
        grad_weight_C = product_C * rstd_C
        out_BCFW = torch.empty_like(x_BCFW)
        scale_C = weight_C * rstd_C
        vectors = (scale_C, -scale_C * rstd_C * grad_weight_C / count, -scale_C * sum_C / count)
        a_L, b_L, c_L = (_lanes(vector_C) for vector_C in vectors)
        out_N = pixels(out_BCFW).reshape(-1)
        _for_blocks(
            lambda first, end, _: _gradient(x_N, grad_N, ctx.floor, mean_L, a_L, b_L, c_L, out_N, first, end), x_N, mean_L
        )
        return out_BCFW, grad_weight_C.to(weight_C), sum_C.to(weight_C), None, None


def _scale_map(x_BCFW: Tensor, floor: np.float32, scale_C: Tensor, shift_C: Tensor, out_BCFW: Tensor) -> None:
    x_N, out_N, scale_L, shift_L = pixels(x_BCFW).reshape(-1), pixels(out_BCFW).reshape(-1), _lanes(scale_C), _lanes(shift_C)
    _for_blocks(lambda first, end, _: _scale(x_N, floor, scale_L, shift_L, out_N, first, end), x_N, scale_L)


def _sums(kernel: Any, channels: int, x_N: Any, *arguments: Any) -> Tensor:
    """Return the two sums (2, C) over all pixels, in float64, that a kernel adds up by lanes."""
    lane_L = arguments[-1]
    sums_P2L = np.zeros((num_parts(), 2, len(lane_L)))
    _for_blocks(lambda first, end, part: kernel(x_N, *arguments, sums_P2L[part], first, end), x_N, lane_L)
    return torch.from_numpy(sums_P2L.reshape(-1, 2, len(lane_L) // channels, channels).sum(axis=(0, 2)))


def _lanes(vector_C: Tensor) -> Any:
    """Return the values of the channels once for every pixel of a tile (L)."""
    return np.tile(vector_C.detach().float().numpy(), max(1, LANES // len(vector_C)))


def _for_blocks(kernel: Any, x_N: Any, lane_L: Any) -> None:
    for_ranges(kernel, -(-len(x_N) // (BLOCK_TILES * len(lane_L))))


@njit(nogil=True, cache=True, fastmath=FAST)
def _add_map(x_N: Any, floor: Any, pivot_L: Any, sums_2L: Any, first: int, end: int) -> None:
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


@njit(nogil=True, cache=True, fastmath=FAST)
def _scale(x_N: Any, floor: Any, scale_L: Any, shift_L: Any, out_N: Any, first: int, end: int) -> None:
    lanes = len(scale_L)
    for tile in range(first * BLOCK_TILES, end * BLOCK_TILES):
        x_L, out_L = x_N[tile * lanes : (tile + 1) * lanes], out_N[tile * lanes : (tile + 1) * lanes]
        for lane in range(len(x_L)):
            value = to_float(x_L[lane])
            value = floor if value < floor else value
            out_L[lane] = like(value * scale_L[lane] + shift_L[lane], x_L[lane])


@njit(nogil=True, cache=True, fastmath=FAST)
def _add_gradient(x_N: Any, grad_N: Any, floor: Any, mean_L: Any, sums_2L: Any, first: int, end: int) -> None:
    lanes = len(mean_L)
    for block in range(first, end):
        sum_L, product_L = np.zeros(lanes, np.float32), np.zeros(lanes, np.float32)
        for tile in range(block * BLOCK_TILES, (block + 1) * BLOCK_TILES):
            x_L, grad_L = x_N[tile * lanes : (tile + 1) * lanes], grad_N[tile * lanes : (tile + 1) * lanes]
            for lane in range(len(x_L)):
                value, grad = to_float(x_L[lane]), to_float(grad_L[lane])
                value = floor if value < floor else value
                sum_L[lane] += grad
                product_L[lane] += grad * (value - mean_L[lane])
        sums_2L[0] += sum_L
        sums_2L[1] += product_L


@njit(nogil=True, cache=True, fastmath=FAST)
def _gradient(
    x_N: Any, grad_N: Any, floor: Any, mean_L: Any, a_L: Any, b_L: Any, c_L: Any, out_N: Any, first: int, end: int
) -> None:
    """Write a * gradient + b * (x - mean) + c, and 0 where the ReLU is."""
    lanes = len(mean_L)
    for tile in range(first * BLOCK_TILES, end * BLOCK_TILES):
        x_L, grad_L = x_N[tile * lanes : (tile + 1) * lanes], grad_N[tile * lanes : (tile + 1) * lanes]
        out_L = out_N[tile * lanes : (tile + 1) * lanes]
        for lane in range(len(x_L)):
            value = to_float(x_L[lane])
            slope = a_L[lane] * to_float(grad_L[lane]) + b_L[lane] * (value - mean_L[lane]) + c_L[lane]
            out_L[lane] = like(np.float32(0) if value <= floor else slope, x_L[lane])
