"""Transforms of waveforms on the CPU, for training in worker processes; audiomentations does the work.

That library draws from Python's and numpy's global generators. Here every item of a batch has a seed of its
own, and both generators are left as they were found: an item is a function of its wave and its seed, whatever
its place in the batch and the process. Not for threads, which share those generators.

Shape legend: B batch, T samples.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.settings import Transforms
from bench.values import INT16_SCALE, RATE_HZ, Floats, Ints

PINK_DB, BROWN_DB = -3.01, -6.02  # an octave, of the power spectral density
COLOUR_TAPS = 512  # the colour holds from RATE_HZ / COLOUR_TAPS = 31 Hz up; below, the noise is white

Step = Callable[[Floats], Floats]


def transform_waves(wave_BT: Floats, transforms: Transforms, seeds_B: Ints) -> Floats:
    """Return the waves, each transformed as its seed says, in the order: stretch, jitter, distortion, noise.

    Shapes: wave_BT float32 at RATE_HZ and the result are (B, T); seeds_B (B,), at least 0.
    What has become shorter than T ends in silence, what has become longer is cut off at its end: the start stays
    in its place, and the end of a second moves by up to 50 ms at 5 per cent.
    """
    if transforms.is_idle:
        return wave_BT
    steps = _steps(transforms)
    found_BT = np.empty_like(wave_BT)
    for found_T, wave_T, seed in zip(found_BT, wave_BT, seeds_B, strict=True):
        with _seed_generators(int(seed)):
            heard_T = wave_T.copy()  # the library takes no strided and no read-only waves
            for step in steps:
                heard_T = _fit_length(step(heard_T), len(wave_T))
        found_T[:] = heard_T
    return found_BT


def transform_int16(transforms: Transforms, wave_BT: npt.NDArray[np.int16], seeds_B: Ints) -> npt.NDArray[np.int16]:
    """Return int16 waves transformed; what grew louder than full scale is clipped, as a recorder would."""
    heard_BT = transform_waves(wave_BT.astype(np.float32) * np.float32(INT16_SCALE), transforms, seeds_B)
    kept_BT: npt.NDArray[np.int16] = np.rint(np.clip(heard_BT / INT16_SCALE, -32_768, 32_767)).astype(np.int16)
    return kept_BT


def _steps(transforms: Transforms) -> list[Step]:
    """Return the transforms that may apply. Each draws for itself, when it is called, whether it does."""
    import audiomentations as library  # 0.7 s, and training without transforms needs none of it

    low, high = transforms.jitter
    faster, slower = (sorted(round(RATE_HZ / (1 + sign * share)) for share in (low, high)) for sign in (1, -1))
    # DEVIATION: the library gives 0 Hz the density of 1 Hz, far above that of its first bin, so that with its defaults
    # pink noise falls by 3.6 +- 0.7 dB an octave. The law has no scale: told a rate of one sample a bin, the
    # library takes the first bin for 1 Hz, and pink noise falls by 3.0 +- 0.2 dB.
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
    return [_step(library.OneOf(ways, p=share), rate_hz) for share, rate_hz, ways in steps if share > 0]


def _step(transform: Any, rate_hz: int) -> Step:
    def step(wave_T: Floats) -> Floats:
        heard_T: Floats = transform(wave_T, rate_hz)
        return heard_T

    return step


def _fit_length(wave_T: Floats, num_samples: int) -> Floats:
    """Return the first samples, filled up with silence where there are too few."""
    return np.pad(wave_T[:num_samples], (0, max(0, num_samples - len(wave_T))))


@contextmanager
def _seed_generators(seed: int) -> Iterator[None]:
    """Seed both global generators, and put them back afterwards."""
    kept, kept_numpy = random.getstate(), np.random.get_state()
    words = np.random.SeedSequence(seed).generate_state(4)
    try:
        random.seed(words.tobytes())
        np.random.seed(words)
        yield
    finally:
        random.setstate(kept)
        np.random.set_state(kept_numpy)
