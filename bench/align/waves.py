"""Where two recordings share sound, found from their waves alone, at any lag.

A window of channel 0 is correlated with channel 1. Both are levelled (divided by their local loudness), so that one
loud moment does not outweigh the rest, and whitened by the mean spectrum of their recording, so that hum and hiss say
little. A window that both recordings hold then has a peak of a few samples' width, tens of deviations high; noise and
unrelated sound stay below about nine.

Shape legend: W windows, P peaks of a window, C candidate lags, T samples, F bins, L lags.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from scipy.ndimage import uniform_filter1d

from bench.align.baseline_grid import windows
from bench.align.contract import Seconds
from bench.score.statistics import MAD_TO_DEVIATION
from bench.values import RATE_HZ, Floats, Ints, Progress

WINDOW_S = 4.0
WINDOW = round(WINDOW_S * RATE_HZ)
FRAME = 4_096  # samples of a frame of the mean spectrum
FRAMES = 400  # of the mean spectrum, spread over a recording
BAND_HZ = (150.0, 7_600.0)  # wind lies below, the transition band of resamplers above
LEVEL_S = 0.25  # over which loudness is measured
LEAST_LEVEL = 1e-3  # of the mean power: a pause is not made as loud as speech
EMPTY_DENSITY = 1e-8  # of the largest power density: below it a resampler or a decoder removed what was there
LEAST_DENSITY = 1e-4  # of the median power density of the rest: what was removed is not brought back
FADE_T = np.sin(np.linspace(0, np.pi / 2, RATE_HZ // 50, dtype=np.float32)) ** 2  # 20 ms
TINY = 1e-30
BLOCK = 1 << 20  # samples of channel 1 that are correlated at a time, so that memory does not grow with the length
PEAKS = 4  # kept of each window
FINE = RATE_HZ // 500  # samples by which a lag at the end of a segment may be off
LIKELY = 0.1  # of the range of what is explained: moments of a jump within that are likely too
APART = RATE_HZ // 500  # samples between two peaks: 2 ms


@dataclass(frozen=True, eq=False)
class WindowPeaks:
    """The highest peaks of the correlation of each window, highest first."""

    time0_W: Seconds
    """Centres of the windows, in s of channel 0."""

    lag_WP: Seconds
    """Lags in s."""

    height_WP: npt.NDArray[np.float64]
    """Heights in deviations of the window's correlation, negative where the polarity is reversed; 0 for no peak."""


