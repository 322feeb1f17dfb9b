"""Sequence search by the wave itself: a query is correlated with the tracks around its candidates, sample by sample.

Query and tracks are whitened (`bench.audio.whiten`), and of the tracks one bit per sample is kept. The correlation has
a peak one sample wide where the query is from, however loud the noise: 0.96 s hold 7,680 samples, all of which add up
there and cancel each other elsewhere. It answers to a fraction of a millisecond, and the direct sound of a room is its
peak, so that a tail does not move it.

It is no fingerprint: it needs a copy of the music, a fifth of the size of float fingerprints, and the query must be a
recording of the very same samples. Nothing about it is comparable with the published numbers of fingerprints.

Confidence C, our reading: the parts are textbook methods; no paper was found that uses them for this.

Shape legend: Q queries, B of them in a batch, T samples of a query, R ranked answers, C candidates, W windows, L lags,
S speeds, F frequencies. Samples are at `bench.audio.whiten.RATE_HZ` where no other rate is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.audio.whiten import RATE_HZ, halve_rate, whiten
from bench.search.sign_bits import SignBits
from bench.values import RATE_HZ as CORPUS_RATE_HZ
from bench.values import Floats, Found, Ints, Progress

REACH = round(0.15 * RATE_HZ)  # lags searched before and after a candidate: a place and a half of the database's grid
TILE = round(0.75 * RATE_HZ)  # a track's starts come in tiles of this length: candidates in one are verified together
WIDE_TILE = 1 << 16  # where every place is verified, as few long transforms are faster than many short ones
BLOCK_SAMPLES = 1 << 18  # of windows transformed at once: what a cache holds
# Where a query has more tiles than KEPT, all are compared at a quarter of the rate first, and the best are kept. Of
# 1,000 queries of held-out training tracks at 0.96 s, in noise, rooms and both, each with 658 wrong tiles, the right
# one was among the best 128 in all but one, which the full rate does not find either.
FIRST_STEP = 4
KEPT = 128
SCORE_STEP = 0.001  # scores are multiples of it, so that rounding decides nothing
# Starts in one track that score within this share of the best are tied, as those of an exact repetition are but for
# what the whitening hears before and after it.
TIE = 0.02
# Between neighbouring speeds, times the length of the query in s: half of it moves the ends of a query by half a ms.
SPEED_STEP_S = 0.002


@dataclass(frozen=True)
class _Queries:
    """A batch of queries, whitened and scaled to energy 1, each at every speed, as means of every `step` samples."""

    spectrum_BSF: Tensor
    """Their conjugate spectra, complex64."""

    fft_samples: int
    speeds: Sequence[float]

    lengths: Sequence[int]
    """The number of samples at each speed, before means were taken."""

    step: int = 1


@dataclass(frozen=True)
class _Windows:
    """Excerpts of tracks that are correlated with a query each: lag l is for a start at sample `first` + l."""

    query: Ints
    row: Ints
    first: Ints
    num_lags: int

    def __getitem__(self, rows: slice | Ints) -> _Windows:
        return _Windows(self.query[rows], self.row[rows], self.first[rows], self.num_lags)

    def blocks(self, fft_samples: int) -> Iterator[_Windows]:
        """Yield them in order, as many at once as a processor's cache holds."""
        block = max(1, BLOCK_SAMPLES // fft_samples)
        for start in range(0, len(self.row), block):
            yield self[start : start + block]

    @staticmethod
    def join(parts: Sequence[_Windows], num_lags: int) -> _Windows:
        """Return all of them in order."""
        query, row, first = (
            np.concatenate([getattr(part, name) for part in parts] or [np.empty(0, np.int64)])
            for name in ("query", "row", "first")
        )
        return _Windows(query, row, first, num_lags)


@dataclass(frozen=True)
class _Peaks:
    """The highest correlation of each window (W,): its score, start sample and speed; a score of 0 is none."""

    score: Floats
    start: Ints
    speed: Floats

    def __getitem__(self, rows: Ints) -> _Peaks:
        return _Peaks(self.score[rows], self.start[rows], self.speed[rows])

    @staticmethod
    def join(parts: Sequence[_Peaks]) -> _Peaks:
        """Return all of them in order."""
        none = _Peaks(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.float32))
        return _Peaks(
            *(np.concatenate([getattr(part, n) for part in (none, *parts)]) for n in ("score", "start", "speed"))
        )


