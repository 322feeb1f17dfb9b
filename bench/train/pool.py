"""The pool that training pairs are drawn from: one split of the music, the training side of noise and rooms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from bench.audio.pcm import Corpus
from bench.data import TrainingSet
from bench.degrade.room import DIRECT_AT
from bench.errors import DataError
from bench.settings import TrainConfig
from bench.train.hard_negatives import NO_HARD_NEGATIVES, HardNegatives
from bench.train.sound import Sound, sound_of
from bench.values import INT16_SCALE, RATE_HZ, Ints

BLOCK_SAMPLES = RATE_HZ // 100
ANCHOR_GATE_POWER = 1e-6  # -60 dB re full scale: an anchor below it is drawn again


@dataclass(frozen=True, eq=False)
class TrainingPool:
    """One side of the music with the training noise and rooms, ready to be drawn from.

    `energy` and `first_block` tell what is silent (see `is_audible`); `spectra_RF` are the transforms of the
    responses, cut to `context` samples, on the device.
    """

    music: Corpus
    tracks: Ints
    music_sound: Sound
    energy: npt.NDArray[np.float64]
    first_block: Ints
    noise: Corpus
    noises: Ints
    noise_sound: Sound
    spectra_RF: Tensor
    context: int
    segment_samples: int
    hard_negatives: HardNegatives = NO_HARD_NEGATIVES

    def is_audible(self, track_B: Ints, start_B: Ints) -> np.ndarray:
        """Return whether the whole 10 ms blocks inside each segment have a mean power above -60 dB, shape (B,)."""
        first_B = self.first_block[track_B] - start_B // -BLOCK_SAMPLES
        last_B = self.first_block[track_B] + (start_B + self.segment_samples) // BLOCK_SAMPLES
        blocks_B = np.maximum(last_B - first_B, 1)
        power_B = (self.energy[last_B] - self.energy[first_B]) / (blocks_B * BLOCK_SAMPLES)
        return np.asarray(power_B > ANCHOR_GATE_POWER)


def load_pool(
    training_set: TrainingSet,
    tracks: Ints,
    config: TrainConfig,
    segment_samples: int,
    device: torch.device,
    hard_negatives: HardNegatives = NO_HARD_NEGATIVES,
) -> TrainingPool:
    """Return the pool of some tracks with the training noise and rooms. Raises: DataError if one is empty.

    Cost: reads the tracks once; 8 bytes for each 10 ms of them, and their samples on a GPU that has room.
    """
    music, noise = training_set.music, training_set.noise
    context = round(config.max_rir_s * RATE_HZ)
    responses = [bank.response(i)[:context] for bank in training_set.banks for i in bank.numbers("train")]
    noises = noise.numbers("train")
    for what, found in (("music track", tracks), ("noise", noises), ("impulse response", responses)):
        if not len(found):
            raise DataError(f"no usable {what} on the training side; `bench data verify` says what was left out")
    cut_RT = torch.zeros(len(responses), fft_samples(context, segment_samples))
    for row, response in zip(cut_RT, responses, strict=True):
        row[: len(response)] = torch.from_numpy(np.array(response))
    energy, first_block = _sum_energy(music, tracks)
    return TrainingPool(
        music=music,
        tracks=tracks,
        music_sound=sound_of(music, tracks, device, on_host=not config.transforms.is_idle),
        energy=energy,
        first_block=first_block,
        noise=noise,
        noises=noises,
        noise_sound=sound_of(noise, noises, device),
        spectra_RF=torch.fft.rfft(cut_RT).to(device),
        context=context,
        segment_samples=segment_samples,
        hard_negatives=hard_negatives,
    )


def fft_samples(context: int, segment_samples: int) -> int:
    """Return the length of the transforms that convolve a segment and its context."""
    return int(next_fast_len(context + segment_samples + DIRECT_AT, real=True))


def _sum_energy(music: Corpus, tracks: Ints) -> tuple[npt.NDArray[np.float64], Ints]:
    """Return the running sum of energy over all whole blocks, track after track, and each track's first block in it."""
    blocks = music.lengths // BLOCK_SAMPLES
    ends = np.cumsum(blocks[tracks])
    first_block = np.zeros(len(music.lengths), dtype=np.int64)
    first_block[tracks] = ends - blocks[tracks]
    energy = np.zeros(int(ends[-1]) + 1)  # float64: a running sum over years of audio
    for track in tracks.tolist():
        wave_T = music.read(track, 0, int(blocks[track]) * BLOCK_SAMPLES).astype(np.float32) * INT16_SCALE
        first = 1 + first_block[track]
        energy[first : first + blocks[track]] = np.square(wave_T).reshape(-1, BLOCK_SAMPLES).sum(axis=1)
    np.cumsum(energy, out=energy)
    return energy, first_block
