"""The attention CNN of Singh et al. (ISMIR 2022): a residual network with spectral-temporal attention.

What the paper does not specify is either a setting or described in docs/encoders/attention-cnn.md.

Shape legend: B batch, T samples, C channels, F mel bands, W frames, D dimensions of the fingerprint, V values and
H hidden units of all branches of the head, G groups of N rows of K values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from bench.audio.frontend import LogMel
from bench.errors import ConfigError
from bench.kernels.attention import attend
from bench.kernels.channel_norm import is_channels_last_on_cpu, norm_channels
from bench.models._divide_encode import SplitHead

CITE = "Singh, Demuynck and Arora, Attention-based audio embeddings for query-by-example, ISMIR 2022"
LICENSE = "MIT"
SOURCE = "the paper's table 1 and equations 1 to 4; the first author's later code for the STFT"

STEM_CHANNELS = 32
CHANNELS = (32, 64, 128, 256, 512, 1024)
STRIDES = (1, 2, 2, 2, 2, 2)
BANDS, FRAMES = 64, 96
TOP_POSITIONS = 6  # the map of the last block is 2 bands x 3 frames


@dataclass(frozen=True)
class Config:
    """Settings of the encoder."""

    width: float = 1.0
    """Factor of all channel counts, above 0; 1 is the network of the paper.

    All channel counts must be whole numbers, and the number of values of the last layer a multiple of `dim`.
    """

    dim: int = 128
    """Dimensions of a fingerprint, at least 1."""

    attention: Literal["shared", "per-channel", "off"] = "shared"
    """The weights of attention: `shared` by all channels of a block, `per-channel`, or `off` (the ablation)."""

    attention_at: Literal["second-conv", "block-output", "last-block"] = "second-conv"
    """Where attention is applied.

    `second-conv`: after the second convolution of each block; `last-block`: after the second convolution of the last
    block only; `block-output`: after the addition in each block.
    """

    attention_scale: float | Literal["mean-1"] = 100.0
    """S of the paper's equation 3, above 0; "mean-1" uses bands x frames of each map, so that the mask has mean 1."""

    skip: Literal["projection", "none"] = "projection"
    """The skip connection of a block that changes the shape of its map: a `projection`, or `none`."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError(f"model.dim must be >= 1, got {self.dim}")
        if (
            self.width <= 0
            or (STEM_CHANNELS * self.width) % 1
            or (CHANNELS[-1] * TOP_POSITIONS * self.width) % self.dim
        ):
            raise ConfigError(
                f"model.width must make {STEM_CHANNELS} x width whole and {CHANNELS[-1] * TOP_POSITIONS} x width a "
                f"multiple of model.dim = {self.dim} (each dimension has its own slice of values), got {self.width}"
            )
        if self.attention_scale != "mean-1" and self.attention_scale <= 0:
            raise ConfigError(f'model.attention_scale must be > 0 or "mean-1", got {self.attention_scale}')


def build(config: Config) -> AttentionCNN:
    """Return the encoder with random weights, drawn from the global generator of torch."""
    return AttentionCNN(config)


class AttentionCNN(nn.Module):
    """Turns 0.96 s of audio at 16 kHz into a unit vector.

    DEVIATION: a patch is scaled to [-1, 1] by the maximum of its segment (see LogMel), while the later code of the
    authors divides the whole file by its peak. When a segment of a query is embedded, the file is not available.
    """

    rate_hz = 16_000
    segment_s = 0.96

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dim = config.dim
        self.front_end = LogMel()
        in_channels = int(STEM_CHANNELS * config.width)
        self.stem = _ConvReluNorm(1, in_channels, 1)
        blocks: list[nn.Module] = []
        bands, frames = BANDS, FRAMES
        for number, stride in enumerate(STRIDES):
            channels = int(CHANNELS[number] * config.width)
            bands, frames = bands // stride, frames // stride
            last = number == len(STRIDES) - 1
            has_attention = config.attention != "off" and (last or config.attention_at != "last-block")
            attention = _Attention(channels, bands, frames, config) if has_attention else None
            blocks.append(_Block(in_channels, channels, stride, attention, config))
            in_channels = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = SplitHead(in_channels * bands * frames, config.dim)

    def features(self, wave_BT: Tensor) -> Tensor:
        """Return the log-mel patches (B, 1, 64, 96) of segments (B, 15360)."""
        patch_B1FW: Tensor = self.front_end(wave_BT)
        return patch_B1FW

    def window_features(self, wave_BT: Tensor, hop_samples: int) -> Tensor:
        """Return the patches (B, M, 1, 64, 96) of all whole segments of each wave (B, T), one every hop."""
        return self.front_end.of_windows(wave_BT, round(self.segment_s * self.rate_hz), hop_samples)

    def embed(self, patch_B1FW: Tensor) -> Tensor:
        """Return unit vectors (B, D) of log-mel patches (B, 1, 64, 96).

        Channels are the fastest axis in memory (channels_last): oneDNN and cuDNN then convolve without reordering, and
        the sums of attention are matrix products of views. The last block on a CPU is the exception: on its small maps,
        oneDNN's blocked kernels skip the padding and take half the time.
        """
        # A map of one channel is contiguous in both memory orders; only a copy marks it as channels_last.
        x_BCFW = self.stem(patch_B1FW.clone(memory_format=torch.channels_last))
        x_BCFW = self.blocks[:-1](x_BCFW)
        if x_BCFW.device.type == "cpu":
            x_BCFW = x_BCFW.contiguous()
        top_BCFW = self.blocks[-1](x_BCFW)
        return functional.normalize(self.head(top_BCFW.flatten(1)).float(), dim=1)

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Return unit vectors (B, D) of segments (B, 15360)."""
        return self.embed(self.features(wave_BT))