@dataclass(frozen=True)
class Candidates:
    """Where each query may be: tracks and start samples at the corpus rate (Q, C); a row of -1 is no candidate."""

    row_QC: Ints
    start_QC: Ints


def list_speeds(largest_change: float, length_s: float) -> tuple[float, ...]:
    """Return the speeds tried for queries of a length: 1, then all from 1 - change to 1 + change, one step apart."""
    step = SPEED_STEP_S / length_s
    count = int(np.ceil(largest_change / step - 1e-9))
    changes = [sign * min(i * step, largest_change) for i in range(1, count + 1) for sign in (-1, 1)]
    return (1.0, *(1 + change for change in changes))


def verify(
    batches: Iterable[Floats],
    candidates: Sequence[Candidates],
    bits: SignBits,
    num_answers: int,
    speeds: Sequence[float] = (1.0,),
    device: torch.device | None = None,
) -> list[Found]:
    """Return the best answers near each set of candidates, best first, at most one in each tile of a track.

    Queries of one length come in batches (B, T) at the corpus rate; the sets have candidates for all of them. The
    speeds are those of `list_speeds`. The score is the correlation in units of the deviation that it has where a query
    is not from: the largest of a thousand lags is about 3.5 by chance. Of starts in the best track that score within
    TIE of the best, the earliest is first. The whole query lies in its track. Silence has no answer.
    Cost: two transforms at a quarter of the rate for each tile, in however many sets it is, and two at the full rate
    for each of the best KEPT; one more at a quarter for every fourth speed, and at the full rate for every one.
    """
    parts: list[list[Found]] = [[] for _ in candidates]
    first = 0
    for wave_BT in batches:
        rows = slice(first, first + len(wave_BT))
        first += len(wave_BT)
        some = [Candidates(each.row_QC[rows], each.start_QC[rows]) for each in candidates]
        white_BST = _whiten_queries(wave_BT, speeds)
        for part, found in zip(parts, verify_white(white_BST, some, bits, num_answers, speeds, device), strict=True):
            part.append(found)
    return [_join(part, num_answers) for part in parts]


def verify_white(
    white_BST: Sequence[Sequence[Floats]],
    candidates: Sequence[Candidates],
    bits: SignBits,
    num_answers: int,
    speeds: Sequence[float] = (1.0,),
    device: torch.device | None = None,
) -> list[Found]:
    """Return what `verify` does, for queries at RATE_HZ that are whitened, have energy 1, and are at each speed."""
    sets = [_cut_tiles(each.row_QC, each.start_QC) for each in candidates]
    if any(np.bincount(each.query).max(initial=0) > KEPT for each in sets):
        sets = _keep_by_first_look(sets, bits, white_BST, speeds, device)
    windows, set_of = _unite(sets)
    peaks = _compare(windows, bits, _transform_queries(white_BST, speeds, TILE + 2 * REACH, 1, device))
    return [_rank(windows[chosen], peaks[chosen], len(white_BST), num_answers) for chosen in set_of]


