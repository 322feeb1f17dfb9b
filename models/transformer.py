"""The transformer of Singh et al. (ICASSP 2023): ten tokens of 99 ms, eight post-norm layers, a head on all tokens.

The paper itself was not read. The network is that of its authors' later code, which they call the encoder of that
paper; docs/encoders/transformer.md says what follows it and what does not.

Shape legend: B batch, T samples, F mel bands, W frames, N tokens, P values of a patch, C channels of a token,
D dimensions of the fingerprint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from bench.audio.frontend import LogMel
from bench.errors import ConfigError
from bench.settings import require

CITE = "Singh, Demuynck and Arora, Simultaneously learning robust audio embeddings and balanced hash codes, ICASSP 2023"
LICENSE = "MIT"
SOURCE = "AFP-NF, the authors' later code (MIT), whose paper says that its encoder is that of ICASSP 2023"

BANDS, TOKENS, TOKEN_FRAMES = 64, 10, 10
CHANNELS = 128
HIDDEN = 2048  # of each layer's feed-forward part, and of the head
SLOWEST = 10_000  # of the sinusoids of positions, as in Vaswani et al.


@dataclass(frozen=True)
class Config:
    """Settings of the encoder."""

    width: float = 1.0
    """Factor of all channel counts, above 0; 1 is the published network.

    The 128 channels of a token times `width` must be an even multiple of `heads`.
    """

    layers: int = 8
    """Layers of the transformer, at least 1."""

    heads: int = 8
    """Heads of attention, at least 1."""

    dim: int = 128
    """Dimensions of a fingerprint, at least 1."""

    tokens: Literal["transposed", "viewed"] = "transposed"
    """What a token is: all channels of one stretch of time, or what the released code makes of it.

    `viewed` reads the patches' channels x times as times x channels without transposing them, so that a token mixes
    times and channels: the published numbers of the released code are of that network.
    """

    def __post_init__(self) -> None:
        require(self.layers >= 1, "model.layers must be >= 1", self.layers)
        require(self.heads >= 1, "model.heads must be >= 1", self.heads)
        require(self.dim >= 1, "model.dim must be >= 1", self.dim)
        if self.width <= 0 or (CHANNELS * self.width) % self.heads or (CHANNELS * self.width) % 2:
            raise ConfigError(
                f"model.width must make {CHANNELS} x width even and a multiple of model.heads = {self.heads} (each "
                f"head has its own slice of channels), got {self.width}"
            )


def build(config: Config) -> Transformer:
    """Return the encoder with random weights, drawn from the global generator of torch."""
    return Transformer(config)


class Transformer(nn.Module):
    """Turns 0.99 s of audio at 16 kHz into a unit vector.

    DEVIATION: a patch is scaled to [-1, 1] by the maximum of its segment (see LogMel), while the released code divides
    the whole file by its peak. When a segment of a query is embedded, the file is not available.
    """

    rate_hz = 16_000
    segment_s = 0.99
    position_NC: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dim = config.dim
        self.viewed = config.tokens == "viewed"
        channels, hidden = int(CHANNELS * config.width), int(HIDDEN * config.width)
        self.front_end = LogMel(last_frame=True)
        self.patch = nn.Linear(BANDS * TOKEN_FRAMES, channels)
        self.register_buffer("position_NC", sinusoids(TOKENS, channels), persistent=False)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(channels, config.heads, hidden, dropout=0.0, batch_first=True)
            for _ in range(config.layers)
        )
        self.head = nn.Sequential(
            nn.Linear(TOKENS * channels, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, config.dim),
            nn.BatchNorm1d(config.dim),
        )

    def features(self, wave_BT: Tensor) -> Tensor:
        """Return the log-mel patches (B, 1, 64, 100) of segments (B, 15840)."""
        patch_B1FW: Tensor = self.front_end(wave_BT)
        return patch_B1FW

    def window_features(self, wave_BT: Tensor, hop_samples: int) -> Tensor:
        """Return the patches (B, M, 1, 64, 100) of all whole segments of each wave (B, T), one every hop."""
        return self.front_end.of_windows(wave_BT, round(self.segment_s * self.rate_hz), hop_samples)

    def embed(self, patch_B1FW: Tensor) -> Tensor:
        """Return unit vectors (B, D) of log-mel patches (B, 1, 64, 100)."""
        token_BNC = self.tokens(patch_B1FW)
        for layer in self.layers:
            token_BNC = layer(token_BNC)
        return functional.normalize(self.head(token_BNC.flatten(1)).float(), dim=1)

    def tokens(self, patch_B1FW: Tensor) -> Tensor:
        """Return the tokens (B, N, C) that enter the first layer, each from ten frames, with their positions added."""
        patch_BNP = patch_B1FW.reshape(-1, BANDS, TOKENS, TOKEN_FRAMES).transpose(1, 2).flatten(2)
        token_BNC: Tensor = self.patch(patch_BNP)
        if self.viewed:
            token_BNC = token_BNC.transpose(1, 2).reshape(token_BNC.shape)
        return token_BNC + self.position_NC

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Return unit vectors (B, D) of segments (B, 15840)."""
        return self.embed(self.features(wave_BT))


def sinusoids(positions: int, channels: int) -> Tensor:
    """Return the positions (N, C): sines in the even channels and cosines in the odd ones, slower and slower.

    Source: Vaswani et al., Attention is all you need, 2017, section 3.5.
    """
    step_C = torch.exp(torch.arange(0, channels, 2) * (-math.log(SLOWEST) / channels))
    angle_NC = torch.arange(positions)[:, None] * step_C
    return torch.stack([angle_NC.sin(), angle_NC.cos()], dim=2).flatten(1)
