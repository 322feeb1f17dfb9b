"""Waveprint: 1.5 s of spectrogram as a picture, the signs of its largest wavelets, Min-Hash, and tables of four bytes.

A picture is 128 frames of 0.37 s, every 11.56 ms, by 32 logarithmic bands from 318 to 2,000 Hz, so 1.84 s of sound. Its
Haar wavelets are taken along time and along frequency; of the 200 largest only the signs are kept, two bits each of
which one is set. 100 permutations of these 8,192 bits give one byte each: the place of the first bit that is set. Four
bytes in a row are the key of one of 25 tables.

What is read from two implementations: all of that. Ours, as the paper was not had as full text: a picture of power
(`image`); how the pictures of a query are combined. A picture of the query and a stored one that meet in `min_tables`
tables vote for their alignment with the share of their equal bytes; at an alignment each picture of the query has one
stored picture, the one at most half a stride away; the score is the sum of their votes over the number of pictures.

Shape legend: B queries, T samples, N stored pictures, Q pictures of a query, F frames, M bands, W = F M wavelets,
P permutations and bytes, L tables, K largest wavelets, H pairs of pictures, A alignments, R answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from bench.errors import StoreError
from bench.kernels.min_hash import find_least_ranks, find_meetings, find_signs
from bench.match.answers import answer_each, keep_alignments, no_answer
from bench.match.band_power import (
    FRAME_HOPS,
    FRAME_SAMPLES,
    HOP_SAMPLES,
    Powers,
    band_power,
    count_frames,
    space_edges,
)
from bench.match.inverted_table import InvertedTable, build_table, load_array, load_table
from bench.match.prints import TrackPrints, load_prints, stack_prints
from bench.settings import require
from bench.values import RATE_HZ, Floats, Found, Ints

CITE = "Baluja and Covell, Waveprint: Efficient wavelet-based audio fingerprinting, Pattern Recognition 41, 2008"
LICENSE = "MIT"
SOURCE = "our reading; the paper was not had as full text"
QUERY_SETTINGS = ("min_tables",)

PICTURE_FRAMES, BANDS = 128, 32
LOW_HZ, HIGH_HZ = 318.0, 2_000.0
LARGEST = 200  # wavelets whose signs are kept
NUM_BITS = 2 * PICTURE_FRAMES * BANDS
BYTES, KEY_BYTES = 100, 4
TABLES = BYTES // KEY_BYTES
LATEST = 255  # a byte that says: none of the first 255 bits of the permutation is set
SPAN = 1e-8  # of a picture, by which its quietest values are limited before a logarithm: 80 dB
BLOCK_PICTURES = 64
RANKS, FRAMES = "ranks.npy", "frames.npy"
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Config:
    """Settings of the pictures, their prints and the search."""

    image: Literal["power", "magnitude", "log"] = "power"
    """What a picture shows of each band: its power, the square root of it, or its logarithm."""

    stride: int = 8
    """Frames of 11.56 ms from one stored picture to the next, from 1 to 128; a query has one at every frame."""

    seed: int = 1
    """Seed of the permutations, at least 0."""

    min_tables: int = 4
    """Tables of the 25 in which two pictures have to meet, at least 1."""

    def __post_init__(self) -> None:
        rule = f"model.stride must be from 1 to {PICTURE_FRAMES}"
        require(1 <= self.stride <= PICTURE_FRAMES, rule, self.stride)
        require(self.seed >= 0, "model.seed must be >= 0", self.seed)
        rule = f"model.min_tables must be from 1 to {TABLES}"
        require(1 <= self.min_tables <= TABLES, rule, self.min_tables)


def presets() -> dict[str, Config]:
    """Return the default, and the stride of the first implementations, which is for long queries."""
    return {"stride-93": Config(), "stride-930": Config(stride=80)}


def build(config: Config, tracks: Iterable[npt.NDArray[np.int16]], folder: Path) -> None:
    """Write the prints of all tracks, their tables and the permutations. Cost: some 2 ms per s of music."""
    rank_WP = draw_ranks(config.seed)
    of_tracks, frames = [], []
    for wave_T in tracks:
        of_tracks.append(hash_wave(wave_T, config.image, config.stride, rank_WP))
        frames.append(count_frames(len(wave_T)))
    prints = stack_prints(of_tracks)
    prints.save(folder)
    np.save(folder / RANKS, rank_WP)
    np.save(folder / FRAMES, np.array(frames, dtype=np.int64))
    heard_N = np.flatnonzero(can_be_heard(prints.print_N))
    build_table(keys_of(prints.print_N[heard_N]).ravel(), np.repeat(heard_N, TABLES)).save(folder)


def load(config: Config, folder: Path) -> Waveprint:
    """Return the matcher. Raises: StoreError if a file is missing or damaged."""
    prints, table = load_prints(folder, np.uint8, (BYTES,)), load_table(folder)
    rank_WP, frames_R = load_array(folder / RANKS), load_array(folder / FRAMES)
    fits = rank_WP.shape == (NUM_BITS + 1, BYTES) and frames_R.shape == (len(prints.first_R) - 1,)
    if not fits or len(table.position_N) % TABLES or len(table.position_N) > TABLES * len(prints.print_N):
        raise StoreError(f"the tables in {folder} are not of its prints; delete the folder and run again")
    return Waveprint(config, prints, table, np.array(rank_WP), np.array(frames_R))


@dataclass(frozen=True)
class Waveprint:
    """The prints of stored pictures, their tables and the permutations."""

    config: Config
    prints: TrackPrints
    table: InvertedTable
    rank_WP: Bytes

    frames_R: Ints
    """The frames of each track."""

    shortest_s = (FRAME_SAMPLES + (PICTURE_FRAMES - 1) * HOP_SAMPLES) / RATE_HZ

    @property
    def num_bytes(self) -> int:
        """Return the size of prints, tables and permutations."""
        return self.prints.num_bytes + self.table.num_bytes + self.frames_R.nbytes + self.fixed_bytes

    @property
    def fixed_bytes(self) -> int:
        """Return the size of the permutations."""
        return self.rank_WP.nbytes

    def find(self, wave_BT: Floats, num_answers: int, without_B: Ints | None = None) -> Found:
        """Return the alignments with the largest sums of votes; those closer than a frame or a stride are the same."""
        return answer_each(self._find, wave_BT, num_answers, without_B)

    def _find(self, wave_T: Floats, num_answers: int, without: int) -> tuple[Ints, Ints, Floats]:
        hash_QP = hash_wave(wave_T, self.config.image, 1, self.rank_WP)
        frame_Q = np.flatnonzero(can_be_heard(hash_QP))
        if not len(frame_Q):
            return no_answer()
        picture_H, position_H = self._meet(hash_QP[frame_Q], without)
        frame_H = frame_Q[picture_H]
        equal_H = np.count_nonzero(hash_QP[frame_H] == self.prints.print_N[position_H], axis=1)
        row_H = self.prints.row_of(position_H)
        offset_H = (position_H - self.prints.first_R[row_H]) * self.config.stride - frame_H
        # The whole query has to fit into the track; the nearest picture may lie half a stride beside it.
        slack = self.config.stride // 2
        room_H = self.frames_R[row_H] - count_frames(len(wave_T))
        fits_H = (offset_H >= -slack) & (offset_H <= room_H + slack)
        row_A, offset_A, votes_A, mean_A = sum_votes(
            row_H[fits_H], offset_H[fits_H], equal_H[fits_H], self.config.stride
        )
        best_R = keep_alignments(row_A, offset_A, votes_A, num_answers, max(FRAME_HOPS, self.config.stride))
        score_R = (votes_A[best_R] / (BYTES * len(hash_QP))).astype(np.float32)
        return row_A[best_R], np.rint(mean_A[best_R] * HOP_SAMPLES).astype(np.int64), score_R

    def _meet(self, hash_QP: Bytes, without: int) -> tuple[Ints, Ints]:
        """Return the pairs (H,) that meet in enough tables: numbers of the query's pictures, and stored positions."""
        asked_H, position_H = self.table.look_up(keys_of(hash_QP).ravel())
        if without >= 0:
            first, end = self.prints.first_R[without : without + 2]
            is_kept_H = (position_H < first) | (position_H >= end)
            asked_H, position_H = asked_H[is_kept_H], position_H[is_kept_H]
        return find_meetings(asked_H // TABLES, position_H, len(self.prints.print_N), self.config.min_tables)


def hash_wave(
    wave_T: Floats | npt.NDArray[np.int16], image: Literal["power", "magnitude", "log"], stride: int, rank_WP: Bytes
) -> Bytes:
    """Return the Min-Hashes (Q, P) of the pictures that begin at every `stride`-th frame of a wave."""
    power_FM = band_power(wave_T, space_edges(LOW_HZ, HIGH_HZ, BANDS))
    if len(power_FM) < PICTURE_FRAMES:
        return np.empty((0, BYTES), np.uint8)
    picture_QMF = np.lib.stride_tricks.sliding_window_view(power_FM, PICTURE_FRAMES, axis=0)[::stride]
    hash_QP = np.empty((len(picture_QMF), BYTES), np.uint8)
    for start in range(0, len(picture_QMF), BLOCK_PICTURES):
        block = slice(start, start + BLOCK_PICTURES)
        hash_QP[block] = hash_pictures(paint(picture_QMF[block].transpose(0, 2, 1), image), rank_WP)
    return hash_QP


def paint(power_QFM: Powers, image: Literal["power", "magnitude", "log"]) -> Powers:
    """Return pictures (Q, F, M) of the power of each band."""
    if image == "power":
        return power_QFM
    if image == "magnitude":
        return np.sqrt(power_QFM)
    floor_Q11 = SPAN * power_QFM.max(axis=(1, 2), keepdims=True)
    floor_Q11 = np.where(floor_Q11 > 0, floor_Q11, 1)  # silence stays all zeros
    return np.log(np.maximum(power_QFM, floor_Q11) / floor_Q11)


def hash_pictures(picture_QFM: Powers, rank_WP: Bytes) -> Bytes:
    """Return the Min-Hashes (Q, P) of pictures; all LATEST if a picture has no wavelets."""
    return find_least_ranks(find_largest_signs(transform(picture_QFM)), rank_WP)


def transform(picture_QFM: Powers) -> Powers:
    """Return the orthonormal Haar wavelets (Q, F, M): all levels along time, and all along frequency."""
    return build_haar(PICTURE_FRAMES) @ picture_QFM @ build_haar(BANDS).T


@cache
def build_haar(size: int) -> Powers:
    """Return the orthonormal Haar matrix, of a size that is a power of 2: the mean first, then coarse to fine."""
    haar = np.ones((1, 1))
    while len(haar) < size:
        haar = np.concatenate([np.kron(haar, [1, 1]), np.kron(np.eye(len(haar)), [1, -1])]) / np.sqrt(2)
    return haar


def find_largest_signs(wavelet_QFM: Powers) -> Ints:
    """Return the bits (Q, K) that are set, as `find_signs` orders wavelets; magnitudes are compared as float32."""
    return find_signs(wavelet_QFM.reshape(len(wavelet_QFM), -1).astype(np.float32), LARGEST)


def draw_ranks(seed: int) -> Bytes:
    """Return the place of each bit in each permutation (W + 1, P), at most LATEST; the last row is of no bit."""
    draw = np.random.default_rng(seed)
    rank_PW = np.stack([draw.permutation(NUM_BITS) for _ in range(BYTES)])
    rank_WP = np.full((NUM_BITS + 1, BYTES), LATEST, dtype=np.uint8)  # row by row in memory, as the kernel reads it
    rank_WP[:-1] = np.minimum(rank_PW.T, LATEST)
    return rank_WP


def keys_of(hash_QP: Bytes) -> npt.NDArray[np.uint64]:
    """Return the keys (Q, L) of pictures in all tables: the number of the table above four bytes."""
    key_QL = np.ascontiguousarray(hash_QP).view("<u4").astype(np.uint64)
    return key_QL | (np.arange(TABLES, dtype=np.uint64) << np.uint64(8 * KEY_BYTES))


def can_be_heard(hash_QP: Bytes) -> npt.NDArray[np.bool_]:
    """Return which pictures (Q,) have wavelets: those of silence have none."""
    is_heard_Q: npt.NDArray[np.bool_] = np.any(hash_QP != LATEST, axis=1)
    return is_heard_Q


def sum_votes(row_H: Ints, offset_H: Ints, votes_H: Ints, stride: int) -> tuple[Ints, Ints, Ints, Powers]:
    """Return the alignments that have votes: rows, offsets, sums of votes, and mean offsets of the votes (A,).

    An alignment has the votes from half a stride before to half a stride after it, a whole stride in all, so that a
    picture of the query votes with one stored picture.
    """
    span = 2 * (int(np.abs(offset_H).max(initial=0)) + stride)  # apart enough for the offsets of two rows
    order = np.argsort(row_H * span + offset_H, kind="stable")
    place_H = (row_H * span + offset_H)[order]
    place_A, first_A = np.unique(place_H, return_index=True)
    # Sums of integers: equal alignments have equal sums.
    votes_before_H = np.cumsum([0, *votes_H[order]])
    moments_before_H = np.cumsum([0, *(votes_H * offset_H)[order]])
    begin_A = np.searchsorted(place_H, place_A - stride // 2, side="left")
    end_A = np.searchsorted(place_H, place_A - stride // 2 + stride, side="left")
    votes_A = votes_before_H[end_A] - votes_before_H[begin_A]
    mean_A = (moments_before_H[end_A] - moments_before_H[begin_A]) / np.maximum(votes_A, 1)
    return row_H[order][first_A], offset_H[order][first_A], votes_A, mean_A
