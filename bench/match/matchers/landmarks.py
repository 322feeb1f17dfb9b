"""Landmarks: pairs of spectral peaks as hashes, found again by how many of them agree on one offset.

The recipe is audfprint's (Ellis), the open program that papers compare with as a system "of the Shazam type"; it is not
Shazam's, whose densities and sizes Wang (2003) does not give. What a landmark is equals the program, landmark for
landmark. The search is ours: a table without its limits (100 entries per hash, 380 s, 100 tracks looked at), the true
time of shifted queries, and a ranking instead of a minimum count. The preset `dense` is ours, too.

Cost, measured in docs/systems/landmarks.md: time grows with the hits of a query, about evenly with the database.

Shape legend: B queries, T samples, W frames, F bins, P peaks, L landmarks, H hits, R rows of tracks, N entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.errors import StoreError
from bench.kernels.landmarks import pair_peaks, pick_peaks
from bench.match.alignments import Alignments, find_alignments, rows_of
from bench.match.answers import Answer, answer_each
from bench.match.inverted_table import InvertedTable, build_table, load_array, load_table
from bench.settings import require
from bench.values import INT16_SCALE, RATE_HZ, Floats, Found, Ints

CITE = "Wang, An industrial-strength audio search algorithm, ISMIR 2003; recipe of audfprint, Ellis, 2014"
LICENSE = "MIT"
SOURCE = "https://github.com/dpwe/audfprint, and audfprint2 0.1.2 on PyPI"
LIBRARY = "soxr"
QUERY_SETTINGS = ("shifts", "window", "min_count")

OWN_RATE_HZ = 11_025
WINDOW, HOP = 512, 256  # samples at the own rate: a frame every 23.22 ms
BINS = 256  # the uppermost, at half the rate, is dropped, so that a bin takes 8 bits
FLOOR = 1e-6  # of the largest magnitude of the whole input
POLE = 0.98  # of the high-pass filter through time
HASH_BITS, FREQUENCY_SHIFT, DIFFERENCE_SHIFT, SIX_BITS = 20, 12, 6, 63
FRAMES_APART = (2, 62)  # between the peaks of a pair
MOST_BINS_APART = 30
BLOCK_FRAMES = 1_024  # transformed at once: 4 MB
# The files with the first frame and the number of landmarks of every track, beside those of the table.
FIRST_FRAMES, SIZES = "first_frames.npy", "sizes.npy"


@dataclass(frozen=True)
class Config:
    """Settings of the landmarks and of their search; the defaults are audfprint's."""

    density: float = 20.0
    """Peaks are hidden by others for a shorter time if it is higher; aims at this many landmarks per second."""

    peaks_per_frame: int = 5
    """Most peaks of one frame of 23 ms, at least 1."""

    spread_bins: float = 30.0
    """Standard deviation in bins of 21.5 Hz within which a peak hides lower ones, above 0."""

    fan_out: int = 3
    """Most pairs of each peak with later ones, at least 1."""

    shifts: int = 4
    """A query is analysed from this many starts within its first frame, as it need not begin on a frame; 1 to 256."""

    window: int = 1
    """Frames by which offsets of one alignment may differ from their mode, at least 0."""

    min_count: int = 0
    """An answer with fewer landmarks than this is none. The suite sets its threshold by impostors, hence 0."""

    def __post_init__(self) -> None:
        highest = 1 / (0.01 * np.sqrt(HOP / 352.8) / 35)  # a threshold must be positive in the next frame
        require(0 < self.density < highest, f"model.density must be above 0 and below {highest:.0f}", self.density)
        require(1 <= self.peaks_per_frame <= BINS, f"model.peaks_per_frame must be 1 to {BINS}", self.peaks_per_frame)
        require(self.spread_bins > 0, "model.spread_bins must be > 0; the default is 30", self.spread_bins)
        require(self.fan_out >= 1, "model.fan_out must be >= 1; the default is 3", self.fan_out)
        require(1 <= self.shifts <= HOP, f"model.shifts must be 1 to {HOP}; the default is 4", self.shifts)
        require(self.window >= 0, "model.window must be >= 0; the default is 1", self.window)
        require(self.min_count >= 0, "model.min_count must be >= 0; the default is 0", self.min_count)

    @property
    def decay(self) -> float:
        """Return what thresholds are multiplied by from frame to frame."""
        return float(1 - 0.01 * (self.density * np.sqrt(HOP / 352.8) / 35))


