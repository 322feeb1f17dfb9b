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
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.kernels.channel_norm import pixels
from bench.kernels.floats import exp_of_negative, kernel, like, to_float
from bench.kernels.rows import for_ranges, num_parts


def attend(
    x_BCFW: Tensor, time_weights_W: Tensor, freq_weights_F: Tensor, scale: float, skip_BCFW: Tensor | None
) -> Tensor:
    """Return x masked by its attention, plus `skip`, in float32 or bfloat16 as x is; all sums are float32.

    x is channels_last and on the CPU, `skip` of the same shape and format.
    """
    result_BCFW: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
        x_BCFW, time_weights_W, freq_weights_F, scale, skip_BCFW
    )
    return result_BCFW


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        x_BCFW: Tensor,
        time_weights_W: Tensor,
        freq_weights_F: Tensor,
        scale: float,
        skip_BCFW: Tensor | None,
    ) -> Tensor:
        batch, channels, bands, frames = x_BCFW.shape
        out_BCFW = torch.empty_like(x_BCFW)
        # The softmax over bands is multiplied by the scale here and in the backward pass.
        bands_BFC, frames_BWC = torch.empty(batch, bands, channels), torch.empty(batch, frames, channels)
        weights = _weights(time_weights_W, freq_weights_F, channels)
        given = (_bands(x_BCFW), *weights, np.float32(scale), None if skip_BCFW is None else _bands(skip_BCFW))
        found = bands_BFC.numpy(), frames_BWC.numpy(), _bands(out_BCFW)
        for_ranges(lambda first, end, _: _attend(*given, *found, first, end), batch)
        context.save_for_backward(x_BCFW, time_weights_W, freq_weights_F, bands_BFC, frames_BWC)
        context.scale = np.float32(scale)
        return out_BCFW

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradient_BCFW: Tensor) -> Any:
        x_BCFW, time_weights_W, freq_weights_F, bands_BFC, frames_BWC = context.saved_tensors
        batch, channels, bands, frames = x_BCFW.shape
        by_x_BCFW = torch.empty_like(x_BCFW)
        by_time_PK, by_freq_PF = np.zeros((num_parts(), frames * channels)), np.zeros((num_parts(), bands))
        weights = _weights(time_weights_W, freq_weights_F, channels)
        given = (
            _bands(x_BCFW),
            *weights,
            context.scale,
            _bands(gradient_BCFW[0]),
            bands_BFC.numpy(),
            frames_BWC.numpy(),
        )
        by_x_BFK = _bands(by_x_BCFW)
        for_ranges(
            lambda first, end, part: _pass_back(*given, by_x_BFK, by_time_PK[part], by_freq_PF[part], first, end), batch
        )
        by_time_W = torch.from_numpy(by_time_PK.reshape(-1, frames, channels).sum(axis=(0, 2))).to(time_weights_W)
        by_freq_F = torch.from_numpy(by_freq_PF.sum(axis=0)).to(freq_weights_F)
        return by_x_BCFW, by_time_W, by_freq_F, None, gradient_BCFW[0] if context.needs_input_grad[4] else None


def _weights(time_weights_W: Tensor, freq_weights_F: Tensor, channels: int) -> tuple[Any, Any]:
    """Return the weights of the numbers of a band (K) and of the bands (F), in float32."""
    return time_weights_W.detach().float().repeat_interleave(channels).numpy(), freq_weights_F.detach().float().numpy()


def _bands(x_BCFW: Tensor) -> Any:
    """Return a map as an array (B, F, K)."""
    x_BFWC = pixels(x_BCFW)
    return x_BFWC.reshape(*x_BFWC.shape[:2], -1)


# The loops write to one array, or to two of at most five: LLVM checks no more for overlaps, and would use one lane.


