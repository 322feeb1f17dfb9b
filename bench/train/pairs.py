"""Training pairs: a clean segment (the anchor), and the same moment with noise and reverberation (the positive).

`cut_pairs` copies the samples to the device; all later processing happens there, for the whole batch at once.

Shape legend: B pairs, K sources of a pair, T samples, R taps of a response, F bins of a spectrum or bands, W frames,
C mask stripes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.degrade.room import DIRECT_AT
from bench.settings import TrainConfig
from bench.train.draws import Draws
from bench.train.pool import TrainingPool
from bench.train.sound import Sound
from bench.values import INT16_PEAK, INT16_SCALE, Floats, Ints

SILENT_NOISE_POWER = 1e-12  # -120 dB re full scale: noise of less mean power is not mixed in
LARGEST_SEED = 2**63 - 1  # of a transform; an anchor's seed is the distance of its positive's from it
MIN_PEAK = 1e-9  # re full scale: keeps the level of a silent positive finite


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of one step and how to degrade them, on the device."""

    anchor_BT: Tensor
    """Anchors, int16."""

    music_BT: Tensor
    """Positives before degradation, int16, with context: shape (B, context + T + DIRECT_AT)."""

    noise_BT: Tensor
    """Their noise, int16, with the same context."""

    room_row: Tensor
    """Which rows of the batch get reverberation, shape (rooms,)."""

    response: Tensor
    """The impulse response of each of these, as a row of the pool's `spectra_RF`, shape (rooms,)."""

    noise_ratio_B1: Tensor
    """The RMS of the noise over that of the music; 0 means no noise."""

    gain_B1: Tensor
    """The peak of a positive, as an amplitude."""

    stripe_BC22: Tensor
    """The stripes to hide, as in `Draws`."""


WaveTransform = Callable[[Tensor, Ints], Tensor]
"""Called as transform(music_BT, seed_B) with int16 samples on the host; returns them transformed, in the same shape."""


def cut_pairs(
    draws: Draws,
    pool: TrainingPool,
    device: torch.device,
    transform: WaveTransform | None = None,
    transform_anchors: WaveTransform | None = None,
) -> Batch:
    """Return the batch that was drawn: read, mixed, transformed and copied to the device, without waiting for it."""
    total = pool.context + pool.segment_samples + DIRECT_AT
    room_row = np.flatnonzero(draws.has_room_B)
    noise_ratio_B = np.where(draws.has_noise_B, 10 ** (-draws.snr_db_B / 20), 0).astype(np.float32)
    music, noise = pool.music_sound, pool.noise_sound
    track_BK = np.column_stack([draws.track_B, draws.other_track_BJ])
    anchor_BK = np.column_stack([draws.anchor_B, draws.other_anchor_BJ])
    positive_BK = np.column_stack([draws.positive_B, draws.other_positive_BJ])
    music_BT = mix_sources(music, track_BK, positive_BK - pool.context, draws.positive_gain_BK, total)
    if transform is not None:
        # From the start of the segment on: stretching the context before it would move that start.
        transformed_BT = transform(music_BT[:, pool.context :], draws.transform_seed_B)
        music_BT = torch.cat([music_BT[:, : pool.context], transformed_BT], dim=1)
    anchor_BT = mix_sources(music, track_BK, anchor_BK, draws.anchor_gain_BK, pool.segment_samples)
    if transform_anchors is not None:
        anchor_BT = transform_anchors(anchor_BT, LARGEST_SEED - draws.transform_seed_B)

    def move(samples: Tensor | np.ndarray) -> Tensor:
        return _to_device(samples if isinstance(samples, Tensor) else torch.from_numpy(samples), device)

    return Batch(
        anchor_BT=move(anchor_BT),
        music_BT=move(music_BT),
        noise_BT=move(noise.read_looped(draws.noise_B, draws.noise_start_B, total)),
        room_row=move(room_row),
        response=move(draws.response_B[room_row]),
        noise_ratio_B1=move(noise_ratio_B[:, None]),
        gain_B1=move(10 ** (draws.gain_db_B[:, None] / 20)),
        stripe_BC22=move(draws.stripe_BC22),
    )