def presets() -> dict[str, Config]:
    """Return the settings of audfprint, which are the defaults, and settings of ours with eight times the landmarks."""
    return {"audfprint": Config(), "dense": Config(density=70.0, fan_out=8)}


def build(config: Config, tracks: Iterable[npt.NDArray[np.int16]], folder: Path) -> None:
    """Write the table of the landmarks of all tracks.

    Each track is analysed as a whole, since its floor and its mean are those of all of it. Memory: 90 KB per second of
    the longest track, and 24 bytes per landmark.
    """
    first_frame, hashes, frames = [0], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for samples_T in tracks:
        wave_T = _resample(samples_T.astype(np.float32) * np.float32(INT16_SCALE))
        frame_L, hash_L = find_landmarks(config, wave_T)
        frames.append(first_frame[-1] + frame_L)
        hashes.append(hash_L)
        first_frame.append(first_frame[-1] + _num_frames(len(wave_T)))
    build_table(np.concatenate(hashes).astype(np.uint32), np.concatenate(frames)).save(folder)
    np.save(folder / FIRST_FRAMES, np.array(first_frame, dtype=np.int64))
    np.save(folder / SIZES, np.array([len(hash_L) for hash_L in hashes[1:]], dtype=np.int64))


def load(config: Config, folder: Path) -> Landmarks:
    """Return the matcher of the table in a folder. Raises: StoreError if a file is missing or damaged."""
    table, path = load_table(folder), folder / FIRST_FRAMES
    first_frame_R = load_array(path)
    size_R = load_array(folder / SIZES)
    is_whole = first_frame_R.shape == (len(size_R) + 1,) and bool((np.diff(first_frame_R) >= 0).all())
    is_whole = is_whole and int(size_R.sum()) == len(table.position_N)
    if not is_whole or (len(table.position_N) and int(table.position_N.max()) >= first_frame_R[-1]):
        raise StoreError(f"{path} is damaged (it is not of this table); delete the folder {folder} and run again")
    return Landmarks(config, table, np.array(first_frame_R), np.array(size_R))


