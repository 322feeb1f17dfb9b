"""SAMAF (Baez-Suarez et al. 2020): an LSTM that can rebuild its input has a state that is a fingerprint.

Of the paper only the abstract was read, and no code of its authors was found: this is our reading of it
(docs/encoders/samaf.md says which part is whose). The encoder's loss is its own: mean squared error of the rebuilt
input, a hash loss that draws similar blocks together, and an entropy loss that makes the bits of similar blocks agree.
`objective="contrastive"` trains the same network with the suite's loss, which tells whether network or loss is at
fault.

Shape legend: B batch, M = anchors then positives, T samples, C coefficients, W frames, D dimensions of the fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from bench.audio.frontend import Mfcc
from bench.settings import require

CITE = "Baez-Suarez et al., SAMAF: Sequence-to-sequence autoencoder model for audio fingerprinting, ACM TOMM 2020"
LICENSE = "MIT"
SOURCE = "the paper's abstract; a third party's code for sizes and the hash loss; the rest is ours"

COEFFICIENTS = 13
FULLY_SIMILAR = 0.55  # cosine of two blocks from which they count as alike; a third party's code
SMALLEST_SHARE = 1e-6  # keeps the logarithm of a bit's share finite


@dataclass(frozen=True)
class Config:
    """Settings of the encoder."""

    dim: int = 128
    """Size of the LSTM's state, which is the fingerprint; at least 1. The paper has 128 and 256 bits."""

    objective: Literal["own", "contrastive"] = "own"
    """The loss: `own` rebuilds the input, `contrastive` is `train.loss` on the same encoder, without a decoder."""

    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Weights of the mean squared error, the hash loss and the entropy loss, at least 0."""

    decoder: Literal["free", "teacher"] = "free"
    """What each step of the decoder is given: its `free` output of the step before, or the true frame (`teacher`)."""

    tied: bool = False
    """Whether encoder and decoder are one LSTM, as in the third party's code."""

    code: Literal["vector", "sign"] = "vector"
    """What a fingerprint is in evaluation: the state's direction, or the signs of its values, each over sqrt(dim)."""

    def __post_init__(self) -> None:
        require(self.dim >= 1, "model.dim must be >= 1", self.dim)
        require(min(self.weights) >= 0 < max(self.weights), "model.weights must be >= 0, not all 0", self.weights)


def build(config: Config) -> Samaf:
    """Return the encoder with random weights, drawn from the global generator of torch."""
    return Samaf(config)


