"""Training pairs: a clean segment, and the same moment heard through noise and rooms.

Step s of seed r draws from its own generator, so a step is a function of (r, s): a run that was
killed goes on exactly as it would have.

Shape legend: B pairs, T samples, R taps of a response, F bins of the spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from bench.audio.crop import looped, padded
from bench.audio.pcm import Corpus
from bench.config import TrainConfig
from bench.degrade.room import DIRECT_AT, RoomBank
from bench.errors import DataError
from bench.values import RATE_HZ, Ints

INT16_SCALE = 1 / 32_768
SILENT_POWER = 1e-6  # -60 dB re full scale: an anchor below it is drawn again
MAX_DRAWS = 8


@dataclass(frozen=True)
class Draws:
    """One step's material on the CPU, before degradation.

    Shapes: anchor (B, T); music and noise (B, C + T + DIRECT_AT) with C samples of context before;
    response (B,) row in the bank, snr_db (B,), has_noise and has_room (B,); track and start (B,) say
    where in the corpus each positive begins.
    """

    anchor_BT: Tensor
    music_BT: Tensor
    noise_BT: Tensor
    response_B: Tensor
    snr_db_B: Tensor
    has_noise_B: Tensor
    has_room_B: Tensor
    track_B: Ints
    start_B: Ints

    def to(self, device: torch.device) -> Draws:
        """Return the same draws with their tensors on a device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors: dict[str, Any] = {n: v.to(device) for n, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Material:
    """What pairs are drawn from: one split of music, the training side of noise and rooms."""

    music: Corpus
    tracks: Ints
    noise: Corpus
    noises: Ints
    spectra_RF: Tensor
    context: int
    segment_samples: int


def material(
    music: Corpus,
    tracks: Ints,
    noise: Corpus,
    banks: Sequence[RoomBank],
    config: TrainConfig,
    segment_samples: int,
    device: torch.device,
) -> Material:
    """Return the material of some tracks with the training noise and rooms. Raises: DataError if one is empty."""
    context = round(config.max_rir_s * RATE_HZ)
    responses = [bank.response(i)[:context] for bank in banks for i in bank.numbers("train")]
    noises = noise.numbers("train")
    for what, found in (("music track", tracks), ("noise", noises), ("impulse response", responses)):
        if not len(found):
            raise DataError(f"no usable {what} on the training side; `bench data verify` says what was left out")
    cut_RT = torch.zeros(len(responses), _fft_samples(context, segment_samples))
    for row, response in zip(cut_RT, responses, strict=True):
        row[: len(response)] = torch.from_numpy(np.array(response))
    return Material(music, tracks, noise, noises, torch.fft.rfft(cut_RT).to(device), context, segment_samples)


def draw_pairs(source: Material, config: TrainConfig, seed: int, step: int) -> Draws:
    """Return the material of step `step`, a function of (seed, step) alone."""
    draw = np.random.default_rng([seed, step])
    num_pairs, length = config.batch_pairs, source.segment_samples
    longest_offset = round(config.offset_ms * RATE_HZ / 1000)
    groups = -(-num_pairs // config.segments_per_track)
    replace = groups > len(source.tracks)
    tracks = np.repeat(draw.choice(source.tracks, groups, replace=replace), config.segments_per_track)[:num_pairs]
    total = source.context + length + DIRECT_AT
    anchor = np.zeros((num_pairs, length), dtype=np.int16)
    music, noise = (np.zeros((num_pairs, total), dtype=np.int16) for _ in range(2))
    starts = np.zeros(num_pairs, dtype=np.int64)
    for i, track in enumerate(tracks):
        if i % config.segments_per_track == 0:
            places = _starts(source, int(track), config, draw)
        start = places[i % config.segments_per_track]
        offset = int(draw.integers(-longest_offset, longest_offset + 1))
        anchor[i] = padded(source.music, int(track), start, start + length)
        first = start + offset - source.context
        music[i] = padded(source.music, int(track), first, first + total)
        hiss = int(draw.choice(source.noises))
        noise[i] = looped(source.noise, hiss, int(draw.integers(source.noise.num_samples(hiss))), total)
        starts[i] = start + offset
    weights = np.array([config.clean, config.noise_only, config.reverb_only, config.noise_and_reverb])
    kind = draw.choice(len(weights), num_pairs, p=weights / weights.sum())
    return Draws(
        anchor_BT=torch.from_numpy(anchor),
        music_BT=torch.from_numpy(music),
        noise_BT=torch.from_numpy(noise),
        response_B=torch.from_numpy(draw.integers(len(source.spectra_RF), size=num_pairs)),
        snr_db_B=torch.from_numpy(draw.uniform(*config.snr_db, num_pairs).astype(np.float32)),
        has_noise_B=torch.from_numpy(np.isin(kind, (1, 3))),
        has_room_B=torch.from_numpy(kind >= 2),
        track_B=tracks,
        start_B=starts,
    )


def degrade_pairs(draws: Draws, source: Material) -> tuple[Tensor, Tensor]:
    """Return (anchors, positives), both (B, T) float32 on the device of the draws, positives at peak 1."""
    music_BT, noise_BT = (wave.float() * INT16_SCALE for wave in (draws.music_BT, draws.noise_BT))
    here = slice(source.context, source.context + source.segment_samples)
    dry_music_BT, dry_noise_BT = music_BT[:, here], noise_BT[:, here]
    rows = draws.has_room_B.nonzero().squeeze(1)
    spectrum_BF = source.spectra_RF[draws.response_B[rows]]
    heard_music_BT = dry_music_BT.index_copy(0, rows, _reverberated(music_BT[rows], spectrum_BF, here))
    heard_noise_BT = dry_noise_BT.index_copy(0, rows, _reverberated(noise_BT[rows], spectrum_BF, here))
    gain_B1 = noise_gain(heard_music_BT, heard_noise_BT, draws.snr_db_B) * draws.has_noise_B.unsqueeze(1)
    mixture_BT = heard_music_BT + gain_B1 * heard_noise_BT
    peak_B1 = mixture_BT.abs().amax(dim=1, keepdim=True).clamp_min(1e-9)
    return draws.anchor_BT.float() * INT16_SCALE, mixture_BT / peak_B1


def noise_gain(music_BT: Tensor, noise_BT: Tensor, snr_db_B: Tensor) -> Tensor:
    """Return the gains (B, 1) for the noise; 0 where the noise is silent. The batched twin of `degrade.mix`."""
    music_power_B1 = music_BT.square().mean(dim=1, keepdim=True)
    noise_power_B1 = noise_BT.square().mean(dim=1, keepdim=True)
    gain_B1 = (music_power_B1 / noise_power_B1.clamp_min(1e-12)).sqrt() * 10 ** (-snr_db_B.unsqueeze(1) / 20)
    return torch.where(noise_power_B1 > 1e-12, gain_B1, torch.zeros_like(gain_B1))


def _reverberated(wave_BT: Tensor, spectrum_BF: Tensor, here: slice) -> Tensor:
    """Return the segment as heard in the room.

    A circular convolution is enough: a response is no longer than the context, so what wraps around
    falls into the context, which is cut off.
    """
    if not len(wave_BT):
        return wave_BT[:, here]  # an FFT of nothing is an error
    num_samples = _fft_samples(here.start, here.stop - here.start)
    wet_BT: Tensor = torch.fft.irfft(torch.fft.rfft(wave_BT, num_samples) * spectrum_BF, num_samples)
    return wet_BT[:, here.start + DIRECT_AT : here.stop + DIRECT_AT]


def _fft_samples(context: int, segment_samples: int) -> int:
    return int(next_fast_len(context + segment_samples + DIRECT_AT, real=True))


def _starts(source: Material, track: int, config: TrainConfig, draw: np.random.Generator) -> list[int]:
    """Return where the segments of one track begin: one anywhere, neighbours as far as they fit, others anywhere."""
    offset, neighbour = (round(ms * RATE_HZ / 1000) for ms in (config.offset_ms, config.neighbour_ms))
    last = source.music.num_samples(track) - source.segment_samples - offset
    starts = [_audible_start(source, track, offset, draw)]
    furthest = config.segments_per_track
    around = [starts[0] + k * neighbour for k in range(-furthest, furthest + 1) if k]
    fitting = np.array([start for start in around if offset <= start <= last], dtype=np.int64)
    starts += draw.permutation(fitting)[: config.neighbours_per_track].tolist()
    while len(starts) < config.segments_per_track:
        starts.append(_audible_start(source, track, offset, draw))
    return starts


def _audible_start(source: Material, track: int, offset: int, draw: np.random.Generator) -> int:
    last = source.music.num_samples(track) - source.segment_samples - offset
    for _ in range(MAX_DRAWS):
        start = int(draw.integers(min(offset, max(last, 0)), max(last, 0) + 1))
        piece = source.music.read(track, start, source.segment_samples).astype(np.float32)
        if np.mean(np.square(piece)) * INT16_SCALE**2 > SILENT_POWER:
            break
    return start


def mask_patches(patch_B1FW: Tensor, config: TrainConfig, seed: int, step: int) -> Tensor:
    """Return patches with `mask_count` random stripes in each direction set to the patch's mean.

    A stripe spans U[0, mask_fraction] of its axis and hides the bins that begin in it.
    Source: SpecAugment, Park et al. 2019.
    """
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    batch, _, bands, frames = patch_B1FW.shape
    hidden_BFW = torch.zeros(batch, bands, frames, dtype=torch.bool)
    for _ in range(config.mask_count):
        for size, view in ((bands, (batch, bands, 1)), (frames, (batch, 1, frames))):
            width_B1, at_B1 = torch.rand(2, batch, 1, generator=draw).unbind(0)
            width_B1 = width_B1 * config.mask_fraction * size
            at_B1 = at_B1 * (size - width_B1)
            place_1S = torch.arange(size).unsqueeze(0)
            hidden_BFW |= ((place_1S >= at_B1) & (place_1S < at_B1 + width_B1)).view(view)
    mean_B111 = patch_B1FW.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(hidden_BFW.unsqueeze(1).to(patch_B1FW.device), mean_B111, patch_B1FW)
