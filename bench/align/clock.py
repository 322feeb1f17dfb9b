"""Recorder clocks that drift apart, and the resampling of a wave from one clock to another.

Shape legend: T samples of the input wave, N samples of the result, K times, S sinusoids, P taps, F phases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.align.contract import Seconds
from bench.settings import require
from bench.values import RATE_HZ, Floats

# Seconds of lag per second. Below 1 no clock runs backwards; 0.5 halves the error of the inverse at each iteration.
STEEPEST = 0.5
SETTLED_S = 1e-11  # the inverse stops here: a hundredth of the guaranteed error, above float64 rounding at one hour
TAPS = 64
STOPBAND_DB = 100.0  # of the Kaiser window; 64 taps give a transition of 0.1 of the rate: flat to 7 kHz at 16 kHz
PHASES = 1024  # linear interpolation between their filters errs by (pi / 1024)**2 / 8, or -118 dB
BLOCK = 16_384  # samples per block: the taps of one block are 4 MB
PERIODS_S = (40.0, 160.0)  # range of the periods of drawn wobbles: temperature moves a clock over minutes
SINUSOIDS = 3  # wobbles of a drawn clock


@dataclass(frozen=True)
class Wobble:
    """One slow swing of a clock: amplitude_s * sin(2 pi t / period_s + phase)."""

    amplitude_s: float
    period_s: float
    phase: float

    @property
    def steepest(self) -> float:
        """Return the steepest slope of its lag, in seconds per second."""
        return 2 * np.pi * abs(self.amplitude_s) / self.period_s


@dataclass(frozen=True)
class Clock:
    """The clock of channel 1 relative to that of channel 0.

    lag(t) = offset_s + drift * (t - centre_s) + the wobbles, in seconds, and time1 = time0 + lag(time0).
    Raises: ConfigError if the lag could change by STEEPEST or more per second: time must never run backwards.
    """

    offset_s: float = 0.0
    drift: float = 0.0
    centre_s: float = 0.0
    wobbles: tuple[Wobble, ...] = ()

    def __post_init__(self) -> None:
        require(all(w.period_s > 0 for w in self.wobbles), "periods of a clock must be > 0 s", self.wobbles)
        steepest = abs(self.drift) + sum(w.steepest for w in self.wobbles)
        rule = f"a clock's lag must change by less than {STEEPEST:g} s per second; choose a smaller drift or wobble"
        require(bool(np.isfinite(self.offset_s)) and steepest < STEEPEST, rule, self)

    def lag(self, time0_K: Seconds) -> Seconds:
        """Return how much later events at these times of channel 0 appear in channel 1, shape (K,)."""
        lag_K = self.offset_s + self.drift * (time0_K - self.centre_s)
        for wobble in self.wobbles:
            lag_K = lag_K + wobble.amplitude_s * np.sin(2 * np.pi * time0_K / wobble.period_s + wobble.phase)
        return lag_K

    def time1(self, time0_K: Seconds) -> Seconds:
        """Return the times in channel 1 of these times in channel 0, shape (K,)."""
        return time0_K + self.lag(time0_K)

    def time0(self, time1_K: Seconds) -> Seconds:
        """Return the times in channel 0 of these times in channel 1, to 1e-9 s, shape (K,).

        Iterates t = time1 - lag(t): each step shrinks the error at least by the factor STEEPEST.
        """
        time0_K = time1_K - self.offset_s
        while True:
            next_K = time1_K - self.lag(time0_K)
            if np.abs(next_K - time0_K).max(initial=0.0) < SETTLED_S:
                return next_K
            time0_K = next_K


@dataclass(frozen=True)
class ClockRange:
    """Limits of drawn clocks: offset and wobble in seconds, drift in parts per million, each of either sign.

    Offset and drift are drawn uniformly, the amplitude of the wobble between half and all of `wobble_s`.
    """

    offset_s: float
    drift_ppm: float
    wobble_s: float = 0.0

    def __post_init__(self) -> None:
        require(min(self.offset_s, self.drift_ppm, self.wobble_s) >= 0, "ranges of a clock must be >= 0", self)

    def largest_lag_s(self, duration_s: float) -> float:
        """Return the lag in seconds that no drawn clock exceeds in a file of this length."""
        return self.offset_s + self.drift_ppm * 1e-6 * duration_s / 2 + self.wobble_s

    def draw(self, draw: np.random.Generator, duration_s: float) -> Clock:
        """Return a clock whose drift is zero in the middle of the file."""
        offset_s = float(draw.uniform(-self.offset_s, self.offset_s))
        drift = float(draw.uniform(-self.drift_ppm, self.drift_ppm)) * 1e-6
        amplitude_S = self.wobble_s * draw.uniform(0.5, 1) * draw.dirichlet(np.ones(SINUSOIDS))
        period_S, phase_S = draw.uniform(*PERIODS_S, SINUSOIDS), draw.uniform(0, 2 * np.pi, SINUSOIDS)
        wobbles = [Wobble(*map(float, sinusoid)) for sinusoid in zip(amplitude_S, period_S, phase_S, strict=True)]
        return Clock(offset_s, drift, duration_s / 2, tuple(wobbles) if self.wobble_s else ())


def warp(wave_T: npt.NDArray[np.floating], source_s_N: Seconds, rate_hz: int = RATE_HZ) -> Floats:
    """Return the wave at arbitrary times (in seconds from its first sample), band-limited; silence beyond its ends.

    Shapes: wave (T,), possibly a memory map; times and result (N,), float32.
    A windowed sinc of TAPS taps: the error is below -80 dB up to 7/8 of half the rate. If the times run a few per cent
    faster than the wave, only frequencies above that limit alias.
    """
    filters_FP = _filters()
    starts = range(0, len(source_s_N), BLOCK)
    blocks = [_interpolate(wave_T, source_s_N[i : i + BLOCK] * rate_hz, filters_FP) for i in starts]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def warp_blocks(
    wave_T: npt.NDArray[np.floating],
    source_time: Callable[[Seconds], Seconds],
    num_samples: int,
    rate_hz: int = RATE_HZ,
) -> Iterator[Floats]:
    """Yield the wave on another clock, block by block, so that memory does not grow with the length.

    `source_time` maps times of the result to times in the wave: `Clock.time1` or `TimeMap.at` brings channel 1 onto
    the clock of channel 0. Sample n of the joined blocks is at n / rate_hz.
    """
    filters_FP = _filters()
    for start in range(0, num_samples, BLOCK):
        time_N = np.arange(start, min(start + BLOCK, num_samples)) / rate_hz
        yield _interpolate(wave_T, source_time(time_N) * rate_hz, filters_FP)


def _interpolate(wave_T: npt.NDArray[np.floating], position_N: npt.NDArray[np.float64], filters_FP: Floats) -> Floats:
    """Return the wave at fractional sample positions, reading only the stretch that the positions span."""
    # Positions beyond the taps of the first and the last sample are silent: clipping them keeps the stretch short.
    position_N = np.clip(position_N, -TAPS, len(wave_T) + TAPS)
    # 1. The stretch of samples under the taps, silent beyond the ends of the wave.
    whole_N = np.floor(position_N).astype(np.int64)
    first, last = int(whole_N.min()) - TAPS // 2 + 1, int(whole_N.max()) + TAPS // 2 + 1
    stretch_T = np.zeros(last - first, np.float32)
    start, stop = max(0, first), min(len(wave_T), last)
    if stop > start:
        stretch_T[start - first : stop - first] = wave_T[start:stop]
    # 2. The filters of the two nearest phases, and a straight line between their results.
    phase_N = (position_N - whole_N) * PHASES
    lower_N = np.minimum(phase_N.astype(np.int64), PHASES - 1)
    fraction_N = (phase_N - lower_N).astype(np.float32)
    taps_NP = np.lib.stride_tricks.sliding_window_view(stretch_T, TAPS)[whole_N - whole_N.min()]
    low_N = np.einsum("np,np->n", taps_NP, filters_FP[lower_N])
    high_N = np.einsum("np,np->n", taps_NP, filters_FP[lower_N + 1])
    between_N: Floats = low_N + fraction_N * (high_N - low_N)
    return between_N


def _filters() -> Floats:
    """Return the windowed sinc (F + 1, P) of each phase from 0 to 1.

    Tap p weights sample floor(position) + p - P/2 + 1. Each filter sums to 1, so that a constant wave stays constant.
    Source: Kaiser's window; beta = 0.1102 (attenuation - 8.7), Oppenheim and Schafer, Discrete-Time Signal Processing.
    """
    beta = 0.1102 * (STOPBAND_DB - 8.7)
    distance_FP = np.arange(PHASES + 1)[:, None] / PHASES - (np.arange(TAPS) - TAPS // 2 + 1)
    inside_FP = np.sqrt(np.clip(1 - (2 * distance_FP / TAPS) ** 2, 0, None))
    filters_FP = np.sinc(distance_FP) * np.i0(beta * inside_FP)
    filters_FP /= filters_FP.sum(axis=1, keepdims=True)
    return filters_FP.astype(np.float32)
