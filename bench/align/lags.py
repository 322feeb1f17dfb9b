"""How alike two sequences of fingerprints are at each lag: the report's scores.

A lag of l hops pairs vector i of channel 0 with vector i + l of channel 1: positive where channel 1 is later.
Source: Bhattacharjee, BioDCASE 2025, task 1, equation 2 and section 3.3.

Shape legend: N vectors, D dimensions, L lags from -most to most, K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.align.contract import Pair, PairEmbedder, Seconds, TimeMap, make_monotonic
from bench.values import Floats, Ints

BLOCK = 1_024  # vectors of channel 0 multiplied at once
LEAST_ROOM = 0.05  # between the middle of scores and 1: where all are alike, nothing stands out
MIN_PROMINENCE = 0.1  # how far a score has to stand out to have a say in the confidence


@dataclass(frozen=True, eq=False)
class LocalLags:
    """The best lag around each keypoint, in seconds (K,), and how far its score stands out (K,)."""

    lag_K: Seconds
    prominence_K: Seconds
    hop_s: float

    def agreement(self, wanted_K: Seconds | float) -> float:
        """Return a confidence: twice the share of keypoints that say these lags, within a hop, less 1; at least 0.

        A median needs half of the keypoints. One whose score does not stand out says nothing.
        """
        agree_K = (np.abs(self.lag_K - wanted_K) <= 1.01 * self.hop_s) & (self.prominence_K >= MIN_PROMINENCE)
        return max(0.0, 2 * float(agree_K.mean()) - 1)


def lags_of(most: int) -> Ints:
    """Return the lags (L,) that a band has columns for."""
    return np.arange(-most, most + 1)


def band(vectors0_ND: Floats, vectors1_ND: Floats, most: int) -> Floats:
    """Return the inner products (N, L) of each vector of channel 0 with those of channel 1 around it, NaN beyond.

    Cost: 2 N D (2 most + BLOCK) operations; memory 4 N L bytes and one block: linear in the length, 15 MB for an
    hour at 100 ms and 5 s.
    """
    found_NL = np.full((len(vectors0_ND), 2 * most + 1), np.nan, dtype=np.float32)
    padded_ND = np.pad(vectors1_ND, ((most, max(0, len(vectors0_ND) - len(vectors1_ND)) + most), (0, 0)))
    for start in range(0, len(vectors0_ND), BLOCK):
        some_BD = vectors0_ND[start : start + BLOCK]
        product_BW = np.ascontiguousarray(some_BD @ padded_ND[start : start + len(some_BD) + 2 * most].T)
        step = product_BW.strides
        found_NL[start : start + len(some_BD)] = np.lib.stride_tricks.as_strided(
            product_BW, (len(some_BD), 2 * most + 1), (step[0] + step[1], step[1])
        )
    place_NL = np.arange(len(vectors0_ND))[:, None] + lags_of(most)
    found_NL[(place_NL < 0) | (place_NL >= len(vectors1_ND))] = np.nan
    return found_NL


def mean_scores(band_NL: Floats, least: int) -> npt.NDArray[np.float64]:
    """Return the mean similarity (L,) at each lag over vectors that have a partner; -inf where fewer than `least`."""
    there_NL = np.isfinite(band_NL)
    return _means(np.where(there_NL, band_NL, 0).sum(axis=0, dtype=np.float64), there_NL.sum(axis=0), least)


def window_scores(band_NL: Floats, hop_s: float, at_K: Seconds, window_s: float) -> npt.NDArray[np.float64]:
    """Return the same score (K, L) for each keypoint, of the vectors whose time is at most half a window from it.

    A score of fewer vectors than half of those in the window is -inf, unless there are no more at any lag.
    """
    there_NL = np.isfinite(band_NL)
    zero_1L = np.zeros((1, band_NL.shape[1]))
    sums_NL = np.concatenate([zero_1L, np.where(there_NL, band_NL, 0).cumsum(axis=0, dtype=np.float64)])
    counts_NL = np.concatenate([zero_1L, there_NL.cumsum(axis=0)])
    # A time that is half a window away, but for rounding, is inside.
    first_K = np.clip(np.ceil((at_K - window_s / 2) / hop_s - 1e-6).astype(np.int64), 0, len(band_NL))
    last_K = np.clip(np.floor((at_K + window_s / 2) / hop_s + 1e-6).astype(np.int64) + 1, first_K, len(band_NL))
    count_KL = counts_NL[last_K] - counts_NL[first_K]
    least_K1 = np.maximum(1, np.minimum((last_K - first_K)[:, None] / 2, count_KL.max(axis=1, keepdims=True)))
    return _means(sums_NL[last_K] - sums_NL[first_K], count_KL, least_K1)


def best_lag(score_L: npt.NDArray[np.float64]) -> Ints:
    """Return the lag, in hops, of the best score along the last axis; of equal ones that nearest to none."""
    most = score_L.shape[-1] // 2
    nearest_first = np.argsort(np.abs(lags_of(most)), kind="stable")
    found: Ints = nearest_first[score_L[..., nearest_first].argmax(axis=-1)] - most
    return found


def subtract_mean(vectors_ND: Floats) -> Floats:
    """Return vectors less their mean: the more a moment differs from all others, the longer."""
    if not len(vectors_ND):
        return vectors_ND
    off_ND: Floats = vectors_ND - vectors_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    return off_ND


def segment_starts(pair: Pair, num_vectors: int, hop_s: float, segment_s: float) -> Seconds:
    """Return for each keypoint the time of the vector that tells of it, (K,): a vector is of its segment's middle."""
    return np.clip(pair.keypoints - segment_s / 2, 0, (num_vectors - 1) * hop_s)