@kernel
def _attend(  # type: ignore[no-untyped-def]
    x_BFK, time_K, freq_F, scale, skip_BFK, bands_BFC, frames_BWC, out_BFK, first, end
):
    num_values = len(time_K)
    weighted_K, bands_K = np.empty(num_values, np.float32), np.empty(num_values, np.float32)
    for b in range(first, end):
        frames_K = frames_BWC[b].reshape(-1)
        frames_K[:] = np.float32(0)
        for f in range(len(freq_F)):
            x_K, weight = x_BFK[b, f], freq_F[f]
            for k in range(num_values):
                value = to_float(x_K[k])
                frames_K[k] += value * weight
                weighted_K[k] = value * time_K[k]
            _fold(weighted_K, bands_BFC[b, f])
        _softmax(frames_BWC[b], np.float32(1))
        _softmax(bands_BFC[b], scale)
        for f in range(len(freq_F)):
            x_K, out_K = x_BFK[b, f], out_BFK[b, f]
            _spread(bands_BFC[b, f], bands_K)
            if skip_BFK is None:
                for k in range(num_values):
                    out_K[k] = like(to_float(x_K[k]) * bands_K[k] * frames_K[k], x_K[k])
            else:
                skip_K = skip_BFK[b, f]
                for k in range(num_values):
                    out_K[k] = like(to_float(skip_K[k]) + to_float(x_K[k]) * bands_K[k] * frames_K[k], x_K[k])


@kernel
def _pass_back(  # type: ignore[no-untyped-def]
    x_BFK, time_K, freq_F, scale, gradient_BFK, bands_BFC, frames_BWC, by_x_BFK, by_time_K, by_freq_F, first, end
):
    num_values = len(time_K)
    product_K, bands_K, by_logit_K, sum_K = np.empty((4, num_values), np.float32)
    by_frames_WC, by_bands_FC = np.empty(frames_BWC.shape[1:], np.float32), np.empty(bands_BFC.shape[1:], np.float32)
    by_frames_K = by_frames_WC.reshape(-1)
    for b in range(first, end):
        frames_K = frames_BWC[b].reshape(-1)
        by_frames_K[:] = np.float32(0)
        for f in range(len(freq_F)):
            x_K, gradient_K = x_BFK[b, f], gradient_BFK[b, f]
            _spread(bands_BFC[b, f], bands_K)
            for k in range(num_values):
                product_K[k] = to_float(gradient_K[k]) * to_float(x_K[k])
                by_frames_K[k] += product_K[k] * bands_K[k]
            for k in range(num_values):
                product_K[k] *= frames_K[k]
            _fold(product_K, by_bands_FC[f])
        _softmax_back(frames_BWC[b], np.float32(1), by_frames_WC)
        _softmax_back(bands_BFC[b], scale, by_bands_FC)
        # From here on, by_frames and by_bands are the gradients at the logits.
        sum_K[:] = np.float32(0)
        for f in range(len(freq_F)):
            x_K, gradient_K, by_x_K, weight = x_BFK[b, f], gradient_BFK[b, f], by_x_BFK[b, f], freq_F[f]
            _spread(bands_BFC[b, f], bands_K)
            _spread(by_bands_FC[f], by_logit_K)
            for k in range(num_values):
                by_logits = by_logit_K[k] * time_K[k] + by_frames_K[k] * weight
                by_x_K[k] = like(to_float(gradient_K[k]) * bands_K[k] * frames_K[k] + by_logits, x_K[k])
            by_weight = np.float32(0)
            for k in range(num_values):
                value = to_float(x_K[k])
                sum_K[k] += by_logit_K[k] * value
                by_weight += by_frames_K[k] * value
            by_freq_F[f] += by_weight
        by_time_K += sum_K


@kernel
def _fold(value_K, sum_C):  # type: ignore[no-untyped-def]
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


@kernel
def _spread(value_C, out_K):  # type: ignore[no-untyped-def]
    """Write the value of each channel into all frames of a band, doubling what is written."""
    done = len(value_C)
    for c in range(done):
        out_K[c] = value_C[c]
    while done < len(out_K):
        given, new = out_K[:done], out_K[done : 2 * done]  # the last may be shorter
        for k in range(len(new)):
            new[k] = given[k]
        done *= 2


@kernel
def _softmax(logit_NC, scale):  # type: ignore[no-untyped-def]
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


@kernel
def _softmax_back(soft_NC, scale, by_NC):  # type: ignore[no-untyped-def]
    """Replace the gradients at `scale` times a softmax by those at its logits."""
    number, channels = soft_NC.shape
    sum_C = np.zeros(channels, np.float32)
    for n in range(number):
        for c in range(channels):
            sum_C[c] += soft_NC[n, c] * by_NC[n, c] / scale
    for n in range(number):
        for c in range(channels):
            by_NC[n, c] = soft_NC[n, c] * (by_NC[n, c] - sum_C[c])
