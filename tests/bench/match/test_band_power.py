"""The power in bands against a sum over the bins of each frame, one at a time."""

from itertools import pairwise

import numpy as np
import pytest
from songs import draw_song

from bench.match.band_power import band_power, count_frames, space_edges


def band_power_slowly(wave_T: np.ndarray, edges_hz: np.ndarray) -> np.ndarray:
    window_T = np.hanning(5_921)[:-1]
    rows = []
    for start in range(0, len(wave_T) - 5_920 + 1, 185):
        spectrum = np.fft.rfft(wave_T[start : start + 5_920] * window_T, 8_192)
        bin_hz = np.arange(4_097) * 16_000 / 8_192
        rows.append(
            [sum(abs(x) ** 2 for x in spectrum[(bin_hz >= low) & (bin_hz < high)]) for low, high in pairwise(edges_hz)]
        )
    return np.array(rows)


@pytest.mark.parametrize("edges", [(300.0, 2_000.0, 33), (318.0, 2_000.0, 32)])
def test_bands_are_those_of_the_slow_way(edges: tuple[float, float, int]) -> None:
    wave_T = draw_song(1, 0.62)  # 22 frames: more than a block
    expected = band_power_slowly(wave_T, space_edges(*edges))
    assert band_power(wave_T, space_edges(*edges)) == pytest.approx(expected, rel=1e-9)


def test_edges_are_a_semitone_apart() -> None:
    edges_hz = space_edges(300, 2_000, 33)
    assert np.round(edges_hz[:3], 2).tolist() == [300, 317.75, 336.55] and edges_hz[33] == pytest.approx(2_000)
    assert np.diff(np.log2(edges_hz)) * 12 == pytest.approx(0.995, abs=0.001)


@pytest.mark.parametrize(("num_samples", "frames"), [(0, 0), (10, 0), (5_919, 0), (5_920, 1), (6_104, 1), (6_105, 2)])
def test_frames_are_whole(num_samples: int, frames: int) -> None:
    assert count_frames(num_samples) == frames == len(band_power(np.zeros(num_samples, np.int16), np.array([300, 400])))


def test_a_frame_depends_on_its_samples_alone() -> None:
    wave_T, edges_hz = draw_song(2, 1.0), space_edges(300, 2_000, 33)
    whole = band_power(wave_T, edges_hz)
    assert np.array_equal(whole[7:9], band_power(wave_T[7 * 185 : 7 * 185 + 6_105], edges_hz))