def mix_sources(sound: Sound, track_BK: Ints, start_BK: Ints, gain_BK: Floats, num_samples: int) -> Tensor:
    """Return the sum of the sources times their gains, shape (B, T) int16, scaled down if it exceeds full scale.

    The sum is formed where the samples are stored, before workers transform it and before it is copied to the device:
    so both handle one channel of 16 bits, as from a recorder, and not K. A single source is returned unchanged.
    DEVIATION: in the report a sum may exceed full scale. Here it is scaled down, as a recorder's gain would, because
    features of magnitudes depend on the level.
    Source: the BioDCASE report, equation 1.
    """
    if gain_BK.shape[1] == 1:
        return sound.read_padded(track_BK[:, 0], start_BK[:, 0], num_samples)
    columns = list(zip(track_BK.T, start_BK.T, strict=True))
    first_BT = sound.read_padded(*columns[0], num_samples)
    gain_BK1 = _to_device(torch.from_numpy(gain_BK), first_BT.device).unsqueeze(2)
    sum_BT = first_BT * gain_BK1[:, 0]
    for k, (track_B, start_B) in enumerate(columns[1:], 1):
        sum_BT.addcmul_(sound.read_padded(track_B, start_B, num_samples).float(), gain_BK1[:, k])
    above_B1 = (sum_BT.abs().amax(dim=1, keepdim=True) / INT16_PEAK).clamp_min(1)
    return (sum_BT / above_B1).round_().to(torch.int16)


def degrade_pairs(batch: Batch, pool: TrainingPool) -> tuple[Tensor, Tensor]:
    """Return (anchors, positives), both (B, T) float32, positives with their peak at the drawn level."""
    music_BT, noise_BT = (wave.float() * INT16_SCALE for wave in (batch.music_BT, batch.noise_BT))
    segment = slice(pool.context, pool.context + pool.segment_samples)
    # 1. rows in a room are convolved with its response, the others keep their dry samples
    spectrum_BF = pool.spectra_RF[batch.response]
    room_music_BT, room_noise_BT = (
        wave_BT[:, segment].index_copy(
            0, batch.room_row, _reverberate(wave_BT[batch.room_row], spectrum_BF, segment, pool.fft_samples)
        )
        for wave_BT in (music_BT, noise_BT)
    )
    # 2. mixed at the SNR of each row, and scaled to its peak level
    mixture_BT = room_music_BT + noise_gain(room_music_BT, room_noise_BT, batch.noise_ratio_B1) * room_noise_BT
    peak_B1 = mixture_BT.abs().amax(dim=1, keepdim=True).clamp_min(MIN_PEAK)
    return batch.anchor_BT.float() * INT16_SCALE, mixture_BT * (batch.gain_B1 / peak_B1)


def noise_gain(music_BT: Tensor, noise_BT: Tensor, noise_ratio_B1: Tensor) -> Tensor:
    """Return the gains (B, 1) that bring the noise to `noise_ratio_B1` times the music's RMS; 0 for silent noise.

    The batched counterpart of `bench.degrade.mix.noise_gain`, which raises an error for silent noise.
    """
    music_power_B1 = music_BT.square().mean(dim=1, keepdim=True)
    noise_power_B1 = noise_BT.square().mean(dim=1, keepdim=True)
    gain_B1 = (music_power_B1 / noise_power_B1.clamp_min(SILENT_NOISE_POWER)).sqrt() * noise_ratio_B1
    return torch.where(noise_power_B1 > SILENT_NOISE_POWER, gain_B1, torch.zeros_like(gain_B1))


def _reverberate(wave_BT: Tensor, spectrum_BF: Tensor, segment: slice, fft_samples: int) -> Tensor:
    """Return the segments reverberated in their rooms, shape (B, T).

    A circular convolution is enough: with `choose_fft_samples` only the context is affected by what wraps around, and
    the context is cut off.
    """
    if not len(wave_BT):
        return wave_BT[:, segment]  # torch refuses an FFT of no rows
    wet_BT: Tensor = torch.fft.irfft(torch.fft.rfft(wave_BT, fft_samples) * spectrum_BF, fft_samples)
    return wet_BT[:, segment.start + DIRECT_AT : segment.stop + DIRECT_AT]


def mask_patches(patch_B1FW: Tensor, stripe_BC22: Tensor, config: TrainConfig) -> Tensor:
    """Return patches with the drawn stripes of bands and of frames set to the patch's mean.

    A stripe spans U[0, mask_fraction] of its axis and hides the bins that start inside it.
    Source: SpecAugment, Park et al. 2019.
    """
    bands, frames = patch_B1FW.shape[2:]
    hidden_BF, hidden_BW = (
        _mark_stripes(stripe_BC22[:, :, axis], size, config.mask_fraction) for axis, size in enumerate((bands, frames))
    )
    hidden_B1FW = (hidden_BF.unsqueeze(2) | hidden_BW.unsqueeze(1)).unsqueeze(1)
    return torch.where(hidden_B1FW, patch_B1FW.mean(dim=(1, 2, 3), keepdim=True), patch_B1FW)


def _mark_stripes(stripe_BC2: Tensor, size: int, fraction: float) -> Tensor:
    width_BC1 = stripe_BC2[..., :1] * fraction * size
    start_BC1 = stripe_BC2[..., 1:] * (size - width_BC1)
    bins = torch.arange(size, device=stripe_BC2.device)
    return ((bins >= start_BC1) & (bins < start_BC1 + width_BC1)).any(dim=1)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor if tensor.is_pinned() else tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
