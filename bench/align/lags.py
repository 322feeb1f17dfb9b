"""The similarity of two sequences of fingerprints at each lag, and the lags at which it is highest.

A lag of l hops pairs vector i of channel 0 with vector i + l of channel 1: positive where channel 1 is later.
Source: Bhattacharjee, BioDCASE 2025, task 1, equation 2 and section 3.3; here called the report.

Shape legend: N vectors, D dimensions, L lags from -most to most, K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.align.contract import Pair, PairEmbedder, Seconds, TimeMap, make_monotonic
from bench.score.statistics import MAD_TO_DEVIATION
from bench.values import Floats, Ints

BLOCK = 1_024  # vectors of channel 0 per matrix product
LEAST_ROOM = 0.05  # lower limit of 1 - median, so that nothing stands out where all scores are alike
MIN_PROMINENCE = 0.1  # a keypoint with less counts as disagreeing
ROUNDING_HOPS = 1e-6  # tolerance of times at the edge of a window
HOP_AND_ROUNDING = 1.01  # hops by which an agreeing lag may differ
LEAST_SCALE = 1e-6  # avoids division by zero


@dataclass(frozen=True, eq=False)
class LocalLags:
    """The best lag around each keypoint, in seconds (K,), and how far its score stands out (K,), from 0 to 1."""

    lag_K: Seconds
    prominence_K: Seconds
    hop_s: float

    def agreement(self, expected_K: Seconds | float) -> float:
        """Return a confidence: twice the share of keypoints within a hop of the expected lags, minus 1; at least 0.

        A median needs half of the keypoints to agree. A keypoint whose score does not stand out does not agree.
        """
        near_K = np.abs(self.lag_K - expected_K) <= HOP_AND_ROUNDING * self.hop_s
        agree_K = near_K & (self.prominence_K >= MIN_PROMINENCE)
        return max(0.0, 2 * float(agree_K.mean()) - 1)


def lags_of(most: int) -> Ints:
    """Return the lag, in hops, of each column of a `band` (L,)."""
    return np.arange(-most, most + 1)


def band(vectors0_ND: Floats, vectors1_ND: Floats, most: int) -> Floats:
    """Return the inner product (N, L) of each vector of channel 0 with its partner at each lag, NaN without a partner.

    Cost: 2 N D (2 most + BLOCK) operations; memory 4 N L bytes and one block: linear in the length, 15 MB for an
    hour at 100 ms and 5 s.
    """
    band_NL = np.full((len(vectors0_ND), 2 * most + 1), np.nan, dtype=np.float32)
    padded_ND = np.pad(vectors1_ND, ((most, max(0, len(vectors0_ND) - len(vectors1_ND)) + most), (0, 0)))
    for start in range(0, len(vectors0_ND), BLOCK):
        block_BD = vectors0_ND[start : start + BLOCK]
        product_BW = np.ascontiguousarray(block_BD @ padded_ND[start : start + len(block_BD) + 2 * most].T)
        # Row b of the band starts at column b of the product: a view of its diagonals.
        step = product_BW.strides
        band_NL[start : start + len(block_BD)] = np.lib.stride_tricks.as_strided(
            product_BW, (len(block_BD), 2 * most + 1), (step[0] + step[1], step[1])
        )
    partner_NL = np.arange(len(vectors0_ND))[:, None] + lags_of(most)
    band_NL[(partner_NL < 0) | (partner_NL >= len(vectors1_ND))] = np.nan
    return band_NL


def mean_scores(band_NL: Floats, least: int) -> npt.NDArray[np.float64]:
    """Return the mean similarity (L,) of vectors with a partner at each lag; -inf if fewer than `least` have one."""
    has_partner_NL = np.isfinite(band_NL)
    return _means(np.where(has_partner_NL, band_NL, 0).sum(axis=0, dtype=np.float64), has_partner_NL.sum(axis=0), least)


def window_scores(band_NL: Floats, hop_s: float, centre_K: Seconds, window_s: float) -> npt.NDArray[np.float64]:
    """Return the mean similarity (K, L) at each lag of the vectors in a window around each of these times.

    A lag needs partners for half of the vectors in the window, or for as many as any lag has, if that is fewer;
    otherwise its score is -inf.
    """
    # 1. Prefix sums over vectors, so that each window is one subtraction.
    has_partner_NL = np.isfinite(band_NL)
    zero_1L = np.zeros((1, band_NL.shape[1]))
    sums_NL = np.concatenate([zero_1L, np.where(has_partner_NL, band_NL, 0).cumsum(axis=0, dtype=np.float64)])
    counts_NL = np.concatenate([zero_1L, has_partner_NL.cumsum(axis=0)])
    # 2. The vectors that start within half a window of each time, or exactly on its edge.
    first_K = np.ceil((centre_K - window_s / 2) / hop_s - ROUNDING_HOPS).astype(np.int64).clip(0, len(band_NL))
    end_K = np.floor((centre_K + window_s / 2) / hop_s + ROUNDING_HOPS).astype(np.int64) + 1
    end_K = end_K.clip(first_K, len(band_NL))
    # 3. Means, where enough vectors have a partner.
    count_KL = counts_NL[end_K] - counts_NL[first_K]
    least_K1 = np.maximum(1, np.minimum((end_K - first_K)[:, None] / 2, count_KL.max(axis=1, keepdims=True)))
    return _means(sums_NL[end_K] - sums_NL[first_K], count_KL, least_K1)


def best_lag(score_L: npt.NDArray[np.float64]) -> Ints:
    """Return the lag, in hops, of the best score along the last axis; among equal ones the smallest lag."""
    most = score_L.shape[-1] // 2
    nearest_first = np.argsort(np.abs(lags_of(most)), kind="stable")
    lag: Ints = nearest_first[score_L[..., nearest_first].argmax(axis=-1)] - most
    return lag


def subtract_mean(vectors_ND: Floats) -> Floats:
    """Return vectors minus their mean: the more a moment differs from all others, the longer its vector."""
    if not len(vectors_ND):
        return vectors_ND
    centred_ND: Floats = vectors_ND - vectors_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    return centred_ND


def segment_starts(pair: Pair, num_vectors: int, hop_s: float, segment_s: float) -> Seconds:
    """Return the start time of the segment centred on each keypoint (K,), clipped to the times that have vectors."""
    return np.clip(pair.keypoints - segment_s / 2, 0, (num_vectors - 1) * hop_s)


def robust_z_scores(
    vectors0_ND: Floats, vectors1_ND: Floats, most: int, hop_s: float, centre_K: Seconds, window_s: float
) -> Floats:
    """Return how far each lag stands out around each moment (K, L), in deviations over the whole recording.

    The median of each row is subtracted; the deviation is estimated from the median absolute deviation of all rows.
    Lags without a score have 0.
    """
    score_KL = window_scores(band(vectors0_ND, vectors1_ND, most), hop_s, centre_K, window_s)
    is_scored_KL = np.isfinite(score_KL)
    any_scored_K = is_scored_KL.any(axis=1)  # false where the other channel has ended
    if not any_scored_K.any():
        return np.zeros(score_KL.shape, dtype=np.float32)
    centred_KL = np.where(is_scored_KL, score_KL, np.nan)
    centred_KL[any_scored_K] -= np.nanmedian(centred_KL[any_scored_K], axis=1, keepdims=True)
    scale = MAD_TO_DEVIATION * float(np.nanmedian(np.abs(centred_KL)))
    return np.where(is_scored_KL, centred_KL / max(scale, LEAST_SCALE), 0.0).astype(np.float32)


def median_prominence(score_L: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return how far the best score of the last axis stands out, from 0 to 1: (best - median) / (1 - median).

    The report gives no confidence; its scores are means of cosines, so that 1 is the highest possible score.
    """
    # Where no lag has a score, all are alike and none stands out.
    score_L = np.where(np.isfinite(score_L).any(axis=-1, keepdims=True), score_L, 0.0)
    median = np.nanmedian(np.where(np.isfinite(score_L), score_L, np.nan), axis=-1)
    prominence: npt.NDArray[np.float64] = (score_L.max(axis=-1) - median) / np.maximum(1 - median, LEAST_ROOM)
    return np.clip(prominence, 0, 1)


