"""Twins: the other places of a track that sound most like a place, which its queries are most easily taken for.

A loop that returns under another voice is found by no draw of places at random; as a negative it teaches what differs.
Likeness is the cosine of log-mel patches in frames of 20 ms, each band less its mean. A long track is looked through
in stretches, so that time and memory grow with its length alone: the next turn of a loop is near.

Shape legend: P places, T samples, M mel bands, F frames, D = M x frames of a patch, R twins of a place.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from bench.audio.frontend import FLOOR_DB, POWER_FLOOR
from bench.values import RATE_HZ, Floats, Ints

GRID_HOP_SAMPLES = RATE_HZ // 10  # between places
FRAME_SAMPLES = RATE_HZ // 50
NUM_BANDS = 64
STRETCH_HOPS = 400  # 40 s: 5 MB of patches, 2 MB of likeness and what masks it
MIN_GAP_HOPS = 3  # places at least, from one twin to the next: its own neighbours are as like
NO_NEGATIVE = -1


def mine_hard_negatives(wave_T: Floats, segment_samples: int, count: int) -> Ints:
    """Return the `count` places (P, R) of a stretch that are most like each, best first, NONE where there are fewer.

    Place p begins at sample p x HOP_SAMPLES of the stretch. No twin overlaps its place, nor is within 200 ms of a
    better one. Likeness is rounded in float32: another processor may find another of two that are all but equal.
    Cost: P^2 products of patches, 15 to 40 ms of one core for 30 s of audio.
    """
    patch_PD = _unit_patches(torch.from_numpy(wave_T), segment_samples)
    likeness_PP = patch_PD @ patch_PD.T
    place_P = torch.arange(len(likeness_PP))
    overlap = -(-segment_samples // GRID_HOP_SAMPLES)
    likeness_PP[(place_P[:, None] - place_P).abs() < overlap] = -torch.inf
    found = []
    for _ in range(count):
        best_P, twin_P = likeness_PP.max(dim=1)
        found.append(torch.where(best_P > -torch.inf, twin_P, NO_NEGATIVE))
        likeness_PP[(twin_P[:, None] - place_P).abs() < MIN_GAP_HOPS] = -torch.inf
    twin_PR: Ints = torch.stack(found, dim=1).numpy()
    return twin_PR


def _unit_patches(wave_T: Tensor, segment_samples: int) -> Tensor:
    """Return the patch of each place as a unit vector (P, D)."""
    whole_T = functional.pad(wave_T, (0, max(0, segment_samples - len(wave_T))))
    level_MF = 10 * torch.log10(_build_mel()(whole_T).clamp_min(POWER_FLOOR))
    level_MF = level_MF.clamp_min(level_MF.amax() - FLOOR_DB)
    level_MF = level_MF - level_MF.mean(dim=1, keepdim=True)
    frames, hop = segment_samples // FRAME_SAMPLES, GRID_HOP_SAMPLES // FRAME_SAMPLES
    places = max(0, len(wave_T) - segment_samples) // GRID_HOP_SAMPLES + 1
    patch_PD = level_MF.unfold(1, frames, hop)[:, :places].transpose(0, 1).reshape(places, -1)
    return functional.normalize(patch_PD, dim=1)


@cache
def _build_mel() -> nn.Module:
    from torchaudio.transforms import MelSpectrogram

    mel: nn.Module = MelSpectrogram(RATE_HZ, n_fft=2 * FRAME_SAMPLES, hop_length=FRAME_SAMPLES, n_mels=NUM_BANDS)
    return mel
