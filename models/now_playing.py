"""The Now-Playing / NAFP encoder: spatially separable convolutions and a divide-and-encode head.

The default is the baseline of Singh et al. (ISMIR 2022): the network of NAFP on their 64-band log-mel, with stride 2 in
both directions everywhere, as in the paper of NAFP. Other settings give the network of NAFP's released code: see
docs/encoders/now-playing.md.

Shape legend: B batch, T samples, C channels, F mel bands, W frames, D dimensions of the fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from bench.audio.frontend import LogMel, MagnitudeMel
from bench.errors import ConfigError
from bench.kernels.floats import is_for_kernels
from bench.kernels.map_norm import Order, map_norm
from bench.models._divide_encode import SplitHead

CITE = "Chang et al., Neural audio fingerprint for high-specific audio retrieval, ICASSP 2021"
LICENSE = "MIT"
SOURCE = "the paper's section 2.2; NAFP's table of layers; Singh et al. (ISMIR 2022) for the input"

CHANNELS = (128, 128, 256, 256, 512, 512, 1024, 1024)
UNSTRIDED_LAYERS = (5, 7)  # counted from 1: their stride in time is 1 in the released code

FrontEnd = Literal["mel64-16k", "mel256-8k", "mel256-8k-maxnorm"]
# For each front end: sample rate in Hz, length of a segment in s, bands and frames of a patch.
INPUTS: dict[FrontEnd, tuple[int, float, int, int]] = {
    "mel64-16k": (16_000, 0.96, 64, 96),
    "mel256-8k": (8_000, 1.0, 256, 32),
    "mel256-8k-maxnorm": (8_000, 1.0, 256, 32),
}


@dataclass(frozen=True)
class Config:
    """Settings of the encoder."""

    width: float = 1.0
    """Factor of all channel counts, above 0; 1 is the network of the paper.

    All channel counts must be whole numbers, and that of the last layer a multiple of `dim`.
    """

    dim: int = 128
    """Dimensions of a fingerprint, at least 1."""

    norm_order: Order = "norm-relu"
    """`norm-relu` normalises before a ReLU, as in the paper; `elu-norm` after an ELU, as in the released code."""

    strides: Literal["paper", "code"] = "paper"
    """`paper` has stride 2 everywhere; `code` has stride 1 in time at the fifth and the seventh layer."""

    front_end: FrontEnd = "mel64-16k"
    """The log-mel input.

    `mel64-16k` is that of Singh et al., `mel256-8k` that of NAFP; `mel256-8k-maxnorm` scales the latter to [-1, 1].
    """

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError(f"model.dim must be >= 1, got {self.dim}")
        last = CHANNELS[-1] * self.width
        if self.width <= 0 or last % self.dim or (CHANNELS[0] * self.width) % 1:
            raise ConfigError(
                f"model.width must make {CHANNELS[0]} x width whole and {CHANNELS[-1]} x width a multiple of "
                f"model.dim = {self.dim} (each dimension has its own slice of channels), got {self.width}"
            )


def build(config: Config) -> NowPlaying:
    """Return the encoder with random weights, drawn from the global generator of torch."""
    return NowPlaying(config)


class NowPlaying(nn.Module):
    """Turns 0.96 s of audio at 16 kHz, or 1 s at 8 kHz, into a unit vector."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dim = config.dim
        self.rate_hz, self.segment_s, bands, frames = INPUTS[config.front_end]
        self.front_end = (
            LogMel() if config.front_end == "mel64-16k" else MagnitudeMel(config.front_end == "mel256-8k-maxnorm")
        )
        layers: list[nn.Module] = []
        in_channels = 1
        for number, channels in enumerate((int(c * config.width) for c in CHANNELS), start=1):
            stride = 1 if config.strides == "code" and number in UNSTRIDED_LAYERS else 2
            frames = -(-frames // stride)
            layers.append(_HalfLayer(in_channels, channels, (1, 3), (1, stride), (bands, frames), config.norm_order))
            bands = -(-bands // 2)
            layers.append(_HalfLayer(channels, channels, (3, 1), (2, 1), (bands, frames), config.norm_order))
            in_channels = channels
        self.layers = nn.Sequential(*layers)
        self.head = SplitHead(in_channels * bands * frames, config.dim)

    def features(self, wave_BT: Tensor) -> Tensor:
        """Return the log-mel patches (B, 1, F, W) of segments (B, T); by default (B, 1, 64, 96) of (B, 15360)."""
        patch_B1FW: Tensor = self.front_end(wave_BT)
        return patch_B1FW

    def window_features(self, wave_BT: Tensor, hop_samples: int) -> Tensor:
        """Return the patches (B, M, 1, F, W) of all whole segments of each wave (B, T), one every hop."""
        return self.front_end.of_windows(wave_BT, round(self.segment_s * self.rate_hz), hop_samples)

    def embed(self, patch_B1FW: Tensor) -> Tensor:
        """Return unit vectors (B, D) of log-mel patches (B, 1, F, W).

        Channels are the fastest axis in memory (channels_last) in all convolutions and norms, so that oneDNN convolves
        without reordering the maps, forward and backward (docs/encoders/now-playing.md).
        """
        # A map of one channel is contiguous in both memory orders; only a copy marks it as channels_last.
        top_BCFW = self.layers(patch_B1FW.clone(memory_format=torch.channels_last))
        return functional.normalize(self.head(top_BCFW.flatten(1)).float(), dim=1)

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Return unit vectors (B, D) of segments (B, T)."""
        return self.embed(self.features(wave_BT))


class _HalfLayer(nn.Module):
    """A strided convolution along one axis, and a norm over (C, F, W) with one weight per value.

    DEVIATION: "same" padding is one zero on each side. TensorFlow, used by the released code, pads an even axis with
    stride 2 by a single zero at its end, so its taps lie one value later. Weights converted from the released code
    would need that padding; nothing else depends on it.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        shape: tuple[int, int],
        norm_order: Order,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=(kernel[0] // 2, kernel[1] // 2))
        self.norm = _MapNorm((channels, *shape))
        self.norm_order = norm_order

    def forward(self, x_BCFW: Tensor) -> Tensor:
        y_BCFW = self._convolve(x_BCFW)
        if is_for_kernels(y_BCFW):
            return self.norm.with_activation(y_BCFW, self.norm_order)
        if self.norm_order == "norm-relu":
            return functional.relu(self.norm(y_BCFW))
        normed_BCFW: Tensor = self.norm(functional.elu(y_BCFW))
        return normed_BCFW

    def _convolve(self, x_BCFW: Tensor) -> Tensor:
        """Return the convolution; if the axis is no longer than the stride, only the taps that meet data are used.

        The bf16 backward pass of oneDNN leaves the gradient of taps that only meet padding uninitialised, which put NaN
        into the weights (docs/experiments.md, "bf16 gradients of kernel taps that only meet padding (oneDNN)"). Here
        that gradient is zero.
        """
        axis = 3 if self.conv.kernel_size[1] == 3 else 2
        size = x_BCFW.shape[axis]
        if size > self.conv.stride[axis - 2]:
            convolved_BCFW: Tensor = self.conv(x_BCFW)
            return convolved_BCFW
        weight = self.conv.weight.narrow(axis, 1, size)
        if x_BCFW.shape[2:] == weight.shape[2:]:
            # One position: a matrix product, of which oneDNN is three times as fast as of the convolution.
            return functional.linear(x_BCFW.flatten(1), weight.flatten(1), self.conv.bias)[..., None, None]
        return functional.conv2d(x_BCFW, weight, self.conv.bias)


class _MapNorm(nn.LayerNorm):
    """A layer norm over (C, F, W) with one weight per value; channels are the fastest axis of its output.

    The weights are stored as (C, F, W) and permuted in each pass: they are small compared with a batch of maps.
    """

    def forward(self, x_BCFW: Tensor) -> Tensor:
        x_BFWC = x_BCFW.permute(0, 2, 3, 1)
        weight_FWC, bias_FWC = self._permuted()
        normed_BFWC = functional.layer_norm(x_BFWC, x_BFWC.shape[1:], weight_FWC, bias_FWC, self.eps)
        return normed_BFWC.permute(0, 3, 1, 2)

    def with_activation(self, x_BCFW: Tensor, order: Order) -> Tensor:
        """Return relu(norm(x)) or norm(elu(x)) of maps on the CPU, in one pass."""
        x_BFWC = x_BCFW.permute(0, 2, 3, 1)
        weight_FWC, bias_FWC = self._permuted()
        out_BK = map_norm(x_BFWC.flatten(1), weight_FWC.flatten(), bias_FWC.flatten(), self.eps, order)
        return out_BK.view(x_BFWC.shape).permute(0, 3, 1, 2)

    def _permuted(self) -> tuple[Tensor, Tensor]:
        return self.weight.permute(1, 2, 0).contiguous(), self.bias.permute(1, 2, 0).contiguous()
