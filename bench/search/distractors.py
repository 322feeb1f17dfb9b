"""Distractors: music that no query is from. What its best match scores decides top-1 in a database of any size.

A synthetic track is the whole sequence of a real one, reflected along some principal axes of all real fingerprints:

    x' = normalise(x - 2 W W'(x - mean)),    W: axes drawn at random until they hold a given share of the variance.

A reflection preserves angles, so that adjacent segments overlap and music repeats as in the real track; a reflection
along principal axes preserves the covariance; and yet the track lies elsewhere on the sphere. The share decides how
close synthetic tracks come to a query: with half of all axes they are easier to tell from a query than other real
tracks, with few they are near copies of the real track; docs/experiments.md says how well they follow real ones.

Synthetic track t is derived from real track t modulo their number, with draws of its own from (SEED, t). Any number of
tracks is therefore made block by block, the same to the bit in any order, and never kept.

Shape legend: N vectors, D dimensions, F reflected axes, Q queries, M segments of a query, S sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import numpy.typing as npt
import torch

from bench.errors import DataError
from bench.search.diagonal import search_diagonals
from bench.values import Fingerprints, Floats, Ints

SEED = 250_918_620
REFLECTED = 0.17  # share of the variance along the reflected axes: from 0.1 to 0.2 training tracks tell no difference
BLOCK_TRACKS = 16  # synthetic tracks made at once
BLOCK_VECTORS = 1 << 15  # vectors in memory at once, where principal axes are found


@dataclass(frozen=True)
class PrincipalAxes:
    """The distribution of fingerprints: their mean and principal axes."""

    mean_D: Floats

    axes_DD: Floats
    """One axis per column."""

    share_D: npt.NDArray[np.float64]
    """The share of the variance along each axis."""


def fit_principal_axes(vectors_ND: Floats) -> PrincipalAxes:
    """Return mean and principal axes, in two passes over blocks."""
    num_vectors, dim = vectors_ND.shape
    mean_D = np.zeros(dim)
    for start in range(0, num_vectors, BLOCK_VECTORS):
        mean_D += vectors_ND[start : start + BLOCK_VECTORS].sum(axis=0, dtype=np.float64) / num_vectors
    covariance_DD = np.zeros((dim, dim))
    for start in range(0, num_vectors, BLOCK_VECTORS):
        off_ND = vectors_ND[start : start + BLOCK_VECTORS] - mean_D
        covariance_DD += off_ND.T @ off_ND / num_vectors
    variance_D, axes_DD = np.linalg.eigh(covariance_DD)
    variance_D = np.maximum(variance_D, 0)
    # The smallest float avoids 0 / 0 if all vectors are the same.
    share_D = variance_D / max(variance_D.sum(), np.finfo(np.float64).tiny)
    return PrincipalAxes(mean_D.astype(np.float32), axes_DD.astype(np.float32), share_D)


def reflect_sequence(
    sequence_ND: Floats, axes: PrincipalAxes, draw: np.random.Generator, reflected: float = REFLECTED
) -> Floats:
    """Return a sequence (N, D) of unit vectors, reflected along axes drawn until they hold a share of the variance."""
    order_D = draw.permutation(len(axes.share_D))
    num_reflected = 1 + int(np.searchsorted(np.cumsum(axes.share_D[order_D]), reflected))
    axes_DF = axes.axes_DD[:, order_D[:num_reflected]]
    reflected_ND = sequence_ND - 2 * ((sequence_ND - axes.mean_D) @ axes_DF) @ axes_DF.T
    unit_ND: Floats = reflected_ND / np.linalg.norm(reflected_ND, axis=1, keepdims=True)
    return unit_ND


def make_block(source: Fingerprints, axes: PrincipalAxes, block: int) -> Fingerprints:
    """Return BLOCK_TRACKS synthetic tracks, from number `block` x BLOCK_TRACKS on; the same in any order of blocks.

    Its `tracks` are the numbers of the real tracks that they are derived from.

    Raises: DataError if the source has no vector.
    """
    rows = np.flatnonzero(np.diff(source.first_vector))
    if not len(rows):
        raise DataError("there is no fingerprint to derive distractors from; fingerprint some tracks first")
    made = block * BLOCK_TRACKS + np.arange(BLOCK_TRACKS)
    row_of = rows[made % len(rows)]
    sequences = []
    for track, row in zip(made.tolist(), row_of.tolist(), strict=True):
        sequence_ND = source.vectors[source.first_vector[row] : source.first_vector[row + 1]]
        sequences.append(reflect_sequence(sequence_ND, axes, np.random.default_rng([SEED, track])))
    first_vector = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])]).astype(np.int64)
    vectors, tracks = np.concatenate(sequences), source.tracks[row_of]
    return Fingerprints(vectors, tracks, first_vector, source.hop_samples, f"synthetic {block}")


def synthetic_blocks(source: Fingerprints) -> Iterator[Fingerprints]:
    """Yield synthetic tracks without end. Memory: one block."""
    axes = fit_principal_axes(source.vectors)
    return (make_block(source, axes, block) for block in count())


def score_distractors(
    queries_QMD: Floats,
    track_Q: Ints,
    blocks: Iterable[Fingerprints],
    sizes: Sequence[int],
    device: torch.device | None = None,
) -> Floats:
    """Return the best score (Q, S) of each query among the first vectors of all blocks, for each number of vectors.

    The score is that of the sequence search `diagonal`; -inf if no track is long enough. What is derived from the
    query's own track `track_Q` does not count: it is a near copy, and there would be ever more of them. `sizes` ascend;
    what is there when the blocks end counts in all larger sizes.
    Cost: an exact search of the largest size. Memory: one block.
    """
    best_QS = np.full((len(queries_QMD), len(sizes)), -np.inf, dtype=np.float32)
    num_before = 0
    for block in blocks:
        num_after = num_before + len(block.vectors)
        for i, size in enumerate(sizes):
            if num_before < size < num_after:
                score_Q = _best_scores(queries_QMD, track_Q, _first_vectors(block, size - num_before), device)
                best_QS[:, i] = np.maximum(best_QS[:, i], score_Q)
        holds_block = [i for i, size in enumerate(sizes) if size >= num_after]
        if not holds_block:
            break
        score_Q = _best_scores(queries_QMD, track_Q, block, device)
        best_QS[:, holds_block] = np.maximum(best_QS[:, holds_block], score_Q[:, None])
        if num_after == max(sizes):
            break
        num_before = num_after
    return best_QS


def _best_scores(queries_QMD: Floats, track_Q: Ints, block: Fingerprints, device: torch.device | None) -> Floats:
    """Return the best score of each query (Q,), -inf without a place."""
    ranking = search_diagonals(queries_QMD, block, 1, track_Q, device, groups=block.tracks)
    scores: Floats = ranking.scores_QR[:, 0]
    return np.where(np.isnan(scores), np.float32(-np.inf), scores)


def _first_vectors(block: Fingerprints, num_vectors: int) -> Fingerprints:
    """Return the database of the first vectors: the track that they end in is cut off."""
    first_vector = np.minimum(block.first_vector, num_vectors)
    return replace(block, vectors=block.vectors[:num_vectors], first_vector=first_vector)