class _ConvReluNorm(nn.Module):
    """3 x 3 convolution, ReLU, then batch norm: the order given in the text of the paper."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCFW: Tensor) -> Tensor:
        return norm_channels(self.conv(x_BCFW), self.norm, relu=True)


class _Block(nn.Module):
    """A residual block: two convolutions, masked by attention, added to the input or its projection."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, attention: _Attention | None, config: Config
    ) -> None:
        super().__init__()
        self.first = _ConvReluNorm(in_channels, channels, stride)
        self.second = _ConvReluNorm(channels, channels, 1)
        self.attention = attention
        self.masks_sum = config.attention_at == "block-output"
        self.skip: nn.Module | None = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.skip = _Projection(in_channels, channels, stride) if config.skip == "projection" else None

    def forward(self, x_BCFW: Tensor) -> Tensor:
        y_BCFW: Tensor = self.second(self.first(x_BCFW))
        skip_BCFW = None if self.skip is None else self.skip(x_BCFW)
        if self.masks_sum and skip_BCFW is not None:
            y_BCFW, skip_BCFW = y_BCFW + skip_BCFW, None
        if self.attention is None:
            return y_BCFW if skip_BCFW is None else y_BCFW + skip_BCFW
        attended_BCFW: Tensor = self.attention(y_BCFW, skip_BCFW)
        return attended_BCFW