class Samaf(nn.Module):
    """Turns 1 s of audio at 16 kHz into a unit vector: the last state of an LSTM over 100 frames of MFCC."""

    rate_hz = 16_000
    segment_s = 1.0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.front_end = Mfcc(COEFFICIENTS)
        self.encoder = nn.LSTM(COEFFICIENTS, config.dim, batch_first=True)
        if config.objective == "own":
            self.decoder = self.encoder if config.tied else nn.LSTM(COEFFICIENTS, config.dim, batch_first=True)
            self.output = nn.Linear(config.dim, COEFFICIENTS)

    def features(self, wave_BT: Tensor) -> Tensor:
        """Return the standardised MFCC (B, 1, 13, 100) of segments (B, 16000)."""
        feature_B1CW: Tensor = self.front_end(wave_BT)
        return feature_B1CW

    def window_features(self, wave_BT: Tensor, hop_samples: int) -> Tensor:
        """Return the MFCC (B, M, 1, 13, 100) of all whole segments of each wave (B, T), one every hop."""
        return self.front_end.of_windows(wave_BT, round(self.segment_s * self.rate_hz), hop_samples)

    def embed(self, feature_B1CW: Tensor) -> Tensor:
        """Return unit vectors (B, D) of MFCC (B, 1, 13, 100)."""
        state_BD = self.encode(feature_B1CW)
        if self.config.code == "sign" and not self.training:
            return torch.where(state_BD >= 0, self.dim**-0.5, -(self.dim**-0.5))
        return functional.normalize(state_BD, dim=1)

    def encode(self, feature_B1CW: Tensor) -> Tensor:
        """Return the LSTM's last state (B, D), between -1 and 1, in float32."""
        _, (state_1BD, _) = self.encoder(feature_B1CW.squeeze(1).transpose(1, 2))
        state_BD: Tensor = state_1BD[0].float()
        return state_BD

    def objective(self, feature_M1CW: Tensor, vector_MD: Tensor, contrastive: Tensor) -> Tensor:
        """Return the weighted sum of the three losses on a batch of clean and degraded blocks, treated alike.

        The state itself is needed, not its direction: it is computed a second time, without which it would have to be
        kept between two calls.
        """
        if self.config.objective == "contrastive":
            return contrastive
        state_MD = self.encode(feature_M1CW)
        rebuilt_M1CW = self.decode(state_MD, feature_M1CW)
        similar_MM = similarity(feature_M1CW)
        losses = (
            functional.mse_loss(rebuilt_M1CW.float(), feature_M1CW.float()),
            hash_loss(state_MD, similar_MM),
            entropy_loss((1 + state_MD) / 2, similar_MM),
        )
        return torch.stack([weight * loss for weight, loss in zip(self.config.weights, losses, strict=True)]).sum()

    def decode(self, state_MD: Tensor, feature_M1CW: Tensor) -> Tensor:
        """Return the blocks (M, 1, 13, 100) rebuilt from their states; the first step is given the block's last frame.

        The decoder's cell starts at zero, so that nothing but the fingerprint tells it what to rebuild.
        """
        frame_MWC = feature_M1CW.squeeze(1).transpose(1, 2)
        cell_MD = torch.zeros_like(state_MD)
        if self.config.decoder == "teacher":
            given_MWC = frame_MWC.roll(1, dims=1)
            out_MWD, _ = self.decoder(given_MWC, (state_MD[None], cell_MD[None]))
            return self.output(out_MWD).transpose(1, 2).unsqueeze(1)  # type: ignore[no-any-return]
        weights = [getattr(self.decoder, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        frame_MC, rebuilt = frame_MWC[:, -1], []
        for _ in range(frame_MWC.shape[1]):
            state_MD, cell_MD = torch.lstm_cell(frame_MC, (state_MD, cell_MD), *weights)
            frame_MC = self.output(state_MD)
            rebuilt.append(frame_MC)
        return torch.stack(rebuilt, dim=2).unsqueeze(1)

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Return unit vectors (B, D) of segments (B, 16000)."""
        return self.embed(self.features(wave_BT))


def similarity(feature_M1CW: Tensor) -> Tensor:
    """Return how alike blocks are (M, M), from 0 to 1: the cosine of their features over FULLY_SIMILAR, clipped.

    DEVIATION: the third party's code takes the cosines of the states, which draws together what is together already.
    """
    block_MX = functional.normalize(feature_M1CW.float().flatten(1), dim=1)
    return (block_MX @ block_MX.T / FULLY_SIMILAR).clamp(0, 1)


def hash_loss(code_MD: Tensor, similar_MM: Tensor) -> Tensor:
    """Return the squared distance of the codes of two blocks times their similarity, the mean over similar pairs.

    A block with itself is no pair; without any similar pair the loss is 0.
    """
    similar_MM = similar_MM - similar_MM.diag().diag()
    length_M = code_MD.square().sum(dim=1)
    squared_MM = (length_M[:, None] + length_M - 2 * code_MD @ code_MD.T).clamp_min(0)
    return (similar_MM * squared_MM).sum() / (similar_MM > 0).sum().clamp_min(1)


def entropy_loss(share_MD: Tensor, similar_MM: Tensor) -> Tensor:
    """Return the entropy, in bits, of each bit among the blocks similar to a block, the mean over bits and blocks.

    `share_MD` says how far a bit is 1, from 0 to 1. A block is among those similar to it.
    """
    among_MM = ((similar_MM > 0) | torch.eye(len(share_MD), dtype=torch.bool, device=share_MD.device)).float()
    mean_MD = (among_MM @ share_MD / among_MM.sum(dim=1, keepdim=True)).clamp(SMALLEST_SHARE, 1 - SMALLEST_SHARE)
    return -(mean_MD * mean_MD.log2() + (1 - mean_MD) * (1 - mean_MD).log2()).mean()