@dataclass(frozen=True, eq=False)
class Landmarks:
    """The table of all landmarks, and the first frame and the number of landmarks of every track."""

    config: Config
    table: InvertedTable
    first_frame_R: Ints
    size_R: Ints

    shortest_s = 2 * HOP / OWN_RATE_HZ  # three frames: the peaks of a pair are two apart
    fixed_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Return the size of the table and of the tracks' first frames."""
        return self.table.num_bytes + self.first_frame_R.nbytes + self.size_R.nbytes

    def find(self, wave_BT: Floats, num_answers: int, without_B: Ints | None = None) -> Found:
        """Return the best answers, scored by the number of distinct landmarks that agree within the window.

        As in the original, of equal counts the track with more hits for its size comes first: the score has a fraction.
        """
        return answer_each(self._find, wave_BT, num_answers, without_B)

    def _find(self, wave_T: Floats, num_answers: int, without: int) -> Answer:
        found = self._align(wave_T, num_answers, without)
        count = int(np.count_nonzero(found.count_A >= self.config.min_count))
        start_A = np.round(found.offset_A * (RATE_HZ / OWN_RATE_HZ)).astype(np.int64)
        return found.row_A[:count], start_A[:count], found.score_A[:count]

    def _align(self, wave_T: Floats, num_answers: int, without: int) -> Alignments:
        """Return the alignments of one query with all tracks but one, offsets in samples at the own rate."""
        time_L, hash_L = find_shifted_landmarks(self.config, _resample(wave_T))
        # As in the original, what several starts show in the same frame is one landmark: its hits give the offset, but
        # it counts once. Measured, that finds a little more than to count each start's (docs/systems/landmarks.md).
        print_L = np.unique(time_L // HOP << HASH_BITS | hash_L, return_inverse=True)[1]
        landmark_H, frame_H = self.table.look_up(hash_L)
        row_H, own_frame_H = rows_of(frame_H, self.first_frame_R)
        offset_H, window = own_frame_H * HOP - time_L[landmark_H], self.config.window * HOP
        # Where the query would begin before the track, there is no start to answer with.
        is_wanted_H = (row_H != without) & (offset_H >= -window)
        kept = print_L[landmark_H[is_wanted_H]], row_H[is_wanted_H], offset_H[is_wanted_H]
        hits_R = np.bincount(row_H, minlength=len(self.size_R)) / np.maximum(self.size_R, 1)
        return find_alignments(*kept, window, num_answers, hits_R / (1 + hits_R))


def find_shifted_landmarks(config: Config, wave_T: Floats) -> tuple[Ints, npt.NDArray[np.uint32]]:
    """Return the times in samples at the own rate and the hashes of a query's landmarks, both (L,), each pair once.

    The original leaves the shift out of the time, so that its answers are late by the mean shift, 8.7 ms.
    """
    entries = [np.empty(0, np.int64)]
    for number in range(config.shifts):
        shift = number * HOP // config.shifts
        frame_L, hash_L = find_landmarks(config, wave_T[shift:])
        entries.append((frame_L * HOP + shift) << HASH_BITS | hash_L)
    entry_L = np.unique(np.concatenate(entries))
    return entry_L >> HASH_BITS, (entry_L & (2**HASH_BITS - 1)).astype(np.uint32)


def find_landmarks(config: Config, wave_T: npt.NDArray[Any]) -> tuple[Ints, Ints]:
    """Return the frames and the hashes of the landmarks of a wave at the own rate, both (L,), by frame.

    A hash has 20 bits: 8 of the earlier peak's bin, 6 of the difference of the bins, 6 of that of the frames.
    """
    level_WF = compute_levels(wave_T)
    frame_P, bin_P = pick_peaks(level_WF, config.decay, config.spread_bins, config.peaks_per_frame)
    earlier_L, later_L = pair_peaks(frame_P, bin_P, config.fan_out, FRAMES_APART, MOST_BINS_APART)
    first_L, apart_L = bin_P[earlier_L], frame_P[later_L] - frame_P[earlier_L]
    return frame_P[earlier_L], pack_hashes(first_L, bin_P[later_L], apart_L)


def pack_hashes(first_L: Ints, second_L: Ints, apart_L: Ints) -> Ints:
    """Return the hashes of pairs: the bins of the earlier and the later peak, and how many frames they are apart."""
    difference_L = second_L - first_L & SIX_BITS
    return first_L << FREQUENCY_SHIFT | difference_L << DIFFERENCE_SHIFT | apart_L & SIX_BITS


def compute_levels(wave_T: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return how far each bin's log magnitude has risen, shape (W, F): high-passed through time, from zero.

    Silence gives zeros. The first frame is a log spectrum, as nothing came before it.
    """
    from scipy.fft import rfft
    from scipy.signal import lfilter

    num_frames = _num_frames(len(wave_T))
    magnitude_WF = np.empty((num_frames, BINS + 1))
    if not num_frames:
        return magnitude_WF[:, :BINS]
    padded_T = np.pad(wave_T.astype(np.float64), WINDOW // 2, mode="reflect")
    windows_WT = np.lib.stride_tricks.sliding_window_view(padded_T, WINDOW)[::HOP]
    taper_T = np.hanning(WINDOW + 2)[1:-1]
    for first in range(0, num_frames, BLOCK_FRAMES):
        frames = slice(first, first + BLOCK_FRAMES)
        magnitude_WF[frames] = np.abs(rfft(windows_WT[frames] * taper_T))
    largest = magnitude_WF.max()
    if largest > 0:
        np.log(np.maximum(magnitude_WF, largest * FLOOR, out=magnitude_WF), out=magnitude_WF)
        magnitude_WF -= magnitude_WF.mean()
    level_WF: npt.NDArray[np.float64] = lfilter([1, -1], [1, -POLE], magnitude_WF[:, :BINS], axis=0)
    return np.ascontiguousarray(level_WF)


def _num_frames(num_samples: int) -> int:
    """Return how many frames a wave at the own rate has: centred on every hop, the ends mirrored."""
    return 1 + num_samples // HOP if num_samples else 0


def _resample(wave_T: Floats) -> Floats:
    """Return a wave at the own rate: 441 samples for 640."""
    import soxr

    resampled_T: Floats = soxr.resample(wave_T, RATE_HZ, OWN_RATE_HZ, quality="HQ")
    return resampled_T