def _keep_by_first_look(
    sets: Sequence[_Windows],
    bits: SignBits,
    white_BST: Sequence[Sequence[Floats]],
    speeds: Sequence[float],
    device: torch.device | None,
) -> list[_Windows]:
    """Return the windows of each set and query that score best at the rate of the first look."""
    windows, set_of = _unite(sets)
    # Every fourth speed, as one sample is four times as long; 1 is in the middle of all, and among them.
    few = np.argsort(speeds)[len(speeds) // 2 % FIRST_STEP :: FIRST_STEP].tolist()
    white_BFT = [[white_ST[i] for i in few] for white_ST in white_BST]
    queries = _transform_queries(white_BFT, [speeds[i] for i in few], TILE + 2 * REACH, FIRST_STEP, device)
    score_W = _compare(windows, bits, queries).score
    return [_keep_best(windows[chosen], score_W[chosen]) for chosen in set_of]


def _compare(windows: _Windows, bits: SignBits, queries: _Queries) -> _Peaks:
    """Return the highest correlation of each window with its query."""
    peaks = []
    for query, spectrum_SF in enumerate(queries.spectrum_BSF):
        begin, end = np.searchsorted(windows.query, (query, query + 1))
        for some in windows[begin:end].blocks(queries.fft_samples):
            peaks.append(_correlate(_transform(some, bits, queries), some, spectrum_SF, bits, queries))
    return _Peaks.join(peaks)


def _keep_best(windows: _Windows, score_W: Floats) -> _Windows:
    """Return the KEPT windows of each query that score best, in the order they have."""
    order = np.lexsort((-score_W, windows.query))
    query_W = windows.query[order]
    rank_W = np.arange(len(order)) - np.searchsorted(query_W, query_W)
    return windows[np.sort(order[rank_W < KEPT])]


def are_candidates(candidates: Candidates, row_Q: Ints, start_Q: Ints) -> npt.NDArray[np.bool_]:
    """Return which starts (Q,) `verify` compares, given its candidates: those in a tile of one, or near it."""
    row_QC = candidates.row_QC
    first_QC = candidates.start_QC * RATE_HZ // CORPUS_RATE_HZ // TILE * TILE - REACH
    lag_QC = start_Q[:, None] * RATE_HZ // CORPUS_RATE_HZ - first_QC
    inside_QC = (row_QC == row_Q[:, None]) & (row_QC >= 0) & (lag_QC >= 0) & (lag_QC < TILE + 2 * REACH)
    compared_Q: npt.NDArray[np.bool_] = inside_QC.any(axis=1)
    return compared_Q


def verify_everywhere(
    batches: Iterable[Floats],
    own_Q: Ints,
    bits: SignBits,
    num_answers: int,
    progress: Progress,
    device: torch.device | None = None,
) -> tuple[Found, Floats]:
    """Return the best answers among all places of all tracks (the matched filter), and the impostors' scores (Q,).

    The impostor of a query is its best answer outside of its own track, row `own_Q`; NaN if there is none.
    Cost: a transform for each WIDE_TILE of the database, and one more for each query of a batch.
    """
    parts, impostors, first = [], [], 0
    tiles = _cut_everything(bits)
    for wave_BT in batches:
        queries = _transform_queries(_whiten_queries(wave_BT, (1.0,)), (1.0,), WIDE_TILE, 1, device)
        own_B = own_Q[first : first + len(wave_BT)]
        first += len(wave_BT)
        blocks, found, done = [], [], 0
        for some in tiles.blocks(queries.fft_samples):
            progress("matched filter", done, len(tiles.row))
            done += len(some.row)
            window_WF = _transform(some, bits, queries)
            for query, spectrum_SF in enumerate(queries.spectrum_BSF):
                blocks.append(replace(some, query=np.full_like(some.row, query)))
                found.append(_correlate(window_WF, some, spectrum_SF, bits, queries))
        progress("matched filter", done, len(tiles.row))
        windows, peaks = _Windows.join(blocks, WIDE_TILE), _Peaks.join(found)
        parts.append(_rank(windows, peaks, len(wave_BT), num_answers))
        is_own_W = windows.row == own_B[windows.query]
        others = replace(peaks, score=np.where(is_own_W, np.float32(0), peaks.score))
        impostors.append(_rank(windows, others, len(wave_BT), 1).score_QR[:, 0])
    return _join(parts, num_answers), np.concatenate([*impostors, np.empty(0, np.float32)])


def _whiten_queries(wave_BT: Floats, speeds: Sequence[float]) -> list[list[Floats]]:
    """Return each query at each speed, whitened and scaled to energy 1."""
    from scipy.signal import resample

    white_BST = []
    for halved_T in map(halve_rate, wave_BT):
        lengths = [round(len(halved_T) * speed) for speed in speeds]
        # Music that is played 1 % faster is stretched by as much.
        played = [halved_T if n == len(halved_T) else resample(halved_T, n).astype(np.float32) for n in lengths]
        white_BST.append([_scale(whiten(played_T)) for played_T in played])
    return white_BST


def _transform_queries(
    white_BST: Sequence[Sequence[Floats]],
    speeds: Sequence[float],
    num_lags: int,
    step: int,
    device: torch.device | None,
) -> _Queries:
    """Return the conjugate spectra of the means of every `step` samples of queries."""
    lengths = [len(white_T) for white_T in white_BST[0]]
    fft_samples = _fast_length((max(lengths) + num_lags) // step)
    shape = (len(white_BST), len(speeds), fft_samples // 2 + 1)
    spectrum_BSF = torch.empty(shape, dtype=torch.complex64, device=device)
    for query, white_ST in enumerate(white_BST):
        for i, white_T in enumerate(white_ST):
            mean_T = white_T[: len(white_T) // step * step].reshape(-1, step).mean(axis=1)
            spectrum_BSF[query, i] = torch.fft.rfft(torch.from_numpy(mean_T).to(spectrum_BSF.device), fft_samples)
    return _Queries(spectrum_BSF.conj().resolve_conj(), fft_samples, speeds, lengths, step)


def _fast_length(num_samples: int) -> int:
    """Return the next power of two, or three quarters of it: the fastest transforms, and whole bytes of windows."""
    power: int = 1 << (num_samples - 1).bit_length()
    return power * 3 // 4 if num_samples <= power * 3 // 4 else power


def _scale(white_T: Floats) -> Floats:
    """Return a query with energy 1: its correlation with random signs has a deviation of 1. Silence stays silence."""
    energy = float(np.sum(np.square(white_T, dtype=np.float64)))
    return white_T / np.float32(np.sqrt(energy)) if energy > 0 else white_T


def _cut_tiles(row_BC: Ints, start_BC: Ints) -> _Windows:
    """Return the tiles that hold the candidates of each query, in the order of queries, tracks and times."""
    query_P, candidate_P = np.nonzero(row_BC >= 0)
    start_P = start_BC[query_P, candidate_P] * RATE_HZ // CORPUS_RATE_HZ
    candidates_3P = np.stack([query_P, row_BC[query_P, candidate_P], start_P // TILE])
    query_W, row_W, tile_W = np.unique(candidates_3P, axis=1)
    return _Windows(query_W, row_W, tile_W * TILE - REACH, TILE + 2 * REACH)


def _unite(sets: Sequence[_Windows]) -> tuple[_Windows, list[Ints]]:
    """Return all windows of several sets once, in the order of each, and where those of each set are among them."""
    named_3W = np.concatenate([np.stack([each.query, each.row, each.first]) for each in sets], axis=1)
    united_3W, inverse_W = np.unique(named_3W, axis=1, return_inverse=True)
    edges = np.cumsum([len(each.row) for each in sets])[:-1]
    query_W, row_W, first_W = united_3W
    return _Windows(query_W, row_W, first_W, sets[0].num_lags), np.split(inverse_W.reshape(-1), edges)


def _cut_everything(bits: SignBits) -> _Windows:
    """Return all tiles of all tracks."""
    count = -(-bits.num_samples // WIDE_TILE)
    row_W = np.repeat(np.arange(len(count)), count)
    tile_W = np.arange(len(row_W)) - np.repeat(np.cumsum(count) - count, count)
    return _Windows(np.zeros_like(row_W), row_W, tile_W * WIDE_TILE, WIDE_TILE)


def _transform(windows: _Windows, bits: SignBits, queries: _Queries) -> Tensor:
    """Return the spectra (W, F) of windows of tracks."""
    sign_WN = bits.read_windows(windows.row, windows.first, queries.fft_samples * queries.step, queries.step)
    window_WF: Tensor = torch.fft.rfft(torch.from_numpy(sign_WN).to(queries.spectrum_BSF.device))
    return window_WF


def _correlate(window_WF: Tensor, windows: _Windows, spectrum_SF: Tensor, bits: SignBits, queries: _Queries) -> _Peaks:
    """Return the highest correlation of each window with one query, at any speed; of equal ones the first."""
    shape, step = len(window_WF), queries.step
    first_lag_W, num_lags = windows.first // step, windows.num_lags // step
    best_W, lag_W, speed_W = np.zeros(shape, np.float32), np.zeros(shape, np.int64), np.ones(shape, np.float32)
    for speed, length, spectrum_F in zip(queries.speeds, queries.lengths, spectrum_SF, strict=True):
        score_WL = torch.fft.irfft(window_WF * spectrum_F, queries.fft_samples)[:, :num_lags].abs_()
        # The last lag at which the query fits.
        last_W = (bits.num_samples[windows.row] - length - windows.first) // step
        for w in np.flatnonzero((first_lag_W < 0) | (last_W < num_lags - 1)):
            score_WL[w, : max(0, -first_lag_W[w])] = 0
            score_WL[w, max(0, last_W[w] + 1) :] = 0
        top_W = score_WL.amax(dim=1, keepdim=True)
        first_W = (score_WL >= top_W - SCORE_STEP).cpu().numpy().argmax(axis=1)
        score_W = (top_W[:, 0] / SCORE_STEP).round_().cpu().numpy() * np.float32(SCORE_STEP)
        better_W = score_W > best_W
        best_W, lag_W = np.where(better_W, score_W, best_W), np.where(better_W, first_W, lag_W)
        speed_W = np.where(better_W, np.float32(speed), speed_W)
    return _Peaks(best_W, windows.first + step * lag_W, speed_W)


def _rank(windows: _Windows, peaks: _Peaks, num_queries: int, num_answers: int) -> Found:
    """Return the best peaks of each query as answers, their starts at the corpus rate; none has a score of 0."""
    shape = (num_queries, num_answers)
    row_QR, start_QR = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    score_QR, speed_QR = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    best_Q, best_row_Q = np.zeros(num_queries, np.float32), np.full(num_queries, -1, np.int64)
    order = np.lexsort((-peaks.start, -windows.row, peaks.score, windows.query))  # the best comes last, and stays
    best_Q[windows.query[order]], best_row_Q[windows.query[order]] = peaks.score[order], windows.row[order]
    is_tied_W = (windows.row == best_row_Q[windows.query]) & (peaks.score >= (1 - TIE) * best_Q[windows.query])
    order = np.lexsort((peaks.start, windows.row, np.where(is_tied_W, -np.inf, -peaks.score), windows.query))
    order = order[peaks.score[order] > 0]
    # One peak may lie in two windows, whose reaches overlap.
    named_3W = np.stack([windows.query[order], windows.row[order], peaks.start[order]])
    order = order[np.sort(np.unique(named_3W, axis=1, return_index=True)[1])]
    query = windows.query[order]
    rank = np.arange(len(order)) - np.searchsorted(query, query)
    ranked = rank < num_answers
    at, order = (query[ranked], rank[ranked]), order[ranked]
    row_QR[at], score_QR[at], speed_QR[at] = windows.row[order], peaks.score[order], peaks.speed[order]
    start_QR[at] = peaks.start[order] * CORPUS_RATE_HZ // RATE_HZ
    return Found(row_QR, start_QR, score_QR, speed_QR=speed_QR)


def _join(parts: Sequence[Found], num_answers: int) -> Found:
    """Return the answers to all batches."""
    empty = np.empty((0, num_answers))
    row_QR, start_QR = (
        np.concatenate([empty, *(getattr(p, n) for p in parts)]).astype(np.int64) for n in ("row_QR", "start_QR")
    )
    score_QR, speed_QR = (
        np.concatenate([empty, *(getattr(p, n) for p in parts)]).astype(np.float32) for n in ("score_QR", "speed_QR")
    )
    return Found(row_QR, start_QR, score_QR, speed_QR=speed_QR)
