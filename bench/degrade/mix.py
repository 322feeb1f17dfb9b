"""Mixing music and noise at a signal-to-noise ratio, one query at a time; `bench.train.pairs` does it for batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.errors import DataError

# A wave with less mean power is silent and has no SNR: -100 dB re a full scale of 1. In int16 units, as of the stems
# of queries, only digital silence is below it.
ZERO_POWER = 1e-10


def noise_gain(music_T: npt.NDArray[np.floating], noise_T: npt.NDArray[np.floating], snr_db: float) -> float:
    """Return the factor for the noise at which music plus noise has the given ratio.

    Shapes: both (T,), same rate; the ratio is of mean powers over all T samples. Units: dB.
    Raises: DataError if either is silent: the ratio would be undefined.
    Source: 10 log10(mean(music^2) / mean(noise^2)), docs/metrics.md, section SNR.
    """
    music_power = float(np.mean(np.square(music_T, dtype=np.float64)))
    noise_power = float(np.mean(np.square(noise_T, dtype=np.float64)))
    if min(music_power, noise_power) < ZERO_POWER:
        raise DataError(f"cannot mix at {snr_db} dB: the {'music' if music_power < noise_power else 'noise'} is silent")
    return float(np.sqrt(music_power / noise_power) * 10 ** (-snr_db / 20))


def normalise_peak(wave_T: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return the wave scaled to a peak of 1, as a recorder's gain control would; silence stays silence."""
    peak = float(np.max(np.abs(wave_T), initial=0.0))
    return (wave_T / peak if peak > 0 else wave_T).astype(np.float32)
