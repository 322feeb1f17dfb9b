"""The pool that training pairs are drawn from: some tracks of the music, and the training side of noise and rooms."""

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
from bench.train.sound import Sound, open_sound
from bench.values import INT16_SCALE, RATE_HZ, Ints

BLOCK_SAMPLES = RATE_HZ // 100  # 10 ms
WHOLE_PAST_S = 1.0  # read before a segment where responses are kept whole, as before a query of the test
ANCHOR_GATE_POWER = 1e-6  # -60 dB re full scale: an anchor whose mean power is not above it is redrawn


@dataclass(frozen=True, eq=False)
class TrainingPool:
    """Some tracks of the music with the training noise and rooms, ready to be drawn from."""

    music: Corpus
    """The corpus of the tracks."""

    tracks: Ints
    """The numbers of the tracks that are drawn from."""

    music_sound: Sound
    """The samples of these tracks."""

    energy: npt.NDArray[np.float64]
    """The running sum of energy over the 10 ms blocks of all tracks, shape (blocks + 1,); see `is_audible`."""

    first_block: Ints
    """The first block of each track of the corpus in that sum."""

    noise: Corpus
    """The corpus of the noises."""

    noises: Ints
    """The numbers of the noises that are drawn from."""

    noise_sound: Sound
    """The samples of these noises."""

    spectra_RF: Tensor
    """The Fourier transforms of the impulse responses, as far as a segment hears them, on the device."""

    context: int
    """Samples that are read before a segment, so that a room reverberates from the segment's start."""

    segment_samples: int
    """Length of a segment."""

    fft_samples: int
    """Length of the Fourier transforms of the responses, and of what is convolved with them."""

    hard_negatives: HardNegatives = NO_HARD_NEGATIVES
    """The hard negatives of the tracks."""

    def is_audible(self, track_B: Ints, start_B: Ints) -> np.ndarray:
        """Return whether each segment's whole 10 ms blocks have a mean power above ANCHOR_GATE_POWER, shape (B,)."""
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

    Cost: reads the tracks once; 8 bytes per 10 ms of them, and their samples in GPU memory if they fit.
    """
    music, noise = training_set.music, training_set.noise
    responses = [bank.response(i) for bank in training_set.banks for i in bank.numbers("train")]
    noises = noise.numbers("train")
    for what, items in (("music track", tracks), ("noise", noises), ("impulse response", responses)):
        if not len(items):
            raise DataError(f"no usable {what} on the training side; `bench data verify` says what was left out")
    context = round((config.past_s or config.max_rir_s or WHOLE_PAST_S) * RATE_HZ)
    taps = round(config.max_rir_s * RATE_HZ) or max(map(len, responses))
    heard = min(taps, context + segment_samples + DIRECT_AT)  # a longer response answers an earlier past than is read
    fft_samples = choose_fft_samples(context, segment_samples, heard)
    response_RT = torch.zeros(len(responses), fft_samples)
    for row, response in zip(response_RT, responses, strict=True):
        row[: min(heard, len(response))] = torch.from_numpy(np.array(response[:heard]))
    energy, first_block = _sum_energy(music, tracks)
    return TrainingPool(
        music=music,
        tracks=tracks,
        music_sound=open_sound(music, tracks, device, on_host=not config.transforms.is_idle),
        energy=energy,
        first_block=first_block,
        noise=noise,
        noises=noises,
        noise_sound=open_sound(noise, noises, device),
        spectra_RF=torch.fft.rfft(response_RT).to(device),
        context=context,
        segment_samples=segment_samples,
        fft_samples=fft_samples,
        hard_negatives=hard_negatives,
    )


def choose_fft_samples(context: int, segment_samples: int, taps: int) -> int:
    """Return the length of the Fourier transforms that convolve a segment and its context with a response.

    What wraps around must end before the segment: a response that is longer than the context is given its own length.
    Its transforms have an even length, which takes half the time of an odd one; the others keep theirs, and their bits.
    """
    if taps <= context:
        return int(next_fast_len(context + segment_samples + DIRECT_AT, real=True))
    return 2 * int(next_fast_len(-(-(taps + segment_samples + DIRECT_AT) // 2), real=True))


def _sum_energy(music: Corpus, tracks: Ints) -> tuple[npt.NDArray[np.float64], Ints]:
    """Return the running sum of energy over the whole blocks of all tracks, and each track's first block in it."""
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
