"""Peaks and pairs, against loops that do what the definition says."""

from __future__ import annotations

import numpy as np
import pytest

from bench.kernels.landmarks import pair_peaks, pick_peaks

DECAY, SPREAD = 0.995, 30.0


def gaussian(peak: int, bins: int, spread: float) -> np.ndarray:
    return np.exp(-0.5 * ((np.arange(bins) - peak) / spread) ** 2)


def maxima(level: np.ndarray) -> list[int]:
    padded = [-np.inf, *level, -np.inf]
    return [f for f in range(len(level)) if padded[f] <= padded[f + 1] > padded[f + 2]]


def spread_maxima(level: np.ndarray, spread: float) -> np.ndarray:
    bumps = [level[f] * gaussian(f, len(level), spread) for f in maxima(level)]
    return np.max([np.zeros(len(level)), *bumps], axis=0)


def pick_slowly(level: np.ndarray, decay: float, spread: float, most: int) -> list[tuple[int, int]]:
    frames, bins = level.shape
    threshold = spread_maxima(level[:10].max(axis=0), spread)
    peaks: list[list[int]] = []
    for w in range(frames):
        above = [f for f in maxima(level[w]) if level[w, f] > threshold[f]]
        chosen = sorted(above, key=lambda f: (level[w, f], f), reverse=True)[:most]
        for f in chosen:
            threshold = np.maximum(threshold, level[w, f] * gaussian(f, bins, spread))
        threshold *= decay
        peaks.append(chosen)
    threshold = spread_maxima(level[-1], spread)
    for w in reversed(range(frames)):
        for f in list(peaks[w]):
            if level[w, f] >= threshold[f]:
                threshold = np.maximum(threshold, level[w, f] * gaussian(f, bins, spread))
                if w + 1 < frames and f in peaks[w + 1]:
                    peaks[w + 1].remove(f)
            else:
                peaks[w].remove(f)
        threshold *= decay
    return [(w, f) for w in range(frames) for f in sorted(peaks[w])]


@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 40), (2, 256), (9, 30), (10, 30), (11, 30), (200, 256), (60, 1)])
@pytest.mark.parametrize("is_coarse", [False, True])
def test_peaks_are_those_of_the_definition(shape: tuple[int, int], most: int, is_coarse: bool) -> None:
    level = np.random.default_rng(most).standard_normal(shape) * np.linspace(3, 1, shape[0])[:, None]
    if is_coarse:  # many equal values
        level = level.round()
    frame, place = pick_peaks(level, DECAY, 3.0, most)
    wanted = pick_slowly(level, DECAY, 3.0, most)
    assert list(zip(frame.tolist(), place.tolist(), strict=True)) == wanted
    assert frame.dtype == place.dtype == np.int64


def test_a_peak_hides_lower_ones_near_and_after_it_until_the_threshold_has_decayed() -> None:
    level = np.zeros((40, 9))
    level[12, 4] = 1.0
    level[13, 4] = 0.75  # below 0.8 of the peak before it
    level[20, 4] = 0.3  # above 0.8 ** 8 = 0.17
    level[21, 5] = 0.2  # below 0.3 x 0.8 x exp(-0.5 / 9) = 0.227
    frame, place = pick_peaks(level, 0.8, 3.0, 5)
    assert (frame.tolist(), place.tolist()) == ([12, 20], [4, 4])


def test_a_peak_is_removed_when_a_higher_one_follows() -> None:
    level = np.zeros((30, 9))
    level[12, 4], level[13, 4], level[25, 2] = 0.7, 1.0, 0.5
    frame, place = pick_peaks(level, 0.8, 3.0, 5)
    assert (frame.tolist(), place.tolist()) == ([13, 25], [4, 2])


def test_silence_and_no_frame_at_all_have_no_peak() -> None:
    assert len(pick_peaks(np.zeros((50, 256)), DECAY, SPREAD, 5)[0]) == 0
    assert len(pick_peaks(np.zeros((0, 256)), DECAY, SPREAD, 5)[0]) == 0


def pair_slowly(peaks: list[tuple[int, int]], fan_out: int) -> list[tuple[int, int]]:
    pairs = []
    for i, (t1, f1) in enumerate(peaks):
        later = [j for j, (t2, f2) in enumerate(peaks) if 2 <= t2 - t1 <= 62 and abs(f2 - f1) <= 30]
        pairs += [(i, j) for j in later[:fan_out]]
    return pairs


@pytest.mark.parametrize("fan_out", [1, 3, 10])
@pytest.mark.parametrize("count", [0, 1, 2, 400])
def test_pairs_are_those_of_the_definition(count: int, fan_out: int) -> None:
    draw = np.random.default_rng(count)
    drawn = np.c_[draw.integers(0, 500, count), draw.integers(0, 99, count)]
    peaks = sorted({(t, f) for t, f in drawn.tolist()})
    frame, place = np.array(peaks, dtype=np.int64).reshape(-1, 2).T
    earlier, later = pair_peaks(frame.copy(), place.copy(), fan_out, (2, 62), 30)
    assert list(zip(earlier.tolist(), later.tolist(), strict=True)) == pair_slowly(peaks, fan_out)


def test_pairs_reach_from_two_frames_to_sixty_two_and_thirty_bins() -> None:
    frame = np.array([0, 1, 2, 2, 62, 63])
    place = np.array([50, 50, 80, 81, 20, 50])
    earlier, later = pair_peaks(frame, place, 3, (2, 62), 30)
    assert [(int(i), int(j)) for i, j in zip(earlier, later, strict=True) if i == 0] == [(0, 2), (0, 4)]
