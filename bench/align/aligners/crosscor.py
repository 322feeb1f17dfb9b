"""The challenge's baseline of 2025 without learning: picks the candidate line whose mel spectrograms agree best.

Each keypoint has a window of one second in each channel. The score of a line is the mean, over its keypoints, of the
mean element-wise product of the two windows' mel power spectrograms.

The published code cuts the window of channel 0 from the beginning of the file instead of from the keypoint, and then
both windows to their common length, so that every keypoint compares the first second of channel 0. `slice_defect`
reproduces this; it is off by default and on in the preset `published`.

DEVIATION: computed at 16 kHz, like everything in the suite, instead of at the rate of the recordings.
DEVIATION: a window that the end of a recording cuts short is filled with silence before the spectrogram, and its mean
is taken over the frames that start in both windows; the published code mirrors the shorter wave at its end instead.
Keypoints whose windows have no sample in common are left out.

Shape legend: C candidates, K keypoints, T samples, M mel bands, W frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bench.align.aligners.nosync import build_identity_map
from bench.align.baseline_grid import candidates, mean_prominence, usable_mask, windows
from bench.align.contract import Pair, PairEmbedder, Seconds, TimeMap
from bench.settings import require
from bench.values import RATE_HZ, Ints, Progress

NEEDS_ENCODER = False
CITE = "BioDCASE challenge 2025, Task 1, baseline crosscor"
LICENSE = "MIT"
SOURCE = "reimplementation of the published algorithm"


@dataclass(frozen=True)
class Config:
    """Settings of the mel spectrograms and of the window at a keypoint."""

    window_s: float = 1.0
    """Length of the window in s, over half of `num_fft`."""

    num_fft: int = 2048
    """Length of a Fourier transform in samples."""

    hop: int = 512
    """Samples from one frame to the next, from 1 to `num_fft`."""

    num_bands: int = 128
    """Mel bands, at least 1."""

    slice_defect: bool = False
    """Whether to cut the window of channel 0 from the beginning of the file, as the published code does."""

    def __post_init__(self) -> None:
        require(self.window_s * RATE_HZ > self.num_fft / 2, "window_s must be over half of num_fft", self.window_s)
        require(0 < self.hop <= self.num_fft, "hop must be between 1 and num_fft", self.hop)
        require(self.num_bands > 0, "num_bands must be > 0", self.num_bands)

    @property
    def num_samples(self) -> int:
        """Return the length of the window in samples."""
        return round(self.window_s * RATE_HZ)


def presets() -> dict[str, Config]:
    """Return the settings of the algorithm as intended, and as published."""
    return {"correct": Config(), "published": Config(slice_defect=True)}


def build(config: Config) -> CrossCor:
    """Return the aligner."""
    return CrossCor(config)


@dataclass(frozen=True)
class CrossCor:
    """Scores every candidate at every keypoint. Cost: 70 spectrograms of one second per second of recording."""

    config: Config

    def align(self, pair: Pair, embedder: PairEmbedder | None, progress: Progress) -> TimeMap:
        """Return the best line.

        The confidence is how far the mean cosine of its spectrograms is on the way from the mean of all lines to 1,
        times the share of each keypoint's window that both recordings cover.
        """
        time0_K = pair.keypoints
        time1_CK = candidates(time0_K, pair.durations_s[0], pair.max_lag_s)
        product_CK, cosine_CK = self._agreement(pair, time0_K, time1_CK, progress)
        used_CK = usable_mask(time1_CK) & np.isfinite(product_CK)
        score_C, cosine_C = _means(product_CK, used_CK), _means(cosine_CK, used_CK)
        best = int(score_C.argmax()) if len(time0_K) else 0
        if not len(time0_K) or score_C[best] <= 0:
            return build_identity_map(pair)
        num_shared_K = _count_shared(self.config, pair, _first_sample(time0_K), _first_sample(time1_CK[best]))
        share_K = num_shared_K / self.config.num_samples
        return TimeMap(time0_K, time1_CK[best], mean_prominence(cosine_C, best) * share_K)

    def _agreement(
        self, pair: Pair, time0_K: Seconds, time1_CK: Seconds, progress: Progress
    ) -> tuple[Seconds, Seconds]:
        """Return mean product and cosine of the spectrograms of each candidate's windows (C, K), NaN without frames."""
        mel = _mel(self.config)
        product_CK, cosine_CK = np.full((2, *time1_CK.shape), np.nan)
        for k in range(len(time0_K)):
            progress("crosscor", k, len(time0_K))
            first0 = _first_sample(np.zeros(1) if self.config.slice_defect else time0_K[k : k + 1])
            product_CK[:, k], cosine_CK[:, k] = _products(self.config, mel, pair, first0, _first_sample(time1_CK[:, k]))
        progress("crosscor", len(time0_K), len(time0_K))
        return product_CK, cosine_CK


@torch.inference_mode()
def _products(config: Config, mel: nn.Module, pair: Pair, first0: Ints, first1_C: Ints) -> tuple[Seconds, Seconds]:
    """Return mean product and cosine (C,) of a window of channel 0 with windows of channel 1.

    Both are over the frames that start in both recordings, NaN without any.
    """
    shared_C = _count_shared(config, pair, first0, first1_C)
    num_frames_C = torch.from_numpy(np.where(shared_C > 0, shared_C // config.hop + 1, 0))
    mel0_MW = mel(torch.from_numpy(windows(pair.wave0_T, first0, config.num_samples)))[0]
    mel1_CMW = mel(torch.from_numpy(windows(pair.wave1_T, first1_C, config.num_samples)))
    shared_CW = torch.arange(mel0_MW.shape[1]) < num_frames_C[:, None]
    mel1_CMW *= shared_CW[:, None]
    sum_C = torch.einsum("mw,cmw->c", mel0_MW, mel1_CMW)
    norm0_C = torch.einsum("mw,cw->c", mel0_MW.square(), shared_CW.float()).sqrt()
    norm_C = (norm0_C * mel1_CMW.square().sum((1, 2)).sqrt()).clamp_min(torch.finfo(torch.float32).tiny)
    mean_C = sum_C / (num_frames_C * config.num_bands)  # 0 / 0 where nothing is shared
    cosine_C = torch.where(num_frames_C > 0, sum_C / norm_C, torch.nan)
    return mean_C.double().numpy(), cosine_C.double().numpy()


def _first_sample(time: Seconds) -> Ints:
    """Return the number of the sample nearest to each time."""
    return np.rint(time * RATE_HZ).astype(np.int64)


def _count_shared(config: Config, pair: Pair, first0: Ints, first1: Ints) -> Ints:
    """Return how many samples of windows that start there lie in both recordings."""
    remaining: Ints = np.minimum(len(pair.wave0_T) - first0, len(pair.wave1_T) - first1)
    return remaining.clip(0, config.num_samples)


def _means(value_CK: Seconds, used_CK: npt.NDArray[np.bool_]) -> Seconds:
    """Return the mean of the used values of each row, 0 where none is used."""
    mean_C: Seconds = np.where(used_CK, value_CK, 0.0).sum(axis=1) / used_CK.sum(axis=1).clip(1)
    return mean_C


def _mel(config: Config) -> nn.Module:
    from torchaudio.transforms import MelSpectrogram

    mel: nn.Module = MelSpectrogram(RATE_HZ, n_fft=config.num_fft, hop_length=config.hop, n_mels=config.num_bands)
    return mel