class _Projection(nn.Module):
    """Brings a map to the output shape of a block: every stride-th position, a 1 x 1 convolution, batch norm.

    The positions are selected before the convolution instead of by its stride: the backward pass of oneDNN for a
    strided 1 x 1 convolution with fewer than 16 channels in this memory order writes past its buffer
    (docs/experiments.md, "A strided 1 x 1 convolution in oneDNN").
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(in_channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCFW: Tensor) -> Tensor:
        if is_channels_last_on_cpu(x_BCFW):
            chosen_BCFW: Tensor = _EveryPosition.apply(x_BCFW, self.stride)  # type: ignore[no-untyped-call]
        else:
            chosen_BCFW = x_BCFW[:, :, :: self.stride, :: self.stride]
        return norm_channels(self.conv(chosen_BCFW), self.norm, relu=False)


class _EveryPosition(torch.autograd.Function):
    """Selects every stride-th position of a map in channels_last, and passes gradients back in that order.

    A slice of torch passes them back with channels as the slowest axis, so that each pass before it reorders them: a
    fifth of a training step.
    """

    @staticmethod
    def forward(context: Any, x_BCFW: Tensor, stride: int) -> Tensor:
        context.shape, context.stride = x_BCFW.shape, stride
        return x_BCFW[:, :, ::stride, ::stride].clone()

    @staticmethod
    def backward(context: Any, *gradient_BCFW: Tensor) -> Any:
        by_x_BCFW = torch.empty(context.shape, dtype=gradient_BCFW[0].dtype, memory_format=torch.channels_last).zero_()
        by_x_BCFW[:, :, :: context.stride, :: context.stride] = gradient_BCFW[0]
        return by_x_BCFW, None


class _Attention(nn.Module):
    """The mask of equations 1 to 3: the outer product of a softmax over bands and a softmax over frames.

    For each channel c: over_bands[f] = softmax over f of sum_w x[f, w] time_weights[w], over_frames[w] =
    softmax over w of sum_f x[f, w] freq_weights[f], mask[f, w] = S over_bands[f] over_frames[w].
    The paper calls the vector over bands "temporal" and prints both sums with the same transpose; the shapes it
    declares, C x F x 1 and C x 1 x T, allow only this reading.
    """

    def __init__(self, channels: int, bands: int, frames: int, config: Config) -> None:
        super().__init__()
        self.scale = float(bands * frames if config.attention_scale == "mean-1" else config.attention_scale)
        per_channel = (channels,) if config.attention == "per-channel" else ()
        # Initialised like a linear layer with as many inputs; the paper gives no initialisation.
        self.time_weights = nn.Parameter(torch.empty(frames, *per_channel).uniform_(-1, 1) / frames**0.5)
        self.freq_weights = nn.Parameter(torch.empty(bands, *per_channel).uniform_(-1, 1) / bands**0.5)

    def forward(self, x_BCFW: Tensor, skip_BCFW: Tensor | None) -> Tensor:
        """Return a map (B, C, F, W) times its mask, plus the skip connection."""
        if is_channels_last_on_cpu(x_BCFW) and self.time_weights.dim() == 1:
            return attend(x_BCFW, self.time_weights, self.freq_weights, self.scale, skip_BCFW)
        mask_BCFW = self.mask(x_BCFW)
        return x_BCFW * mask_BCFW if skip_BCFW is None else torch.addcmul(skip_BCFW, x_BCFW, mask_BCFW)

    def mask(self, x_BCFW: Tensor) -> Tensor:
        """Return the mask, in the shape, type and memory order of the map (B, C, F, W)."""
        x_BFWC = x_BCFW.permute(0, 2, 3, 1)
        time_weights, freq_weights = (w.to(x_BCFW.dtype) for w in (self.time_weights, self.freq_weights))
        if time_weights.dim() == 2:
            logits_BFC = (x_BFWC * time_weights).sum(dim=2)
            logits_BWC = (x_BFWC * freq_weights.unsqueeze(1)).sum(dim=1)
        else:
            logits_BFC = _weighted_sum(x_BFWC.flatten(0, 1), time_weights).view(x_BFWC[:, :, 0].shape)
            logits_BWC = _weighted_sum(x_BFWC.flatten(2), freq_weights).view(x_BFWC[:, 0].shape)
        over_bands_BF1C = logits_BFC.float().softmax(dim=1).mul(self.scale).to(x_BCFW.dtype).unsqueeze(2)
        over_frames_B1WC = logits_BWC.float().softmax(dim=1).to(x_BCFW.dtype).unsqueeze(1)
        return (over_bands_BF1C * over_frames_B1WC).permute(0, 3, 1, 2)


def _weighted_sum(x_GNK: Tensor, weights_N: Tensor) -> Tensor:
    """Return the weighted sums (G, K) of the N rows of each group.

    A matrix product is eight times as fast on a CPU as multiplying and summing.
    """
    return torch.bmm(weights_N.expand(len(x_GNK), 1, -1), x_GNK).squeeze(1)
