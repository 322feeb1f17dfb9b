"""The loops of Waveprint against sorting, and against NumPy's minimum."""

import numpy as np
import pytest

from bench.kernels.min_hash import find_least_ranks, find_meetings, find_signs


def sort_signs(wavelet_W: np.ndarray, num_largest: int) -> set[int]:
    order = sorted(range(len(wavelet_W)), key=lambda w: (-abs(wavelet_W[w]), w))[:num_largest]
    return {2 * w + int(wavelet_W[w] < 0) if wavelet_W[w] else 2 * len(wavelet_W) for w in order}


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_signs_are_those_of_sorting(scale: float) -> None:
    wavelet_QW = np.random.default_rng(1).normal(0, scale, (5, 300)).astype(np.float32)
    wavelet_QW[1] = np.round(wavelet_QW[1] / np.float32(scale)) * np.float32(scale)  # many are equal, many are 0
    wavelet_QW[2, 10:] = 0
    wavelet_QW[3] = -np.float32(scale)
    for wavelet_W, bits_K in zip(wavelet_QW, find_signs(wavelet_QW, 40), strict=True):
        assert set(bits_K.tolist()) == sort_signs(wavelet_W, 40)


def test_least_ranks_are_those_of_numpy() -> None:
    draw = np.random.default_rng(2)
    bits_QK, rank_BP = draw.integers(0, 50, (7, 20)), draw.integers(0, 256, (50, 30)).astype(np.uint8)
    assert np.array_equal(find_least_ranks(bits_QK, rank_BP), rank_BP[bits_QK].min(axis=1))


@pytest.mark.parametrize("least", [1, 2, 4])
def test_pairs_that_meet_are_those_of_counting(least: int) -> None:
    draw = np.random.default_rng(3)
    picture_H, position_H = np.sort(draw.integers(0, 5, 300)), draw.integers(0, 20, 300)
    pairs, times = np.unique(np.stack([picture_H, position_H]), axis=1, return_counts=True)
    picture_M, position_M = find_meetings(picture_H, position_H, 20, least)
    found = list(zip(picture_M.tolist(), position_M.tolist(), strict=True))
    assert sorted(found) == sorted(map(tuple, pairs[:, times >= least].T.tolist())) and len(found) == len(set(found))


def test_no_hit_is_no_meeting() -> None:
    nothing = np.empty(0, np.int64)
    assert [len(part) for part in find_meetings(nothing, nothing, 4, 1)] == [0, 0]