@dataclass(frozen=True, eq=False)
class Whitened:
    """A recording that is read levelled, with the weights (F,) that whiten its spectrum at FRAME samples."""

    wave_T: Floats
    weight_F: npt.NDArray[np.float64]

    def spectrum(self, start: int, num_samples: int, fft_samples: int) -> npt.NDArray[np.complex64]:
        """Return the whitened spectrum of a stretch, zero-padded to `fft_samples`; silence beyond the recording."""
        stretch_T = _level(windows(self.wave_T, np.array([start]), num_samples)[0])
        # A hard cut would spread over all frequencies, and be most of those that a resampler removed.
        ramp_T = FADE_T[: num_samples // 2]
        stretch_T[: len(ramp_T)] *= ramp_T
        stretch_T[num_samples - len(ramp_T) :] *= ramp_T[::-1]
        hz_F = rfftfreq(fft_samples, 1 / RATE_HZ)
        weight_F = np.interp(hz_F, rfftfreq(FRAME, 1 / RATE_HZ), self.weight_F)
        weight_F[(hz_F < BAND_HZ[0]) | (hz_F > BAND_HZ[1])] = 0
        whitened_F: npt.NDArray[np.complex64] = rfft(stretch_T, fft_samples) * weight_F.astype(np.float32)
        return whitened_F


def whiten(wave_T: Floats) -> Whitened:
    """Return a recording with the whitening weights of its mean spectrum."""
    starts = np.unique(np.linspace(0, max(0, len(wave_T) - FRAME), FRAMES).astype(np.int64))
    power_F = np.zeros(FRAME // 2 + 1)
    for start in starts:
        frame_T = windows(wave_T, np.array([start]), FRAME)[0]
        frame_T = (frame_T - frame_T.mean()) * np.hanning(FRAME).astype(np.float32)
        power_F += np.square(np.abs(rfft(frame_T))) / max(float(np.square(frame_T).sum()), TINY)
    hz_F = rfftfreq(FRAME, 1 / RATE_HZ)
    inside_F = (hz_F > BAND_HZ[0]) & (hz_F < BAND_HZ[1])
    occupied_F = inside_F & (power_F >= EMPTY_DENSITY * power_F[inside_F].max())
    floor = max(LEAST_DENSITY * float(np.median(power_F[occupied_F])), TINY)
    return Whitened(wave_T, 1 / np.sqrt(np.maximum(power_F, floor)))


def search_everywhere(one: Whitened, other: Whitened, centre_W: Ints, progress: Progress) -> WindowPeaks:
    """Return the peaks of windows of one recording at every lag at which they lie inside the other.

    Cost: time of an FFT of the other recording for each window; memory one block of it.
    """
    fft_samples = next_fast_len(min(BLOCK, len(other.wave_T)) + 2 * WINDOW, real=True)
    step = fft_samples - WINDOW
    spectra = [one.spectrum(int(centre) - WINDOW // 2, WINDOW, fft_samples).conj() for centre in centre_W]
    found: list[list[tuple[int, float]]] = [[] for _ in spectra]
    scales: list[list[float]] = [[] for _ in spectra]
    starts = range(-WINDOW // 2, len(other.wave_T), step)
    for done, start in enumerate(starts):
        progress("searching all lags", done, len(starts))
        block_F = other.spectrum(start, fft_samples, fft_samples)
        used = min(step, len(other.wave_T) - start)
        for w, spectrum_F in enumerate(spectra):
            correlation_L = irfft(spectrum_F * block_F, fft_samples)[:used]
            lag = start - (int(centre_W[w]) - WINDOW // 2)
            found[w] += [(lag + i, float(correlation_L[i])) for i in _top_peaks(correlation_L)]
            scales[w].append(MAD_TO_DEVIATION * float(np.median(np.abs(correlation_L))))
    progress("searching all lags", len(starts), len(starts))
    return _to_peaks(centre_W, found, [float(np.median(scale)) for scale in scales])


def search_near(
    one: Whitened, other: Whitened, centre_W: Ints, lags: Sequence[Sequence[int]], reach: int, progress: Progress
) -> WindowPeaks:
    """Return the peaks of windows within `reach` samples of each one's candidate lags, in samples."""
    fft_samples = next_fast_len(WINDOW + 2 * reach + 1, real=True)
    found: list[list[tuple[int, float]]] = []
    for done, (centre, candidates) in enumerate(zip(centre_W.tolist(), lags, strict=True)):
        progress("correlating", done, len(centre_W))
        start = centre - WINDOW // 2
        spectrum_F = one.spectrum(start, WINDOW, fft_samples).conj()
        peaks: list[tuple[int, float]] = []
        for lag in candidates:
            near_F = other.spectrum(start + lag - reach, WINDOW + 2 * reach, fft_samples)
            correlation_L = irfft(spectrum_F * near_F, fft_samples)[: 2 * reach + 1]
            scale = max(MAD_TO_DEVIATION * float(np.median(np.abs(correlation_L))), TINY)
            peaks += [(lag - reach + i, float(correlation_L[i]) / scale) for i in _top_peaks(correlation_L)]
        found.append(peaks)
    progress("correlating", len(centre_W), len(centre_W))
    return _to_peaks(centre_W, found, [1.0] * len(found))


def spread_windows(num_samples: int, spacing_s: float) -> Ints:
    """Return the centres, in samples, of windows over a whole recording; one of a recording shorter than a window."""
    if num_samples <= WINDOW:
        return np.array([num_samples // 2])
    count = max(2, round((num_samples - WINDOW) / (spacing_s * RATE_HZ)) + 1)
    return np.linspace(WINDOW // 2, num_samples - WINDOW // 2, count).astype(np.int64)


@dataclass(frozen=True)
class JumpTime:
    """When the lag jumps, in s of channel 0: the likeliest moment, and the earliest and latest likely ones."""

    time0_s: float
    earliest_s: float
    latest_s: float


def find_jump(one: Whitened, other: Whitened, first_s: float, last_s: float, lag0_s: float, lag1_s: float) -> JumpTime:
    """Return the last moment of channel 0 with the first of two lags.

    Looked for between two times, at each of which one of the lags is known to hold. Where channel 1 lost samples, the
    moments that it lost follow and have no partner.
    """
    start, count = round(first_s * RATE_HZ), max(1, round((last_s - first_s) * RATE_HZ))
    lost = max(0, round((lag0_s - lag1_s) * RATE_HZ))
    fft_samples = next_fast_len(count, real=True)
    wave_F = one.spectrum(start, count, fft_samples)
    before_T, after_T = (
        _sum_agreement(wave_F, other, start + round(lag_s * RATE_HZ), count, fft_samples) for lag_s in (lag0_s, lag1_s)
    )
    # What both lags explain together, if the first holds up to each moment and the second from then on.
    explained_T = before_T - after_T[np.minimum(np.arange(count + 1) + lost, count)]
    likely = np.flatnonzero(explained_T >= explained_T.max() - LIKELY * np.ptp(explained_T))
    best, *edges = ((start + int(i)) / RATE_HZ for i in (explained_T.argmax(), likely[0], likely[-1]))
    return JumpTime(best, *edges)


def _sum_agreement(
    wave_F: npt.NDArray[np.complex64], other: Whitened, start: int, count: int, fft_samples: int
) -> npt.NDArray[np.float64]:
    """Return the running sum (T + 1,) of the product of a stretch and its partner, best aligned within FINE samples."""
    partner_F = other.spectrum(start, count, fft_samples)
    correlation_L = np.roll(irfft(wave_F.conj() * partner_F, fft_samples), FINE)[: 2 * FINE + 1]
    best = int(np.abs(correlation_L).argmax())
    partner_T = np.roll(irfft(partner_F, fft_samples), FINE - best)[:count]
    product_T = np.sign(correlation_L[best]) * irfft(wave_F, fft_samples)[:count] * partner_T
    return np.concatenate([[0.0], np.cumsum(product_T, dtype=np.float64)])


def _level(wave_T: Floats) -> Floats:
    power_T = uniform_filter1d(np.square(wave_T), round(LEVEL_S * RATE_HZ), mode="nearest")
    floor = max(LEAST_LEVEL * float(power_T.mean()), TINY)
    levelled_T: Floats = wave_T / np.sqrt(np.maximum(power_T, floor))
    return levelled_T


def _top_peaks(correlation_L: Floats) -> Iterator[int]:
    """Yield the positions of the highest peaks of either sign, at least APART samples from each other."""
    height_L = np.abs(correlation_L)
    pieces = np.pad(height_L, (0, -len(height_L) % APART)).reshape(-1, APART)
    highest = pieces.max(axis=1)
    beside = np.pad(highest, 1)
    is_peak = (highest >= beside[:-2]) & (highest > beside[2:])
    candidates = np.flatnonzero(is_peak)
    for piece in candidates[np.argsort(highest[candidates])[::-1][:PEAKS]]:
        yield int(piece * APART + pieces[piece].argmax())


def _to_peaks(centre_W: Ints, found: Sequence[Sequence[tuple[int, float]]], scale_W: Sequence[float]) -> WindowPeaks:
    lag_WP, height_WP = np.zeros((len(centre_W), PEAKS)), np.zeros((len(centre_W), PEAKS))
    for w, peaks in enumerate(found):
        best = sorted(peaks, key=lambda peak: -abs(peak[1]))[:PEAKS]
        for p, (lag, height) in enumerate(best):
            lag_WP[w, p], height_WP[w, p] = lag / RATE_HZ, height / max(scale_W[w], TINY)
    return WindowPeaks(centre_W / RATE_HZ, lag_WP, height_WP)
