"""Augmentation of waveforms on the CPU in worker processes, for training: audiomentations, and the distortions of `v2`.

The library draws from the global generators of Python and numpy. Here each item of a batch has a seed, and both
generators are restored afterwards: an item is a function of its wave and its seed, not of its row in the batch or
the process. Not for use in threads, which share those generators.

Shape legend: B batch, T samples.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.settings import MP3_KBPS, Transforms
from bench.values import FULL_SCALE, INT16_PEAK, INT16_SCALE, RATE_HZ, Floats, Ints

PINK_DB, BROWN_DB = -3.01, -6.02  # dB per octave of the power spectral density
COLOUR_TAPS = 512  # the colour holds from RATE_HZ / COLOUR_TAPS = 31 Hz up; below, the noise is white

Step = Callable[[Floats], Floats]
Wave = npt.NDArray[np.float64]


def transform_waves(wave_BT: Floats, transforms: Transforms, seeds_B: Ints) -> Floats:
    """Return the waves, each transformed by its seed, in the order of `_steps` and then of `_distortions`.

    Shapes: wave_BT float32 at RATE_HZ and the result are (B, T); seeds_B (B,), at least 0.
    A wave that becomes shorter than T is padded with silence, a longer one is cut at its end: the start does not
    move, and a stretch by 5 % moves the end of one second by up to 50 ms.
    """
    if transforms.is_idle:
        return wave_BT
    steps = [*_steps(transforms), *_distortions(transforms)]
    result_BT = np.empty_like(wave_BT)
    for result_T, wave_T, seed in zip(result_BT, wave_BT, seeds_B, strict=True):
        with _seed_generators(int(seed)):
            changed_T = wave_T.copy()  # the library takes neither strided nor read-only waves
            for step in steps:
                changed_T = _fit_length(step(changed_T), len(wave_T))
        result_T[:] = changed_T
    return result_BT


def transform_int16(transforms: Transforms, wave_BT: npt.NDArray[np.int16], seeds_B: Ints) -> npt.NDArray[np.int16]:
    """Return int16 waves transformed, and clipped at full scale as a recorder would."""
    changed_BT = transform_waves(wave_BT.astype(np.float32) * np.float32(INT16_SCALE), transforms, seeds_B)
    clipped_BT: npt.NDArray[np.int16] = np.rint(np.clip(changed_BT / INT16_SCALE, -FULL_SCALE, INT16_PEAK)).astype(
        np.int16
    )
    return clipped_BT


def _steps(transforms: Transforms) -> list[Step]:
    """Return the transforms of audiomentations whose probability is above 0, in the order in which they are applied.

    They are stretch, jitter, distortion and noise. Each call of one draws whether it applies.
    """
    import audiomentations as library  # takes 0.7 s, and training without transforms does not need it

    low, high = transforms.jitter
    faster, slower = (sorted(round(RATE_HZ / (1 + sign * share)) for share in (low, high)) for sign in (1, -1))
    # DEVIATION: the library gives 0 Hz the density of 1 Hz, far above that of its first bin, so that with its defaults
    # pink noise falls by 3.6 +- 0.7 dB per octave. A power law has no scale: at a sample rate of COLOUR_TAPS Hz, the
    # library's first bin is at 1 Hz, and pink noise falls by 3.0 +- 0.2 dB per octave.
    steps: list[tuple[float, int, list[Any]]] = [
        (transforms.time_stretch, RATE_HZ, [library.TimeStretch(*transforms.stretch_rate, p=1.0)]),
        (transforms.resample_jitter, RATE_HZ, [library.Resample(*rates, p=1.0) for rates in (faster, slower)]),
        (transforms.tanh, RATE_HZ, [library.TanhDistortion(*transforms.tanh_amount, p=1.0)]),
        (
            transforms.coloured_noise,
            COLOUR_TAPS,
            [
                library.AddColorNoise(*transforms.colour_snr_db, decay_db, decay_db, p=1.0, n_fft=COLOUR_TAPS)
                for decay_db in (PINK_DB, BROWN_DB)
            ],
        ),
    ]
    return [
        _step(library.OneOf(variants, p=probability), rate_hz)
        for probability, rate_hz, variants in steps
        if probability > 0
    ]


def _distortions(transforms: Transforms) -> list[Step]:
    """Return the distortions of `v2` whose probability is above 0, in the order in which a recording meets them.

    They are pitch, compression, clipping, codec and device; each takes the delay of its method out again.
    """
    from bench.degrade import distort  # imports scipy, which training without distortions does not need

    uniform = random.uniform  # seeded for each item, as what audiomentations draws from

    def shift_pitch(wave_T: Wave) -> Wave:
        return distort.stretch(wave_T, pitch_cents=uniform(*transforms.pitch_cents))

    def code(wave_T: Wave) -> Wave:
        kbps = uniform(*transforms.codec_kbps)
        if random.random() < 0.5:
            return distort.code(wave_T, "opus", kbps)[0]
        return distort.code(wave_T, "mp3", min(MP3_KBPS, key=lambda rate: abs(rate - kbps)))[0]

    def pass_device(wave_T: Wave) -> Wave:
        if random.random() < 0.5:
            return distort.pass_telephone(wave_T)
        return distort.hear_by_microphone(distort.play_by_loudspeaker(wave_T))

    steps: list[tuple[float, Callable[[Wave], Wave]]] = [
        (transforms.pitch_shift, shift_pitch),
        (transforms.compress, lambda wave_T: distort.compress(wave_T, uniform(*transforms.compress_ratio))),
        (transforms.clip, lambda wave_T: distort.clip(wave_T, uniform(*transforms.clip_db))),
        (transforms.codec, code),
        (transforms.device, pass_device),
    ]
    return [_perhaps(probability, change) for probability, change in steps if probability > 0]


def _perhaps(probability: float, change: Callable[[Wave], Wave]) -> Step:
    def step(wave_T: Floats) -> Floats:
        return change(wave_T.astype(np.float64)).astype(np.float32) if random.random() < probability else wave_T

    return step


def _step(transform: Any, rate_hz: int) -> Step:
    def step(wave_T: Floats) -> Floats:
        changed_T: Floats = transform(wave_T, rate_hz)
        return changed_T

    return step


def _fit_length(wave_T: Floats, num_samples: int) -> Floats:
    """Return the first samples, padded with silence if there are too few."""
    return np.pad(wave_T[:num_samples], (0, max(0, num_samples - len(wave_T))))


@contextmanager
def _seed_generators(seed: int) -> Iterator[None]:
    """Seed both global generators, and restore them afterwards."""
    state, numpy_state = random.getstate(), np.random.get_state()
    seed_words = np.random.SeedSequence(seed).generate_state(4)
    try:
        random.seed(seed_words.tobytes())
        np.random.seed(seed_words)
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
