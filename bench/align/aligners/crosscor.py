"""The challenge's baseline of 2025 without learning: of all candidate lines the one whose mel spectrograms agree best.

Each keypoint has a window of a second in either channel. A line's score is the mean over its keypoints of the mean
product of the two windows' mel power spectrograms, element by element.

The published code cuts the window of channel 0 from the file's beginning instead of the keypoint, and then both to
their common length: every keypoint compares the first second of channel 0. `slice_defect` does the same, and is off
by default: the preset `published` has it on.

DEVIATION: at 16 kHz, not at the recordings' own rate, as everything in the suite is.
DEVIATION: a window that a recording's end cuts short is filled with silence before the spectrogram, and its mean
taken over the frames that begin in both; there the shorter wave itself is mirrored at its end. Keypoints without any
common sample are left out.

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
SOURCE = "own writing of the published algorithm"


@dataclass(frozen=True)
class Config:
    """Settings of the mel spectrograms and of the window around a keypoint."""

    window_s: float = 1.0
    """Length of the window in s, over half of `num_fft`."""

    num_fft: int = 2048
    """Length of a Fourier transform in samples."""

    hop: int = 512
    """Samples from one frame to the next, from 1 to `num_fft`."""

    num_bands: int = 128
    """Mel bands, at least 1."""

    slice_defect: bool = False
    """Whether to cut the window of channel 0 from the file's beginning, as the published code does."""

    def __post_init__(self) -> None:
        require(self.window_s * RATE_HZ > self.num_fft / 2, "window_s must be over half of num_fft", self.window_s)
        require(0 < self.hop <= self.num_fft, "hop must be between 1 and num_fft", self.hop)
        require(self.num_bands > 0, "num_bands must be > 0", self.num_bands)

    @property
    def num_samples(self) -> int:
        """Return the length of the window in samples."""
        return round(self.window_s * RATE_HZ)


def presets() -> dict[str, Config]:
    """Return the algorithm as it was meant, and as it was published."""
    return {"correct": Config(), "published": Config(slice_defect=True)}


def build(config: Config) -> CrossCor:
    """Return the aligner."""
    return CrossCor(config)


@dataclass(frozen=True)
class CrossCor:
    """Tries every candidate at every keypoint. Cost: 70 spectrograms of a second for each second of a recording."""

    config: Config

    def align(self, pair: Pair, ears: PairEmbedder | None, progress: Progress) -> TimeMap:
        """Return the best line.

        Its confidence is how far the cosine of its spectrograms is from the mean of all lines to 1, times the share of
        a keypoint's window that both recordings hold.
        """
        time0_K = pair.keypoints
        time1_CK = candidates(time0_K, pair.durations_s[0], pair.max_lag_s)
        product_CK, cosine_CK = self._agreement(pair, time0_K, time1_CK, progress)
        used_CK = usable_mask(time1_CK) & np.isfinite(product_CK)
        score_C, cosine_C = _means(product_CK, used_CK), _means(cosine_CK, used_CK)
        best = int(score_C.argmax()) if len(time0_K) else 0
        if not len(time0_K) or score_C[best] <= 0:
            return build_identity_map(pair)
        held_K = _count_shared(self.config, pair, _first(time0_K), _first(time1_CK[best])) / self.config.num_samples
        return TimeMap(time0_K, time1_CK[best], mean_prominence(cosine_C, best) * held_K)

    def _agreement(
        self, pair: Pair, time0_K: Seconds, time1_CK: Seconds, progress: Progress
    ) -> tuple[Seconds, Seconds]:
        """Return mean product and cosine of the spectrograms of each candidate's windows, (C, K); NaN where none is."""
        mel = _mel(self.config)
        product_CK, cosine_CK = np.full((2, *time1_CK.shape), np.nan)
        for k in range(len(time0_K)):
            progress("crosscor", k, len(time0_K))
            first0 = _first(np.zeros(1) if self.config.slice_defect else time0_K[k : k + 1])
            product_CK[:, k], cosine_CK[:, k] = _products(self.config, mel, pair, first0, _first(time1_CK[:, k]))
        progress("crosscor", len(time0_K), len(time0_K))
        return product_CK, cosine_CK


@torch.inference_mode()
def _products(config: Config, mel: nn.Module, pair: Pair, first0: Ints, first1_C: Ints) -> tuple[Seconds, Seconds]:
    """Return mean product and cosine (C,) of one window of channel 0 with windows of channel 1, NaN of no sample."""
    shared_C = _count_shared(config, pair, first0, first1_C)
    num_frames_C = torch.from_numpy(np.where(shared_C > 0, shared_C // config.hop + 1, 0))
    one_MW = mel(torch.from_numpy(windows(pair.wave0_T, first0, config.num_samples)))[0]
    each_CMW = mel(torch.from_numpy(windows(pair.wave1_T, first1_C, config.num_samples)))
    heard_CW = torch.arange(one_MW.shape[1]) < num_frames_C[:, None]
    each_CMW *= heard_CW[:, None]
    sum_C = torch.einsum("mw,cmw->c", one_MW, each_CMW)
    norm0_C = torch.einsum("mw,cw->c", one_MW.square(), heard_CW.float()).sqrt()
    norm_C = (norm0_C * each_CMW.square().sum((1, 2)).sqrt()).clamp_min(torch.finfo(torch.float32).tiny)
    mean_C = sum_C / (num_frames_C * config.num_bands)  # 0 / 0 where nothing is shared
    cosine_C = torch.where(num_frames_C > 0, sum_C / norm_C, torch.nan)
    return mean_C.double().numpy(), cosine_C.double().numpy()


def _first(time: Seconds) -> Ints:
    """Return the sample that is nearest to each time."""
    return np.rint(time * RATE_HZ).astype(np.int64)


def _count_shared(config: Config, pair: Pair, first0: Ints, first1: Ints) -> Ints:
    """Return how many samples windows that begin there have in common before a recording ends."""
    left: Ints = np.minimum(len(pair.wave0_T) - first0, len(pair.wave1_T) - first1)
    return left.clip(0, config.num_samples)


def _means(value_CK: Seconds, used_CK: npt.NDArray[np.bool_]) -> Seconds:
    """Return the mean of each row over what is used of it, 0 where nothing is."""
    mean_C: Seconds = np.where(used_CK, value_CK, 0.0).sum(axis=1) / used_CK.sum(axis=1).clip(1)
    return mean_C


def _mel(config: Config) -> nn.Module:
    from torchaudio.transforms import MelSpectrogram

    mel: nn.Module = MelSpectrogram(RATE_HZ, n_fft=config.num_fft, hop_length=config.hop, n_mels=config.num_bands)
    return mel
