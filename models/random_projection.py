"""A control without training: a fixed random projection of the log-mel patch.

A trained encoder is worth what it scores above this control. The control finds clean queries well, so a score on clean
queries alone says little about an encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from bench.audio.frontend import LogMel
from bench.errors import ConfigError

CITE = "Johnson and Lindenstrauss, Extensions of Lipschitz mappings into a Hilbert space, 1984"
LICENSE = "MIT"
SOURCE = "defined by afp-bench"

BANDS, FRAMES = 64, 96


@dataclass(frozen=True)
class Config:
    """Settings of the control."""

    dim: int = 128
    """Dimensions of a fingerprint, at least 1."""

    seed: int = 0
    """Seed of the projection, which is therefore the same in every run."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError(f"model.dim must be >= 1, got {self.dim}")


def build(config: Config) -> RandomProjection:
    """Return the control; its weights depend on `config` alone."""
    return RandomProjection(config)


class RandomProjection(nn.Module):
    """Turns 0.96 s of audio at 16 kHz into a unit vector with a Gaussian matrix."""

    matrix: Tensor
    rate_hz = 16_000
    segment_s = 0.96

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dim = config.dim
        self.front_end = LogMel()
        draw = torch.Generator().manual_seed(config.seed)
        self.register_buffer("matrix", torch.randn(BANDS * FRAMES, config.dim, generator=draw))

    def features(self, wave_BT: Tensor) -> Tensor:
        """Return the log-mel patches (B, 1, 64, 96) of segments (B, 15360)."""
        patch_B1FW: Tensor = self.front_end(wave_BT)
        return patch_B1FW

    def embed(self, patch_B1FW: Tensor) -> Tensor:
        """Return unit vectors (B, D) of log-mel patches (B, 1, 64, 96), each patch minus its mean level."""
        flat_BP = patch_B1FW.flatten(1)
        centred_BP = flat_BP - flat_BP.mean(dim=1, keepdim=True)
        return functional.normalize(centred_BP @ self.matrix, dim=1)

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Return unit vectors (B, D) of segments (B, 15360)."""
        return self.embed(self.features(wave_BT))
