"""Clocks that differ, and a wave put onto another clock.

Shape legend: T samples of the source, N samples of the result, K times, S sinusoids, P taps, F phases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.align.contract import Seconds
from bench.settings import require
from bench.values import RATE_HZ, Floats

STEEPEST = 0.5  # seconds of lag a second: below 1 no clock runs backwards, and the inverse halves its error each time
SETTLED_S = 1e-11  # of the inverse: a hundredth of what is promised, and above the rounding of an hour in float64
TAPS = 64
STOPBAND_DB = 100.0  # of the window; with 64 taps its transition is 0.1 of the rate: flat to 7 kHz of 16
PHASES = 1024  # straight lines between them err by (pi / 1024)**2 / 8, or -118 dB
BLOCK = 16_384  # samples made at a time: its taps are 4 MB
PERIODS_S = (40.0, 160.0)  # of drawn wobbles: temperature moves a clock over minutes
SINUSOIDS = 3


@dataclass(frozen=True)
class Wobble:
    """One slow swing of a clock: amplitude_s * sin(2 pi t / period_s + phase)."""

    amplitude_s: float
    period_s: float
    phase: float

    @property
    def steepest(self) -> float:
        """Return the largest change of its lag, in seconds a second."""
        return 2 * np.pi * abs(self.amplitude_s) / self.period_s


@dataclass(frozen=True)
class Clock:
    """The clock of channel 1 beside that of channel 0.

    lag(t) = offset_s + drift * (t - centre_s) + the wobbles, in seconds, and time1 = time0 + lag(time0).
    Raises: ConfigError if the lag could change by STEEPEST or more in a second, so that time always goes on.
    """

    offset_s: float = 0.0
    drift: float = 0.0
    centre_s: float = 0.0
    wobbles: tuple[Wobble, ...] = ()

    def __post_init__(self) -> None:
        require(all(w.period_s > 0 for w in self.wobbles), "periods of a clock must be > 0 s", self.wobbles)
        steepest = abs(self.drift) + sum(w.steepest for w in self.wobbles)
        rule = f"a clock's lag must change by less than {STEEPEST:g} s a second; choose a smaller drift or wobble"
        require(bool(np.isfinite(self.offset_s)) and steepest < STEEPEST, rule, self)

    def lag(self, time0_K: Seconds) -> Seconds:
        """Return how much later channel 1 shows what channel 0 has at these times, shape (K,)."""
        lag_K = self.offset_s + self.drift * (time0_K - self.centre_s)
        for wobble in self.wobbles:
            lag_K = lag_K + wobble.amplitude_s * np.sin(2 * np.pi * time0_K / wobble.period_s + wobble.phase)
        return lag_K

    def time1(self, time0_K: Seconds) -> Seconds:
        """Return the times of channel 1, shape (K,)."""
        return time0_K + self.lag(time0_K)

    def time0(self, time1_K: Seconds) -> Seconds:
        """Return the times of channel 0 whose `time1` these are, to 1e-9 s, shape (K,).

        t = time1 - lag(t) repeated: each time the error shrinks by STEEPEST or more.
        """
        time0_K = time1_K - self.offset_s
        while True:
            better_K = time1_K - self.lag(time0_K)
            if np.abs(better_K - time0_K).max(initial=0.0) < SETTLED_S:
                return better_K
            time0_K = better_K


@dataclass(frozen=True)
class ClockRange:
    """How far drawn clocks may be off: offset and wobble in seconds, drift in parts of a million, each with both signs.

    Drawn are: the offset and the drift uniformly, the wobble's height between half and all of `wobble_s`.
    """

    offset_s: float
    drift_ppm: float
    wobble_s: float = 0.0

    def __post_init__(self) -> None:
        require(min(self.offset_s, self.drift_ppm, self.wobble_s) >= 0, "ranges of a clock must be >= 0", self)

    def largest_lag_s(self, duration_s: float) -> float:
        """Return a lag in seconds that no drawn clock exceeds in a file of this length."""
        return self.offset_s + self.drift_ppm * 1e-6 * duration_s / 2 + self.wobble_s

    def draw(self, draw: np.random.Generator, duration_s: float) -> Clock:
        """Return a clock whose drift is zero in the middle of the file."""
        offset_s = float(draw.uniform(-self.offset_s, self.offset_s))
        drift = float(draw.uniform(-self.drift_ppm, self.drift_ppm)) * 1e-6
        height_S = self.wobble_s * draw.uniform(0.5, 1) * draw.dirichlet(np.ones(SINUSOIDS))
        period_S, phase_S = draw.uniform(*PERIODS_S, SINUSOIDS), draw.uniform(0, 2 * np.pi, SINUSOIDS)
        wobbles = [Wobble(*map(float, parts)) for parts in zip(height_S, period_S, phase_S, strict=True)]
        return Clock(offset_s, drift, duration_s / 2, tuple(wobbles) if self.wobble_s else ())


def warp(wave_T: npt.NDArray[np.floating], source_s_N: Seconds, rate_hz: int = RATE_HZ) -> Floats:
    """Return the wave at any times (in seconds from its first sample), band-limited; silence outside it.

    Shapes: wave (T,), perhaps a memory map; times and result (N,), float32.
    A windowed sinc of TAPS taps: the error is below -80 dB up to 7/8 of half the rate. Times that run faster than
    the wave's own by some per cent fold no more than what is above that.
    """
    filters_FP = _filters()
    blocks = range(0, len(source_s_N), BLOCK)
    found = [_interpolate(wave_T, source_s_N[i : i + BLOCK] * rate_hz, filters_FP) for i in blocks]
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def warp_blocks(
    wave_T: npt.NDArray[np.floating],
    source_time: Callable[[Seconds], Seconds],
    num_samples: int,
    rate_hz: int = RATE_HZ,
) -> Iterator[Floats]:
    """Yield the wave on another clock, a block at a time, so that memory is flat in the length.

    `source_time` gives for times of the result the times in the wave: `Clock.time1`, or `TimeMap.at`, brings
    channel 1 onto the clock of channel 0. Sample n of all blocks together is at n / rate_hz.
    """
    filters_FP = _filters()
    for start in range(0, num_samples, BLOCK):
        time_N = np.arange(start, min(start + BLOCK, num_samples)) / rate_hz
        yield _interpolate(wave_T, source_time(time_N) * rate_hz, filters_FP)


def _interpolate(wave_T: npt.NDArray[np.floating], place_N: npt.NDArray[np.float64], filters_FP: Floats) -> Floats:
    """Return the wave at fractional sample numbers. What is read are the samples from the least to the greatest."""
    # Places beyond the taps of the first and last sample are all silence: so far off nothing need be read.
    place_N = np.clip(place_N, -TAPS, len(wave_T) + TAPS)
    whole_N = np.floor(place_N).astype(np.int64)
    first, last = int(whole_N.min()) - TAPS // 2 + 1, int(whole_N.max()) + TAPS // 2 + 1
    near_T = np.zeros(last - first, np.float32)
    start, stop = max(0, first), min(len(wave_T), last)
    if stop > start:
        near_T[start - first : stop - first] = wave_T[start:stop]
    phase_N = (place_N - whole_N) * PHASES
    below_N = np.minimum(phase_N.astype(np.int64), PHASES - 1)
    share_N = (phase_N - below_N).astype(np.float32)
    taps_NP = np.lib.stride_tricks.sliding_window_view(near_T, TAPS)[whole_N - whole_N.min()]
    low_N = np.einsum("np,np->n", taps_NP, filters_FP[below_N])
    high_N = np.einsum("np,np->n", taps_NP, filters_FP[below_N + 1])
    between_N: Floats = low_N + share_N * (high_N - low_N)
    return between_N


def _filters() -> Floats:
    """Return the windowed sinc (F + 1, P) for each phase from 0 to 1; tap p is of sample floor(place) + p - P/2 + 1.

    Each sums to 1, so that a constant stays what it is.
    Source: Kaiser's window; beta = 0.1102 (attenuation - 8.7), Oppenheim and Schafer, Discrete-Time Signal Processing.
    """
    beta = 0.1102 * (STOPBAND_DB - 8.7)
    away_FP = np.arange(PHASES + 1)[:, None] / PHASES - (np.arange(TAPS) - TAPS // 2 + 1)
    inside_FP = np.sqrt(np.clip(1 - (2 * away_FP / TAPS) ** 2, 0, None))
    filters_FP = np.sinc(away_FP) * np.i0(beta * inside_FP)
    filters_FP /= filters_FP.sum(axis=1, keepdims=True)
    return filters_FP.astype(np.float32)