def local_lags(pair: Pair, embedder: PairEmbedder, hop_s: float, window_s: float) -> LocalLags:
    """Return the best lag around each keypoint; 0 with prominence 0 if a channel is shorter than a segment."""
    vectors0_ND, vectors1_ND = embedder(pair, hop_s)
    if not len(vectors0_ND) or not len(vectors1_ND):
        return LocalLags(np.zeros(len(pair.keypoints)), np.zeros(len(pair.keypoints)), hop_s)
    centre_K = np.clip(pair.keypoints, 0, (len(vectors0_ND) - 1) * hop_s)
    score_KL = window_scores(band(vectors0_ND, vectors1_ND, most_lag(pair.max_lag_s, hop_s)), hop_s, centre_K, window_s)
    return LocalLags(best_lag(score_KL) * np.float64(hop_s), median_prominence(score_KL), hop_s)


def build_constant_map(pair: Pair, lag_s: float, confidence: float) -> TimeMap:
    """Return a map with one lag throughout, clipped to the other recording as in the report."""
    time0_K = pair.keypoints
    time1_K = np.clip(time0_K + lag_s, 0.0, pair.durations_s[1])
    return TimeMap(time0_K, make_monotonic(time1_K), np.full(len(time0_K), confidence))


def most_lag(max_lag_s: float, hop_s: float) -> int:
    """Return the largest lag to search, in hops."""
    return max(1, round(max_lag_s / hop_s))


def min_overlap(vectors0_ND: Floats, vectors1_ND: Floats) -> int:
    """Return how many vectors with a partner a lag needs to count: half of the shorter sequence."""
    return max(1, min(len(vectors0_ND), len(vectors1_ND)) // 2)


def _means(
    sums: npt.NDArray[np.float64], counts: npt.NDArray[np.floating], least: float | Ints
) -> npt.NDArray[np.float64]:
    enough = (counts >= least) & (counts > 0)
    return np.where(enough, sums / np.maximum(counts, 1), -np.inf)
