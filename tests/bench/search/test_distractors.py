"""Distractors: the same to the bit in any order of blocks, in flat memory, scored as if all were in the database."""

from __future__ import annotations

import tracemalloc
from itertools import islice

import numpy as np
import pytest

from bench.errors import DataError
from bench.search.distractors import (
    BLOCK_TRACKS,
    fit_principal_axes,
    make_block,
    score_distractors,
    synthetic_blocks,
)
from bench.values import Fingerprints

TRACKS, LENGTH, DIM = 12, 40, 16


@pytest.fixture(scope="module")
def source() -> Fingerprints:
    """Return tracks that wander about a place of their own in small steps; one has no vector."""
    draw = np.random.default_rng(0)
    home, step = draw.standard_normal((TRACKS, 1, DIM)), draw.standard_normal((TRACKS, LENGTH, DIM))
    wave = home + np.cumsum(0.3 * step, axis=1) + 0.3
    vectors = (wave / np.linalg.norm(wave, axis=2, keepdims=True)).astype(np.float32).reshape(-1, DIM)
    first = np.concatenate([[0, 0], LENGTH * np.arange(1, TRACKS + 1)]).astype(np.int64)
    return Fingerprints(vectors, np.arange(TRACKS + 1), first, 1_600, "real")


def together(blocks: list[Fingerprints], num_vectors: int) -> Fingerprints:
    lengths = np.concatenate([np.diff(block.first_vector) for block in blocks])
    first = np.minimum(np.concatenate([[0], np.cumsum(lengths)]), num_vectors)
    vectors = np.concatenate([block.vectors for block in blocks])[:num_vectors]
    return Fingerprints(vectors, np.concatenate([block.tracks for block in blocks]), first, 1_600, "all")


def test_a_block_is_the_same_to_the_bit_in_any_order(source: Fingerprints) -> None:
    in_order = list(islice(synthetic_blocks(source), 4))
    alone = make_block(source, fit_principal_axes(source.vectors), 3)
    np.testing.assert_array_equal(alone.vectors, in_order[3].vectors)
    numbers = np.arange(3 * BLOCK_TRACKS, 4 * BLOCK_TRACKS)
    np.testing.assert_array_equal(alone.tracks, 1 + numbers % TRACKS)  # those that they are made of; 0 has no vector
    assert len({block.vectors.tobytes() for block in in_order}) == 4


def test_synthetic_tracks_are_of_unit_length_and_change_as_slowly_as_real_ones(source: Fingerprints) -> None:
    made = together(list(islice(synthetic_blocks(source), 6)), 10**9).vectors
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    for lag in (1, 5):
        real, other = (
            np.einsum("tnd,tnd->tn", each[:, lag:], each[:, :-lag]).mean()
            for each in (vectors.reshape(-1, LENGTH, DIM) for vectors in (source.vectors, made))
        )
        assert abs(real - other) < 0.03


@pytest.mark.parametrize("num_segments", [1, 4])
def test_scores_are_those_of_a_search_of_all_distractors_at_once(source: Fingerprints, num_segments: int) -> None:
    draw = np.random.default_rng(1)
    queries = draw.standard_normal((7, num_segments, DIM)).astype(np.float32)
    sizes = [
        3,
        LENGTH * BLOCK_TRACKS,
        1_000,
        2_531,
    ]  # less than a query, a whole block, two within a track
    blocks = list(islice(synthetic_blocks(source), 4))
    assert sizes[-1] < sum(len(block.vectors) for block in blocks)
    own = np.arange(7)  # what is made of these is left out of each query's search
    found = score_distractors(queries, own, synthetic_blocks(source), sizes)
    for i, size in enumerate(sizes):
        every = together(blocks, size)
        scores = np.full((len(queries), len(every.vectors)), -np.inf)
        for row, (first, last) in enumerate(zip(every.first_vector[:-1], every.first_vector[1:], strict=True)):
            for place in range(first, last - num_segments + 1):
                scores[:, place] = np.einsum("qmd,md->q", queries, every.vectors[place : place + num_segments])
                scores[own == every.tracks[row], place] = -np.inf
        expected = scores.max(axis=1) / num_segments
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-5)
    assert (np.diff(found, axis=1) >= 0).all()


def test_what_is_there_counts_in_sizes_that_real_distractors_do_not_reach(source: Fingerprints) -> None:
    query = np.random.default_rng(2).standard_normal((2, 1, DIM)).astype(np.float32)
    found = score_distractors(query, np.array([98, 99]), [source], [10, len(source.vectors), 10**6])
    np.testing.assert_allclose(found[:, 1], (query[:, 0] @ source.vectors.T).max(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(found[:, 1], found[:, 2])


def test_memory_does_not_grow_with_the_number_of_distractors(source: Fingerprints) -> None:
    query = source.vectors[:5, None]

    def peak(size: int) -> int:
        tracemalloc.start()
        score_distractors(query, np.arange(5), synthetic_blocks(source), [size])
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1_000)  # what is allocated once
    # All 60,000 vectors would take 3.8 MB; a block takes 41 kB.
    assert peak(60_000) < peak(3_000) + 100_000


def test_nothing_can_be_derived_from_no_fingerprint() -> None:
    none = Fingerprints(np.zeros((0, DIM), np.float32), np.arange(1), np.array([0, 0]), 1_600, "none")
    with pytest.raises(DataError, match="no fingerprint to derive distractors from"):
        next(synthetic_blocks(none))
