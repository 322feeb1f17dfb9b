"""Spectral-temporal attention on maps whose channels are the fastest axis in memory, on the CPU, with its residual sum.

For each channel of a map: over_bands[f] = scale * softmax over f of sum_w x[f, w] time_weights[w], over_frames[w] =
softmax over w of sum_f x[f, w] freq_weights[f], result[f, w] = skip[f, w] + x[f, w] over_bands[f] over_frames[w].
A map fits into the processor's cache, so that memory is read and written once, where torch passes over it six times.

Shape legend: B batch, C channels, F bands, W frames, K = W C the numbers of a band, P ranges of maps, one per thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.kernels.channel_norm import pixels
from bench.kernels.floats import FAST, exp_of_negative, like, to_float
from bench.kernels.rows import for_ranges, num_parts


def attend(
    x_BCFW: Tensor, time_weights_W: Tensor, freq_weights_F: Tensor, scale: float, skip_BCFW: Tensor | None
) -> Tensor:
    """Return x masked by its attention, plus `skip`, in float32 or bfloat16 as x is; all sums are float32.

    x is channels_last and on the CPU, `skip` of the same shape and format.
    """
    result_BCFW: Tensor = _Attend.apply(x_BCFW, time_weights_W, freq_weights_F, scale, skip_BCFW)
    return result_BCFW


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BCFW: Tensor, time_weights_W: Tensor, freq_weights_F: Tensor, scale: float, skip_BCFW: Tensor | None
    ) -> Tensor:
        batch, channels, bands, frames = x_BCFW.shape
        out_BCFW = torch.empty_like(x_BCFW)
        bands_BFC, frames_BWC = torch.empty(batch, bands, channels), torch.empty(batch, frames, channels)
        x, out, skip = (None if map_ is None else _bands(map_) for map_ in (x_BCFW, out_BCFW, skip_BCFW))
        weights = time_weights_W.detach().float().repeat_interleave(channels).numpy(), freq_weights_F.detach().float().numpy()
        vectors = bands_BFC.numpy(), frames_BWC.numpy()
        for_ranges(lambda first, end, _: _attend(x, *weights, np.float32(scale), skip, *vectors, out, first, end), batch)
        ctx.save_for_backward(x_BCFW, time_weights_W, freq_weights_F, bands_BFC, frames_BWC)
        ctx.scale = scale
        return out_BCFW

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_BCFW: Tensor) -> tuple[Tensor | None, ...]:
        x_BCFW, time_weights_W, freq_weights_F, bands_BFC, frames_BWC = ctx.saved_tensors
        batch, channels, bands, frames = x_BCFW.shape
        out_BCFW = torch.empty_like(x_BCFW)
        x, grad, out = _bands(x_BCFW), _bands(grad_BCFW), _bands(out_BCFW)
        weights = time_weights_W.float().repeat_interleave(channels).numpy(), freq_weights_F.float().numpy()
        vectors = bands_BFC.numpy(), frames_BWC.numpy()
        scale = np.float32(ctx.scale)
        time_PK, freq_PF = np.zeros((num_parts(), frames * channels)), np.zeros((num_parts(), bands))
        for_ranges(
            lambda first, end, part: _pass_back(
                x, grad, *weights, scale, *vectors, out, time_PK[part], freq_PF[part], first, end
            ),
            batch,
        )
        time_W = torch.from_numpy(time_PK.reshape(-1, frames, channels).sum(axis=(0, 2))).to(time_weights_W)
        freq_F = torch.from_numpy(freq_PF.sum(axis=0)).to(freq_weights_F)
        return out_BCFW, time_W, freq_F, None, grad_BCFW if ctx.needs_input_grad[4] else None


def _bands(x_BCFW: Tensor) -> Any:
    """Return a map as an array (B, F, K)."""
    x_BFWC = pixels(x_BCFW)
    return x_BFWC.reshape(*x_BFWC.shape[:2], -1)


@njit(nogil=True, cache=True, fastmath=FAST)
def _attend(
    x_BFK: Any, time_K: Any, freq_F: Any, scale: Any, skip_BFK: Any, bands_BFC: Any, frames_BWC: Any, out_BFK: Any,
    first: int, end: int,
) -> None:  # fmt: skip
    num_values = len(time_K)
    buffer_K, spread_K = np.empty(num_values, np.float32), np.empty(num_values, np.float32)
    for b in range(first, end):
        frames_K = frames_BWC[b].reshape(-1)
        frames_K[:] = np.float32(0)
        for f in range(len(freq_F)):
            x_K, weight = x_BFK[b, f], freq_F[f]
            for k in range(num_values):
                value = to_float(x_K[k])
                frames_K[k] += value * weight
                buffer_K[k] = value * time_K[k]
            _fold(buffer_K, bands_BFC[b, f])
        _softmax(frames_BWC[b], np.float32(1))
        _softmax(bands_BFC[b], scale)
        for f in range(len(freq_F)):
            x_K, out_K = x_BFK[b, f], out_BFK[b, f]
            _spread(bands_BFC[b, f], spread_K)
            if skip_BFK is None:
                for k in range(num_values):
                    out_K[k] = like(to_float(x_K[k]) * spread_K[k] * frames_K[k], x_K[k])
            else:
                skip_K = skip_BFK[b, f]
                for k in range(num_values):
                    masked = to_float(x_K[k]) * spread_K[k] * frames_K[k]
                    out_K[k] = like(to_float(skip_K[k]) + masked, x_K[k])


@njit(nogil=True, cache=True, fastmath=FAST)
def _pass_back(
    x_BFK: Any, grad_BFK: Any, time_K: Any, freq_F: Any, scale: Any, bands_BFC: Any, frames_BWC: Any, out_BFK: Any,
    time_grad_K: Any, freq_grad_F: Any, first: int, end: int,
) -> None:  # fmt: skip
    num_values = len(time_K)
    buffer_K, spread_K, logit_K = np.empty((3, num_values), np.float32)
    by_frames_WC, by_bands_FC = np.empty(frames_BWC.shape[1:], np.float32), np.empty(bands_BFC.shape[1:], np.float32)
    by_frames_K = by_frames_WC.reshape(-1)
    for b in range(first, end):
        frames_K = frames_BWC[b].reshape(-1)
        by_frames_K[:] = np.float32(0)
        for f in range(len(freq_F)):
            x_K, grad_K = x_BFK[b, f], grad_BFK[b, f]
            _spread(bands_BFC[b, f], spread_K)
            for k in range(num_values):
                buffer_K[k] = to_float(grad_K[k]) * to_float(x_K[k])
                by_frames_K[k] += buffer_K[k] * spread_K[k]
            for k in range(num_values):
                buffer_K[k] *= frames_K[k]
            _fold(buffer_K, by_bands_FC[f])
        _softmax_back(frames_BWC[b], np.float32(1), by_frames_WC)
        _softmax_back(bands_BFC[b], scale, by_bands_FC)
        buffer_K[:] = np.float32(0)
        for f in range(len(freq_F)):
            x_K, grad_K, out_K, weight = x_BFK[b, f], grad_BFK[b, f], out_BFK[b, f], freq_F[f]
            _spread(bands_BFC[b, f], spread_K)
            _spread(by_bands_FC[f], logit_K)
            for k in range(num_values):
                slope = to_float(grad_K[k]) * spread_K[k] * frames_K[k]
                out_K[k] = like(slope + logit_K[k] * time_K[k] + by_frames_K[k] * weight, x_K[k])
            freq_grad = np.float32(0)
            for k in range(num_values):
                value = to_float(x_K[k])
                buffer_K[k] += logit_K[k] * value
                freq_grad += by_frames_K[k] * value
            freq_grad_F[f] += freq_grad
        time_grad_K += buffer_K


@njit(nogil=True, cache=True, fastmath=FAST)
def _fold(value_K: Any, sum_C: Any) -> None:
    """Write the sums over the frames of a band; overwrites it. Halving keeps the loops long if channels are few."""
    num_values, channels = len(value_K), len(sum_C)
    while num_values % (2 * channels) == 0:
        num_values //= 2
        low, high = value_K[:num_values], value_K[num_values : 2 * num_values]
        for k in range(num_values):
            low[k] += high[k]
    sum_C[:] = np.float32(0)
    for start in range(0, num_values, channels):
        for c in range(channels):
            sum_C[c] += value_K[start + c]


@njit(nogil=True, cache=True, fastmath=FAST)
def _spread(value_C: Any, out_K: Any) -> None:
    """Write the value of each channel into all frames of a band, doubling what is written."""
    done = len(value_C)
    for c in range(done):
        out_K[c] = value_C[c]
    while done < len(out_K):
        given, new = out_K[:done], out_K[done : 2 * done]  # the last may be shorter
        for k in range(len(new)):
            new[k] = given[k]
        done *= 2


@njit(nogil=True, cache=True, fastmath=FAST)
def _softmax(logit_NC: Any, scale: Any) -> None:
    """Replace logits by `scale` times their softmax along the first axis."""
    number, channels = logit_NC.shape
    top_C, sum_C = logit_NC[0].copy(), np.zeros(channels, np.float32)
    for n in range(1, number):
        for c in range(channels):
            top_C[c] = max(top_C[c], logit_NC[n, c])
    for n in range(number):
        for c in range(channels):
            logit_NC[n, c] -= top_C[c]
    logit_M = logit_NC.reshape(-1)
    for m in range(len(logit_M)):
        logit_M[m] = exp_of_negative(logit_M[m])
    for n in range(number):
        for c in range(channels):
            sum_C[c] += logit_NC[n, c]
    for c in range(channels):
        sum_C[c] = scale / sum_C[c]
    for n in range(number):
        for c in range(channels):
            logit_NC[n, c] *= sum_C[c]


@njit(nogil=True, cache=True, fastmath=FAST)
def _softmax_back(soft_NC: Any, scale: Any, grad_NC: Any) -> None:
    """Replace the gradients at `scale` times a softmax by those at its logits."""
    number, channels = soft_NC.shape
    sum_C = np.zeros(channels, np.float32)
    for n in range(number):
        for c in range(channels):
            sum_C[c] += soft_NC[n, c] * grad_NC[n, c] / scale
    for n in range(number):
        for c in range(channels):
            grad_NC[n, c] = soft_NC[n, c] * (grad_NC[n, c] - sum_C[c])