def robust_z_scores(
    vectors0_ND: Floats, vectors1_ND: Floats, most: int, hop_s: float, at_K: Seconds, window_s: float
) -> Floats:
    """Return how far each lag stands out around each moment (K, L), in deviations over the whole recording.

    The middle of a row, and the deviation of all, are medians; 0 where a lag has no score.
    """
    score_KL = window_scores(band(vectors0_ND, vectors1_ND, most), hop_s, at_K, window_s)
    there_KL = np.isfinite(score_KL)
    heard_K = there_KL.any(axis=1)  # not where the other channel is over
    if not heard_K.any():
        return np.zeros(score_KL.shape, dtype=np.float32)
    off_KL = np.where(there_KL, score_KL, np.nan)
    off_KL[heard_K] -= np.nanmedian(off_KL[heard_K], axis=1, keepdims=True)
    scale = 1.4826 * float(np.nanmedian(np.abs(off_KL)))
    return np.where(there_KL, off_KL / max(scale, 1e-6), 0.0).astype(np.float32)


def median_prominence(score_L: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return how far the best score of the last axis stands out of all, 0 to 1: (best - median) / (1 - median).

    The report gives no confidence; its scores are means of cosines, so that 1 is the most there is.
    """
    # Where no lag has a score, all are alike.
    score_L = np.where(np.isfinite(score_L).any(axis=-1, keepdims=True), score_L, 0.0)
    middle = np.nanmedian(np.where(np.isfinite(score_L), score_L, np.nan), axis=-1)
    out: npt.NDArray[np.float64] = (score_L.max(axis=-1) - middle) / np.maximum(1 - middle, LEAST_ROOM)
    return np.clip(out, 0, 1)


def local_lags(pair: Pair, ears: PairEmbedder, hop_s: float, window_s: float) -> LocalLags:
    """Return the best lag around each keypoint; none, that does not stand out, for a channel shorter than a segment."""
    vectors0_ND, vectors1_ND = ears(pair, hop_s)
    if not len(vectors0_ND) or not len(vectors1_ND):
        return LocalLags(np.zeros(len(pair.keypoints)), np.zeros(len(pair.keypoints)), hop_s)
    at_K = np.clip(pair.keypoints, 0, (len(vectors0_ND) - 1) * hop_s)
    score_KL = window_scores(band(vectors0_ND, vectors1_ND, most_lag(pair.max_lag_s, hop_s)), hop_s, at_K, window_s)
    return LocalLags(best_lag(score_KL) * np.float64(hop_s), median_prominence(score_KL), hop_s)


def build_constant_map(pair: Pair, lag_s: float, confidence: float) -> TimeMap:
    """Return a map of one lag, which the report clips into the other recording."""
    time0_K = pair.keypoints
    time1_K = np.clip(time0_K + lag_s, 0.0, pair.durations_s[1])
    return TimeMap(time0_K, make_monotonic(time1_K), np.full(len(time0_K), confidence))


def most_lag(max_lag_s: float, hop_s: float) -> int:
    """Return the largest lag to look at, in hops."""
    return max(1, round(max_lag_s / hop_s))


def min_overlap(vectors0_ND: Floats, vectors1_ND: Floats) -> int:
    """Return how many vectors a lag needs to be believed: half of the shorter sequence."""
    return max(1, min(len(vectors0_ND), len(vectors1_ND)) // 2)


def _means(
    sums: npt.NDArray[np.float64], counts: npt.NDArray[np.floating], least: float | Ints
) -> npt.NDArray[np.float64]:
    enough = (counts >= least) & (counts > 0)
    return np.where(enough, sums / np.maximum(counts, 1), -np.inf)
